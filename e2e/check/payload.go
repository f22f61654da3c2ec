package check

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// Payload is the value of a producer's record: unique in a run, and such that
// any change of it is noticed. It is at least size bytes long.
func Payload(producer string, seq int, topic string, partition int32, size int) string {
	head := fmt.Sprintf("%s/%d/%s/%d/", producer, seq, topic, partition)
	fill := strings.Repeat(".", max(0, size-len(head)-9))
	return head + fill + fmt.Sprintf("/%08x", crc32.ChecksumIEEE([]byte(head+fill)))
}

// ParsePayload returns whose record a value is.
func ParsePayload(v, topic string, partition int32) (producer string, seq int, ok bool) {
	if len(v) < 9 || v[len(v)-9] != '/' || fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(v[:len(v)-9]))) != v[len(v)-8:] {
		return "", 0, false
	}
	f := strings.SplitN(v, "/", 5)
	if len(f) != 5 || f[2] != topic || f[3] != strconv.Itoa(int(partition)) {
		return "", 0, false
	}
	seq, err := strconv.Atoi(f[1])
	return f[0], seq, err == nil
}

// Record is the row of a record that a reader was given.
func Record(kind Kind, topic string, partition int32, offset int64, value string) Event {
	e := Event{Kind: kind, Topic: topic, Partition: partition, Offset: offset}
	var ok bool
	if e.Producer, e.Seq, ok = ParsePayload(value, topic, partition); !ok {
		e.Broken, e.Text = true, fmt.Sprintf("%.60q", value)
	}
	return e
}

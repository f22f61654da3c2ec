//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fullRecord is a record as a broker stores it, with what the batch says.
type fullRecord struct {
	partition int32
	offset    int64
	key, id   string
	sum       string
	headers   string
	codec     uint8
}

func headersText(hs [][2]string) string { return fmt.Sprint(hs) }

// readFull reads every record of a topic from one address, up to the end
// offsets at the beginning of the call.
func readFull(ctx context.Context, addr, topic string, partitions int32) ([]fullRecord, error) {
	ends, total, err := endOffsets(ctx, addr, topic, partitions)
	if err != nil || total == 0 {
		return nil, err
	}
	starts := map[int32]kgo.Offset{}
	for p, end := range ends {
		if end > 0 {
			starts[p] = kgo.NewOffset().AtStart()
		}
	}
	cl, err := kgo.NewClient(append(clientOpts([]string{addr}),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}), kgo.FetchMaxWait(500*time.Millisecond))...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var out []fullRecord
	for missing := len(starts); missing > 0; {
		fs := cl.PollFetches(ctx)
		for _, e := range fs.Errors() {
			return nil, fmt.Errorf("read %s/%d from %s: %w", e.Topic, e.Partition, addr, e.Err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			out = append(out, toFull(r))
			if r.Offset == ends[r.Partition]-1 {
				missing--
			}
		})
	}
	slices.SortFunc(out, func(a, b fullRecord) int {
		if a.partition != b.partition {
			return int(a.partition - b.partition)
		}
		return int(a.offset - b.offset)
	})
	return out, nil
}

func toFull(r *kgo.Record) fullRecord {
	hs := [][2]string{}
	for _, h := range r.Headers {
		hs = append(hs, [2]string{h.Key, hex.EncodeToString(h.Value)})
	}
	id, _, _ := strings.Cut(string(r.Value), ".")
	return fullRecord{
		partition: r.Partition, offset: r.Offset, key: string(r.Key), id: id, sum: sumOf(r.Value),
		headers: headersText(hs), codec: r.Attrs.CompressionType(),
	}
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func endOffsets(ctx context.Context, addr, topic string, partitions int32) (ends map[int32]int64, total int64, err error) {
	ends = map[int32]int64{}
	for p := range partitions {
		if ends[p], err = endOffset(ctx, addr, topic, p); err != nil {
			return nil, 0, err
		}
		total += ends[p]
	}
	return ends, total, nil
}

// produced is what a client was asked to produce.
type produced struct {
	topic      string
	partitions int32
	prefix     string
	count      int
	size       int
	codec      string
	idempotent bool
	headers    bool
	max        int
	rate       int
	repeats    bool // the client may repeat what it sends without idempotence
}

var codecNumbers = map[string]uint8{"": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

// theHeaders is what every client is to send: text beyond ASCII, one name twice
// and bytes that are no text.
var theHeaders = headersText([][2]string{
	{"name", hex.EncodeToString([]byte("k\u00e4se"))}, {"twice", "31"}, {"twice", "32"}, {"bin", "80ff"},
})

func (p produced) args(bootstrap []string) []string {
	args := []string{
		"bootstrap=" + strings.Join(bootstrap, ","), "topic=" + p.topic, "prefix=" + p.prefix, "count=" + strconv.Itoa(p.count),
		"size=" + strconv.Itoa(p.size), "idempotent=" + strconv.FormatBool(p.idempotent),
	}
	if p.codec != "" {
		args = append(args, "codec="+p.codec)
	}
	if p.headers {
		args = append(args, "headers=true")
	}
	if p.max > 0 {
		args = append(args, "max="+strconv.Itoa(p.max))
	}
	if p.rate > 0 {
		args = append(args, "rate="+strconv.Itoa(p.rate))
	}
	return args
}

// value is what record i must hold.
func (p produced) value(i int) []byte {
	b := append([]byte(fmt.Sprintf("%s-%d", p.prefix, i)), '.')
	for j := len(b); j < p.size; j++ {
		b = append(b, byte('a'+j%26))
	}
	return b
}

// check holds the records of one broker to what was asked for: each once, in
// the order of its key, with its very bytes.
func (p produced) check(records []fullRecord) error {
	once := p.idempotent || !p.repeats
	if once && len(records) != p.count {
		return fmt.Errorf("%d records stand on the broker, want %d", len(records), p.count)
	}
	seen, last := map[int]bool{}, map[string]int{}
	for _, r := range records {
		at := fmt.Sprintf("%d/%d", r.partition, r.offset)
		i, err := strconv.Atoi(strings.TrimPrefix(r.id, p.prefix+"-"))
		switch {
		case err != nil || i < 0 || i >= p.count:
			return fmt.Errorf("a record nobody sent stands at %s: %q", at, r.id)
		case once && seen[i]:
			return fmt.Errorf("record %s stands twice, again at %s", r.id, at)
		case r.sum != sumOf(p.value(i)):
			return fmt.Errorf("record %s at %s holds other bytes than were sent", r.id, at)
		case r.key != fmt.Sprintf("k%d", i%10):
			return fmt.Errorf("record %s at %s has key %q", r.id, at, r.key)
		case once && i < last[r.key]:
			return fmt.Errorf("record %s at %s stands behind a later one of its key", r.id, at)
		case r.codec != codecNumbers[p.codec]:
			return fmt.Errorf("record %s at %s is stored with codec %d, want %d (%s)", r.id, at, r.codec, codecNumbers[p.codec], p.codec)
		case p.headers && r.headers != theHeaders:
			return fmt.Errorf("record %s at %s has headers %s, want %s", r.id, at, r.headers, theHeaders)
		}
		seen[i], last[r.key] = true, i
	}
	if len(seen) != p.count {
		return fmt.Errorf("%d different records stand on the broker, want %d", len(seen), p.count)
	}
	return nil
}

// onEveryBroker reads the brokers directly, around Lockstep, until each holds
// count records, and returns them. They must not differ.
func onEveryBroker(ctx context.Context, nodes []*node, topic string, partitions int32, count int) ([]fullRecord, error) {
	var first []fullRecord
	for _, n := range nodes {
		err := soon(ctx, time.Minute, func(ctx context.Context) error {
			_, total, err := endOffsets(ctx, n.broker.addr(), topic, partitions)
			if err == nil && total < int64(count) {
				err = fmt.Errorf("broker of node %d holds %d records of %s, want %d", n.id, total, topic, count)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		reading, cancel := context.WithTimeout(ctx, time.Minute)
		records, err := readFull(reading, n.broker.addr(), topic, partitions)
		cancel()
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = records
		}
		if !slices.Equal(first, records) {
			return nil, fmt.Errorf("brokers of node %d and %d hold different records of %s", nodes[0].id, n.id, topic)
		}
	}
	return first, nil
}

// checkAcks holds what a producer was told against what stands on the brokers.
func checkAcks(cl *compatClient, events []compatEvent, records []fullRecord, count int) error {
	at := map[string]fullRecord{}
	for _, r := range records {
		at[r.id] = r
	}
	acked := map[string]bool{}
	for _, e := range events {
		if e.Event != "acked" {
			continue
		}
		r, ok := at[e.Value]
		if !ok {
			return fmt.Errorf("record %s was acknowledged and is not there", e.Value)
		}
		if e.Offset >= 0 && (r.partition != e.Partition || r.offset != e.Offset) {
			return fmt.Errorf("record %s was acknowledged at %d/%d and stands at %d/%d", e.Value, e.Partition, e.Offset, r.partition, r.offset)
		}
		acked[e.Value] = true
	}
	if !cl.silent && len(acked) != count {
		return fmt.Errorf("%d records acknowledged, want %d", len(acked), count)
	}
	return nil
}

// checkConsumed holds what a client read against what stands on the brokers:
// all of it, in order, once (a client that reads in groups only may read again).
func checkConsumed(cl *compatClient, events []compatEvent, records []fullRecord) error {
	type place struct {
		partition int32
		offset    int64
	}
	want := map[place]fullRecord{}
	for _, r := range records {
		want[place{r.partition, r.offset}] = r
	}
	seen, last := map[place]bool{}, map[int32]int64{}
	for _, e := range events {
		if e.Event != "record" {
			continue
		}
		at := place{e.Partition, e.Offset}
		r, ok := want[at]
		if !ok {
			return fmt.Errorf("the client read %d/%d (%s), which no broker has", e.Partition, e.Offset, e.Value)
		}
		if e.Headers == nil {
			e.Headers = [][2]string{}
		}
		if e.Value != r.id || e.Sum != r.sum || e.Key != r.key || headersText(e.Headers) != r.headers {
			return fmt.Errorf("at %d/%d the client read %+v, the brokers have %+v", e.Partition, e.Offset, e, r)
		}
		if !cl.grouped && (seen[at] || e.Offset < last[e.Partition]) {
			return fmt.Errorf("the client read %d/%d twice or out of order", e.Partition, e.Offset)
		}
		seen[at], last[e.Partition] = true, e.Offset
	}
	if len(seen) != len(records) {
		return fmt.Errorf("the client read %d of %d records", len(seen), len(records))
	}
	return nil
}

// soon asks until probe returns nil or limit passes. No single try may use it
// all up: on a busy machine one connection in a thousand takes seconds.
func soon(ctx context.Context, limit time.Duration, probe func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return probe(ctx)
	})
}

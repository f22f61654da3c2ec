package fsm

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"lockstep/kafkawire"
)

// batchSpec says what a test batch holds; the zero value is one record without
// a producer.
type batchSpec struct {
	pid    int64 // 0 means none
	epoch  int16
	seq    int32
	count  int32 // 0 means 1
	fill   byte
	size   int // bytes of records
	mutate func(b []byte)
}

// makeBatch builds the bytes of a batch. The state machine looks at headers
// and checksums only, so the records are filler.
func makeBatch(s batchSpec) kafkawire.Batch {
	count := max(s.count, 1)
	b := make([]byte, kafkawire.BatchHeaderLen+s.size)
	for i := kafkawire.BatchHeaderLen; i < len(b); i++ {
		b[i] = s.fill
	}
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint32(b[23:], uint32(count-1))
	pid, epoch, seq := s.pid, s.epoch, s.seq
	if pid == 0 {
		pid, epoch, seq = -1, -1, -1
	}
	binary.BigEndian.PutUint64(b[43:], uint64(pid))
	binary.BigEndian.PutUint16(b[51:], uint16(epoch))
	binary.BigEndian.PutUint32(b[53:], uint32(seq))
	binary.BigEndian.PutUint32(b[57:], uint32(count))
	if s.mutate != nil {
		s.mutate(b)
	}
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

var testTP = TP{Topic: 7, Partition: 3}

// machine is a group whose entries a test numbers by itself.
type machine struct {
	t testing.TB
	*Group
}

func newMachine(t testing.TB, id uint32) *machine { return &machine{t, NewGroup(id)} }

// openMachine is a group other than the catalog's with testTP open.
func openMachine(t testing.TB) *machine {
	m := newMachine(t, 1)
	m.one(Control(KindOpen, Open{Level: 1, Topic: testTP.Topic, Name: "t", Total: 4, Partitions: []int32{testTP.Partition}}))
	return m
}

// entry applies commands as the next entry, after elapsed milliseconds.
func (m *machine) entry(elapsed uint32, cmds ...Command) []Result {
	m.t.Helper()
	results, err := m.Apply(m.Index+1, EncodeEntry(elapsed, cmds))
	if err != nil {
		m.t.Fatal(err)
	}
	if len(results) != len(cmds) {
		m.t.Fatalf("%d results for %d commands", len(results), len(cmds))
	}
	return results
}

func (m *machine) one(cmd Command) Result {
	m.t.Helper()
	return m.entry(0, cmd)[0]
}

func (m *machine) send(s batchSpec) Result {
	m.t.Helper()
	return m.one(AppendCommand(testTP, makeBatch(s)))
}

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// TestCompatSeesWhatIsWrong plants mistakes: the table is worth what its checks
// would notice.
func TestCompatSeesWhatIsWrong(t *testing.T) {
	p := produced{partitions: 2, prefix: "r", count: 20, size: 40, codec: "lz4", headers: true, idempotent: true}
	var good []fullRecord
	for part := range 2 {
		for i := part; i < p.count; i += 2 {
			good = append(good, fullRecord{
				partition: int32(part), offset: int64(i / 2), key: fmt.Sprintf("k%d", i%10), id: fmt.Sprintf("r-%d", i),
				sum: sumOf(p.value(i)), headers: theHeaders, codec: codecNumbers["lz4"],
			})
		}
	}
	if err := p.check(good); err != nil {
		t.Fatalf("right records are called wrong: %v", err)
	}
	for name, plant := range map[string]func([]fullRecord) []fullRecord{
		"lost":            func(rs []fullRecord) []fullRecord { return rs[1:] },
		"twice":           func(rs []fullRecord) []fullRecord { return append(rs, rs[3]) },
		"one for another": func(rs []fullRecord) []fullRecord { rs[4] = rs[5]; return rs },
		"foreign":         func(rs []fullRecord) []fullRecord { rs[0].id = "x-0"; return rs },
		"other bytes":     func(rs []fullRecord) []fullRecord { rs[0].sum = sumOf(nil); return rs },
		"other key":       func(rs []fullRecord) []fullRecord { rs[0].key = "k9"; return rs },
		"other codec":     func(rs []fullRecord) []fullRecord { rs[0].codec = 0; return rs },
		"no headers":      func(rs []fullRecord) []fullRecord { rs[0].headers = headersText(nil); return rs },
		"out of order":    func(rs []fullRecord) []fullRecord { rs[0], rs[5] = rs[5], rs[0]; return rs },
	} {
		if p.check(plant(slices.Clone(good))) == nil {
			t.Errorf("%s: not noticed", name)
		}
	}

	cl := &compatClient{name: "planted"}
	var acks, reads []compatEvent
	for _, r := range good {
		acks = append(acks, compatEvent{Event: "acked", Value: r.id, Partition: r.partition, Offset: r.offset})
		reads = append(reads, compatEvent{
			Event: "record", Value: r.id, Partition: r.partition, Offset: r.offset, Key: r.key, Sum: r.sum,
			Headers: [][2]string{{"name", "6bc3a47365"}, {"twice", "31"}, {"twice", "32"}, {"bin", "80ff"}},
		})
	}
	if err := errors.Join(checkAcks(cl, acks, good, p.count), checkConsumed(cl, reads, good)); err != nil {
		t.Fatalf("right events are called wrong: %v", err)
	}
	moved := slices.Clone(acks)
	moved[2].Offset++
	if checkAcks(cl, moved, good, p.count) == nil || checkAcks(cl, acks[1:], good, p.count) == nil || checkAcks(cl, acks, good[1:], p.count) == nil {
		t.Error("acknowledgements: an offset that moved, one that is missing, or a lost record: not noticed")
	}
	changed := slices.Clone(reads)
	changed[2].Sum = ""
	again := append(slices.Clone(reads), reads[0])
	for _, events := range [][]compatEvent{changed, again, reads[1:]} {
		if checkConsumed(cl, events, good) == nil {
			t.Error("reading: other bytes, a record twice, or one that is missing: not noticed")
		}
	}
}

// TestCompatHoldsToItsGaps: a gap excuses its own error alone, and only while
// it is one.
func TestCompatHoldsToItsGaps(t *testing.T) {
	gap := &compatGap{errors: []string{"not served"}}
	other := errors.New("connection refused")
	for _, c := range []struct {
		name string
		gap  *compatGap
		err  error
		ok   bool
	}{
		{"works", nil, nil, true},
		{"fails", nil, other, false},
		{"known", gap, errors.New("it is not served here"), true},
		{"another failure", gap, other, false},
		{"closed", gap, nil, false},
		{"the client cannot", nil, fmt.Errorf("%w: no admin", errClientCannot), true},
	} {
		if got := verdict(c.gap, c.err); (got == nil) != c.ok {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

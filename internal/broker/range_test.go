package broker

import (
	"encoding/binary"
	"errors"
	"testing"
)

// checkRange reads pieces of a log, and finds its start where it begins above
// what was asked for.
func checkRange(t *testing.T, addr, topic string) {
	batches, bases, end := fill(t, addr, topic)
	ctx := testContext(t)
	r := newReader(t, addr)
	read := func(from, to int64, size int32) []int64 {
		t.Helper()
		raw, start, err := r.Range(ctx, topic, 0, from, to, size)
		if err != nil || start != 0 {
			t.Fatalf("range %d..%d: start %d, %v", from, to, start, err)
		}
		var got []int64
		for len(raw) > 0 {
			s, ok, err := nextBatch(raw)
			if err != nil || !ok {
				t.Fatalf("range %d..%d: whole batches wanted: %v", from, to, err)
			}
			got = append(got, s.base)
			raw = raw[s.size:]
		}
		return got
	}
	for from := int64(0); from < end; {
		got := read(from, end, 1<<20)
		if len(got) == 0 || got[0] != from {
			t.Fatalf("range from %d begins at %v", from, got)
		}
		for i, b := range bases {
			if b == got[len(got)-1] {
				from = end
				if i+1 < len(bases) {
					from = bases[i+1]
				}
			}
		}
	}
	if got := read(bases[3]+1, bases[5], 1<<20); len(got) != 2 || got[0] != bases[3] {
		t.Errorf("from inside batch 3 up to batch 5: %v", got)
	}
	if got := read(bases[3], end, 1); len(got) != 1 || got[0] != bases[3] {
		t.Errorf("a range smaller than a batch: %v", got)
	}
	if got := read(bases[3], end, int32(len(batches[3])+len(batches[4]))); len(got) != 2 {
		t.Errorf("a range of two batches: %v", got)
	}
	if got := read(end, end+5, 1<<20); len(got) != 0 {
		t.Errorf("a range at the log end: %v", got)
	}
	a := newAdmin(t, addr)
	if start, err := a.DeleteRecords(ctx, topic, 0, bases[10]); err != nil || start != bases[10] {
		t.Fatalf("delete records: start %d, %v", start, err)
	}
	if _, start, err := r.Range(ctx, topic, 0, 0, end, 1<<20); !errors.Is(err, ErrNoBatch) || start != bases[10] {
		t.Errorf("range below the log start: start %d, %v", start, err)
	}
	raw, start, err := r.Range(ctx, topic, 0, bases[10], end, 1<<20)
	if err != nil || start != bases[10] || int64(binary.BigEndian.Uint64(raw)) != bases[10] {
		t.Errorf("range at the log start: start %d, %v", start, err)
	}
	if _, _, err := r.Range(ctx, topic, 0, end+5, end+9, 1<<20); !errors.Is(err, ErrNoBatch) {
		t.Errorf("range beyond the log end: %v", err)
	}
	if _, err := a.DeleteRecords(ctx, topic, 999, 0); !errors.Is(err, ErrNoTopic) {
		t.Errorf("delete records of no partition: %v", err)
	}
}

func TestRange(t *testing.T) {
	_, addr := newBroker(t)
	createBig(t, addr, "ranged")
	checkRange(t, addr, "ranged")
}

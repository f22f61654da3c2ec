package node

import (
	"testing"

	"lockstep/fsm"
)

// What is kept for proposers that may still ask holds no batches: under load
// somebody always may.
func TestFatesHoldNoBatches(t *testing.T) {
	var f fates
	f.begin()
	batch := make([]byte, 1<<20)
	for i := range uint64(3) {
		f.applied(applied{index: i + 1, term: 1, results: []fsm.Result{{BaseOffset: int64(i), Batch: batch}}})
	}
	for _, a := range f.recent {
		for _, r := range a.results {
			if r.Batch != nil {
				t.Fatalf("the results of entry %d hold a batch of %d bytes", a.index, len(r.Batch))
			}
		}
	}
	known, forget := f.ask(2, 1)
	defer forget()
	if got := <-known; got.err != nil || len(got.results) != 1 || got.results[0].BaseOffset != 1 {
		t.Errorf("entry 2 became %+v", got)
	}
	f.end()
	if len(f.recent) != 0 {
		t.Error("results are kept though nobody may ask")
	}
}

//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// oldReaders is a consumer group that reads a topic in one place, and goes on in
// another: through the proxies when its broker is adopted, and at a broker when
// the proxies are gone.
type oldReaders struct {
	a         *adoptee
	committed map[int32]int64
}

const oldGroup = "readers"

// start reads a little of each partition that holds something, commits, and
// leaves.
func (o *oldReaders) start(ctx context.Context, t *testing.T, bootstrap []string) {
	t.Helper()
	const few = 3
	o.committed = map[int32]int64{}
	cl := o.member(t, bootstrap)
	defer cl.Close()
	missing := 0
	for p, end := range o.a.ends {
		if end > o.a.starts[p] {
			missing++
		}
	}
	counts := map[int32]int{}
	for missing > 0 {
		var read []*kgo.Record
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if counts[r.Partition] < few {
				if counts[r.Partition]++; counts[r.Partition] == few {
					missing--
				}
				read, o.committed[r.Partition] = append(read, r), r.Offset+1
			}
		})
		if ctx.Err() != nil {
			t.Fatalf("a group that reads %s for the first time: %v records: %v", o.a.topic, counts, ctx.Err())
		}
		if err := cl.CommitRecords(ctx, read...); err != nil {
			t.Fatal(err)
		}
	}
}

func (o *oldReaders) member(t *testing.T, bootstrap []string) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(bootstrap), kgo.ConsumerGroup(oldGroup), kgo.ConsumeTopics(o.a.topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(500*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

// goOn joins the group at the addresses and reads to the ends. It fails the test
// unless that gives every record from the committed offset on, once and in its
// place, and none before.
func (o *oldReaders) goOn(ctx context.Context, t *testing.T, bootstrap []string, ends map[int32]int64) {
	t.Helper()
	cl := o.member(t, bootstrap)
	defer cl.Close()
	next := map[int32]int64{}
	missing := 0
	for p, end := range ends {
		next[p] = o.a.starts[p]
		if at, ok := o.committed[p]; ok {
			next[p] = at
		}
		if next[p] < end {
			missing++
		}
	}
	for missing > 0 && ctx.Err() == nil {
		var last []*kgo.Record
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if r.Offset != next[r.Partition] {
				t.Fatalf("the group was to go on at %d of %s/%d and got %d", next[r.Partition], o.a.topic, r.Partition, r.Offset)
			}
			if next[r.Partition]++; next[r.Partition] == ends[r.Partition] {
				missing--
			}
			last = append(last, r)
		})
		if err := cl.CommitRecords(ctx, last...); err != nil {
			t.Fatal(err)
		}
	}
	if missing > 0 {
		t.Fatalf("the group stands at %v of %v: %v", next, ends, ctx.Err())
	}
	for p := range next {
		o.committed[p] = next[p]
	}
}

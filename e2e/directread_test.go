//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// stored is one record as a broker holds it.
type stored struct {
	offset int64
	value  string
}

// dump is a topic's records by partition, in the broker's order.
type dump map[int32][]stored

// readBroker reads every record of a topic from one address, up to the end
// offsets that this address reports when the call begins. Given a broker's own
// port it goes around Lockstep altogether: Kafka alone answers.
func readBroker(ctx context.Context, addr, topic string, partitions int32) (dump, error) {
	ends := make(map[int32]int64, partitions)
	for p := range partitions {
		end, err := endOffset(ctx, addr, topic, p)
		if err != nil {
			return nil, err
		}
		ends[p] = end
	}
	return readTo(ctx, []string{addr}, topic, ends)
}

// readTo reads every record of a topic up to the given end offsets, from
// wherever the bootstrap addresses lead.
func readTo(ctx context.Context, bootstrap []string, topic string, ends map[int32]int64) (dump, error) {
	starts, d, missing := map[int32]kgo.Offset{}, dump{}, 0
	for p, end := range ends {
		d[p] = nil
		if end > 0 {
			starts[p] = kgo.NewOffset().AtStart()
			missing++
		}
	}
	if missing == 0 {
		return d, nil
	}
	cl, err := kgo.NewClient(append(clientOpts(bootstrap),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}),
		kgo.FetchIsolationLevel(kgo.ReadUncommitted()),
		kgo.FetchMaxWait(500*time.Millisecond),
	)...)
	if err != nil {
		return nil, fmt.Errorf("read %s from %s: %w", topic, bootstrap, err)
	}
	defer cl.Close()
	for missing > 0 {
		fetches := cl.PollFetches(ctx)
		for _, e := range fetches.Errors() {
			return nil, fmt.Errorf("read %s/%d from %s with %d records so far: %w", e.Topic, e.Partition, bootstrap, len(d[e.Partition]), e.Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= ends[r.Partition] {
				return
			}
			d[r.Partition] = append(d[r.Partition], stored{offset: r.Offset, value: string(r.Value)})
			if r.Offset == ends[r.Partition]-1 {
				missing--
			}
		})
	}
	return d, nil
}

// records counts the records of all partitions.
func (d dump) records() int {
	n := 0
	for _, p := range d {
		n += len(p)
	}
	return n
}

// bytes counts the bytes of all values.
func (d dump) bytes() (n int64) {
	for _, p := range d {
		for _, r := range p {
			n += int64(len(r.value))
		}
	}
	return n
}

// sameDump returns the first difference between two brokers' records.
func sameDump(a, b dump, partitions int32) error {
	for p := range partitions {
		for i := range min(len(a[p]), len(b[p])) {
			if a[p][i] != b[p][i] {
				return fmt.Errorf("partition %d, record number %d: %+v and %+v", p, i, a[p][i], b[p][i])
			}
		}
		if len(a[p]) != len(b[p]) {
			return fmt.Errorf("partition %d: %d and %d records", p, len(a[p]), len(b[p]))
		}
	}
	return nil
}

// gapless returns an error unless every partition counts 0, 1, 2, ...
func (d dump) gapless() error {
	for p, records := range d {
		for i, r := range records {
			if r.offset != int64(i) {
				return fmt.Errorf("partition %d: record number %d has offset %d", p, i, r.offset)
			}
		}
	}
	return nil
}

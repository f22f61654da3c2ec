package proxy

import (
	"bytes"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// appendBehind writes past the proxy, as the applier does.
func (f *fixture) appendBehind(topic string, batch []byte) {
	f.t.Helper()
	req := produceTo(topic, 0, batch)
	req.SetVersion(9)
	resp, err := roundTrip[*kmsg.ProduceResponse](f.upstream, req)
	if err != nil {
		f.t.Fatal(err)
	}
	if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
		f.t.Fatalf("append to %s: code %d", topic, code)
	}
}

// withFillers writes 300 offsets of filler, a record, and 5 more.
func (f *fixture) withFillers(topic string) {
	f.t.Helper()
	const applier = int64(1)<<61 + 1
	record := kafkawire.Batch(batchOf("kept"))
	f.appendBehind(topic, kafkawire.AppendFiller(nil, 300, applier, 0, 0))
	f.appendBehind(topic, kafkawire.Stamp(nil, record, applier, 0, 300))
	f.appendBehind(topic, kafkawire.AppendFiller(nil, 5, applier, 0, 301))
}

// spans lists offsets and record counts of the batches in records.
func spans(t *testing.T, records []byte) (all [][3]int64) {
	t.Helper()
	for len(records) > 0 {
		b, rest, err := kafkawire.ParseBatch(records)
		if err != nil {
			t.Fatal(err)
		}
		if !b.ChecksumOK() {
			t.Errorf("the batch at %d has a wrong checksum", b.BaseOffset())
		}
		all = append(all, [3]int64{b.BaseOffset(), int64(b.LastOffsetDelta()), int64(b.Count())})
		records = rest
	}
	return all
}

// TestFetchHidesFillers fetches offsets without a record in every version, from
// led partitions alone and together with one that is not.
func TestFetchHidesFillers(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("kept", 1, map[string]string{"cleanup.policy": "compact,delete"})
	f.createTopic("plain", 1, nil)
	f.createTopic("foreign", 1, nil)
	f.cluster.setLeader("foreign", 0, 2)
	f.withFillers("kept")
	f.withFillers("plain")
	c := f.dial()
	want := [][3]int64{{0, 299, 0}, {300, 0, 1}, {301, 4, 0}}
	for version := int16(4); version <= 12; version++ {
		for _, parts := range [][]fetchPart{
			{{name: "kept"}, {name: "plain"}},
			{{name: "foreign"}, {name: "kept"}, {name: "plain"}},
		} {
			resp := do[*kmsg.FetchResponse](c, version, fetchOf(time.Minute, parts...))
			got := fetched(resp)
			if len(got) != len(parts) {
				t.Fatalf("v%d: %d partitions", version, len(got))
			}
			kept, plain := got[partitionKey{"kept", 0}], got[partitionKey{"plain", 0}]
			if kept.ErrorCode != 0 || kept.HighWatermark != 306 {
				t.Errorf("v%d: code %d, high watermark %d", version, kept.ErrorCode, kept.HighWatermark)
			}
			if all := spans(t, kept.RecordBatches); len(all) != 3 || all[0] != want[0] || all[1] != want[1] || all[2] != want[2] {
				t.Errorf("v%d with %d partitions: batches %v, want %v", version, len(parts), all, want)
			}
			if bytes.Contains(kept.RecordBatches, []byte("lockstep.filler")) {
				t.Errorf("v%d: a filler's key is in the answer", version)
			}
			if all := spans(t, plain.RecordBatches); len(all) != 3 || all[0][2] != 300 {
				t.Errorf("v%d: a topic that is not compacted was searched: %v", version, all)
			}
			if code := got[partitionKey{"foreign", 0}].ErrorCode; len(parts) == 3 && code != kerr.NotLeaderForPartition.Code {
				t.Errorf("v%d: foreign partition: code %d", version, code)
			}
		}
	}
}

// TestConsumersPassOverFillers lets a client read to the end.
func TestConsumersPassOverFillers(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("kept", 1, map[string]string{"cleanup.policy": "compact"})
	f.withFillers("kept")
	f.appendBehind("kept", kafkawire.Stamp(nil, kafkawire.Batch(batchOf("last")), int64(1)<<61+1, 0, 306))
	cl, err := kgo.NewClient(kgo.SeedBrokers(f.addr), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"kept": {0: kgo.NewOffset().At(0)}}))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var got []int64
	for len(got) < 2 {
		fetches := cl.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, r.Offset) })
	}
	if len(got) != 2 || got[0] != 300 || got[1] != 306 {
		t.Errorf("consumed offsets %v, want [300 306]", got)
	}
}

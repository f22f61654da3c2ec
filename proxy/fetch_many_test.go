package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestFetchOfHundredsOfPartitions: each gets the broker's bytes; when the leader
// of one has moved, that one is told so and the others get theirs.
func TestFetchOfHundredsOfPartitions(t *testing.T) {
	const topics, each = 3, 120
	f := newFixture(t, nil)
	var parts []fetchPart
	for n := range topics {
		name := fmt.Sprint("orders-", n)
		f.createTopic(name, each, nil)
		for p := range int32(each) {
			parts = append(parts, fetchPart{name: name, partition: p})
		}
	}
	c := f.dial()
	for i, p := range parts {
		value := fmt.Sprint(p.name, "/", p.partition, strings.Repeat("-", i))
		resp := do[*kmsg.ProduceResponse](c, 9, produceTo(p.name, p.partition, batchOf(value, "and another")))
		if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
			t.Fatalf("produce: code %d", code)
		}
	}
	direct := fetchOf(0, parts...)
	direct.SetVersion(11)
	direct.SessionEpoch = -1
	for i := range direct.Topics {
		direct.Topics[i].Partitions[0].CurrentLeaderEpoch = -1
	}
	answer, err := roundTrip[*kmsg.FetchResponse](f.upstream, direct)
	if err != nil {
		t.Fatal(err)
	}
	want := fetched(answer)
	check := func(what string, moved partitionKey) {
		t.Helper()
		got := fetched(do[*kmsg.FetchResponse](c, 12, fetchOf(longPoll, parts...)))
		if len(got) != len(parts) {
			t.Fatalf("%s: %d partitions of %d", what, len(got), len(parts))
		}
		for _, part := range parts {
			key := partitionKey{part.name, part.partition}
			p := got[key]
			if key == moved {
				if p.ErrorCode != kerr.NotLeaderForPartition.Code || len(p.RecordBatches) != 0 {
					t.Errorf("%s: the one that moved: code %d, %d bytes", what, p.ErrorCode, len(p.RecordBatches))
				}
				continue
			}
			if p.ErrorCode != 0 || p.HighWatermark != 2 || len(p.RecordBatches) == 0 || !bytes.Equal(p.RecordBatches, want[key].RecordBatches) {
				t.Errorf("%s: %v: code %d, high watermark %d, %d bytes, want %d", what, key, p.ErrorCode, p.HighWatermark, len(p.RecordBatches), len(want[key].RecordBatches))
			}
		}
	}
	check("all led here", partitionKey{})
	f.cluster.setLeader("orders-1", 77, 2)
	check("one moved", partitionKey{"orders-1", 77})
}

// TestFetchAnswerIsPassedThrough: what the client gets is the broker's answer
// byte for byte, also where encoding it again would give other bytes.
func TestFetchAnswerIsPassedThrough(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	for version := int16(4); version <= 12; version++ {
		// Throttled, null where there are no aborted transactions, and
		// records that no decoder would take.
		sent := kmsg.NewPtrFetchResponse()
		sent.SetVersion(version)
		sent.ThrottleMillis = 17
		ft := kmsg.NewFetchResponseTopic()
		ft.Topic = "orders"
		fp := kmsg.NewFetchResponseTopicPartition()
		fp.HighWatermark, fp.LastStableOffset, fp.LogStartOffset, fp.PreferredReadReplica = 9, 8, 1, -1
		fp.RecordBatches = bytes.Repeat([]byte{0, 0xff, byte(version)}, 1000)
		ft.Partitions = append(ft.Partitions, fp)
		sent.Topics = append(sent.Topics, ft)
		f.broker.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) { return sent, nil, true })
		req := fetchOf(0, fetchPart{name: "orders"})
		got := do[*kmsg.FetchResponse](c, version, req)
		if a, b := got.AppendTo(nil), sent.AppendTo(nil); !bytes.Equal(a, b) {
			t.Errorf("v%d: %d bytes became %d", version, len(b), len(a))
		}
	}
}

// TestPollEndsWithNewData, of whichever of its partitions.
func TestPollEndsWithNewData(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 50, nil)
	var parts []fetchPart
	for p := range int32(50) {
		parts = append(parts, fetchPart{name: "orders", partition: p})
	}
	c := f.dial()
	req := fetchOf(longPoll, parts...)
	corr := c.send(req)
	f.waitUpstream(1)
	f.fill("orders", 33, "a")
	got := fetched(receive[*kmsg.FetchResponse](c, corr, req))
	if p := got[partitionKey{"orders", 33}]; p.ErrorCode != 0 || len(p.RecordBatches) == 0 {
		t.Errorf("code %d, %d bytes", p.ErrorCode, len(p.RecordBatches))
	}
}

package proxy

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestLinearizableReads: who asks for the end of a log is not answered by a
// leader that no majority confirms; records that are there are; and nobody is
// asked without need.
func TestLinearizableReads(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.LinearizableReads = true })
	f.createTopic("led", 1, nil)
	f.createTopic("lost", 1, nil)
	f.fill("led", 0, "a")
	f.fill("lost", 0, "a")
	ids := map[string]uint64{}
	for name, topic := range f.cluster.View().Topics {
		ids[name] = topic.ID
	}
	f.cluster.mu.Lock()
	f.cluster.deposed = map[uint64]bool{ids["lost"]: true}
	f.cluster.mu.Unlock()
	asked := func() (out []TopicPartition) {
		f.cluster.mu.Lock()
		defer f.cluster.mu.Unlock()
		out, f.cluster.asked = f.cluster.asked, nil
		return out
	}
	lost := kerr.NotLeaderForPartition.Code
	c := f.dial()

	for name, tc := range map[string]struct {
		led, lost         int64 // offsets to fetch at
		codeLed, codeLost int16
		asked             int
	}{
		"records":                 {0, 0, 0, 0, 0},
		"the end":                 {1, 1, 0, lost, 2},
		"the end of the lost one": {0, 1, 0, lost, 1},
		"beyond the end":          {0, 5, 0, lost, 1},
	} {
		got := fetched(do[*kmsg.FetchResponse](c, 11, fetchOf(0, fetchPart{name: "led", offset: tc.led}, fetchPart{name: "lost", offset: tc.lost})))
		if a, b := got[partitionKey{"led", 0}].ErrorCode, got[partitionKey{"lost", 0}].ErrorCode; a != tc.codeLed || b != tc.codeLost {
			t.Errorf("fetch of %s: codes %d and %d, want %d and %d", name, a, b, tc.codeLed, tc.codeLost)
		}
		if got := asked(); len(got) != tc.asked {
			t.Errorf("fetch of %s: asked about %v, want %d", name, got, tc.asked)
		}
	}

	for _, tc := range []struct {
		timestamp int64
		code      int16
		asked     int
	}{{-1, lost, 2}, {0, lost, 2}, {-2, 0, 0}} {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		for _, name := range []string{"led", "lost"} {
			rt := kmsg.NewListOffsetsRequestTopic()
			rt.Topic = name
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Timestamp = tc.timestamp
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
		}
		for _, rt := range do[*kmsg.ListOffsetsResponse](c, 5, req).Topics {
			want := int16(0)
			if rt.Topic == "lost" {
				want = tc.code
			}
			if got := rt.Partitions[0].ErrorCode; got != want {
				t.Errorf("offset of %d in %s: code %d, want %d", tc.timestamp, rt.Topic, got, want)
			}
		}
		if got := asked(); len(got) != tc.asked {
			t.Errorf("offset of %d: asked about %v, want %d", tc.timestamp, got, tc.asked)
		}
	}
}

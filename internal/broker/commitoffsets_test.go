package broker

import (
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Offsets are committed for a group that nobody is in, also twice, and not for
// one that has members.
func TestCommitOffsets(t *testing.T) {
	c, addr := newBroker(t)
	a, ctx := newAdmin(t, addr), testContext(t)
	for range 2 {
		missing, err := a.CommitOffsets(ctx, "g", []TopicOffset{{testTopic, 0, 7, "m"}, {testTopic, 2, 9, ""}})
		if err != nil || missing != 0 {
			t.Fatalf("%d missing, %v", missing, err)
		}
	}
	got, err := a.TopicOffsets(ctx, testTopic, 4)
	slices.SortFunc(got, func(a, b GroupOffset) int { return int(a.Partition - b.Partition) })
	if want := []GroupOffset{{"g", 0, 7, "m"}, {"g", 2, 9, ""}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("committed is %v, want %v (%v)", got, want, err)
	}

	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumerGroup("busy"), kgo.ConsumeTopics(testTopic))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for occupied := []string(nil); !slices.Contains(occupied, "busy"); {
		if err := ctx.Err(); err != nil {
			t.Fatal(err)
		}
		if occupied, err = a.OccupiedGroups(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.CommitOffsets(ctx, "busy", []TopicOffset{{testTopic, 0, 7, ""}}); !errors.Is(err, ErrGroupOccupied) {
		t.Errorf("a group with members: %v", err)
	}

	// A partition that is not there is counted; what passes is asked again.
	answers := []int16{kerr.CoordinatorLoadInProgress.Code, kerr.UnknownTopicOrPartition.Code}
	c.ControlKey(int16(kmsg.OffsetCommit), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := kreq.ResponseKind().(*kmsg.OffsetCommitResponse)
		rt, rp := kmsg.NewOffsetCommitResponseTopic(), kmsg.NewOffsetCommitResponseTopicPartition()
		rt.Topic, rp.ErrorCode = testTopic, answers[0]
		answers = append(answers[1:], answers[0])
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	if missing, err := a.CommitOffsets(ctx, "g", []TopicOffset{{testTopic, 0, 7, ""}}); err != nil || missing != 1 {
		t.Errorf("%d missing, %v", missing, err)
	}
}

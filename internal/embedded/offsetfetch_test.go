package embedded

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// fetchOffsets asks for the offset of old/0 of each group, with v8 and above
// in one request.
func fetchOffsets(t *testing.T, cl *kgo.Client, version int16, groups ...string) map[string]int64 {
	t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Version = version
	if version <= 7 {
		req.Group = groups[0]
		rt := kmsg.NewOffsetFetchRequestTopic()
		rt.Topic, rt.Partitions = "old", []int32{0}
		req.Topics = append(req.Topics, rt)
	}
	for _, g := range groups {
		rg := kmsg.NewOffsetFetchRequestGroup()
		rg.Group = g
		rt := kmsg.NewOffsetFetchRequestGroupTopic()
		rt.Topic, rt.Partitions = "old", []int32{0}
		rg.Topics = append(rg.Topics, rt)
		if version >= 8 {
			req.Groups = append(req.Groups, rg)
		}
	}
	kresp, err := cl.Broker(0).Request(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	resp := kresp.(*kmsg.OffsetFetchResponse)
	offsets := make(map[string]int64)
	if resp.ErrorCode != 0 {
		t.Fatalf("v%d: error code %d", resp.Version, resp.ErrorCode)
	}
	for _, rt := range resp.Topics {
		offsets[groups[0]] = rt.Partitions[0].Offset
	}
	for _, rg := range resp.Groups {
		if rg.ErrorCode != 0 {
			t.Fatalf("v%d group %s: error code %d", resp.Version, rg.Group, rg.ErrorCode)
		}
		offsets[rg.Group] = rg.Topics[0].Partitions[0].Offset
	}
	return offsets
}

// An unknown group has nothing committed, and that is no error; a known one is
// answered by the broker.
func TestOffsetFetchOfUnknownGroup(t *testing.T) {
	addr := runBroker(t)
	createTopic(t, addr, "old")
	for _, version := range []int16{7, 8} {
		cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.MaxVersions(offsetFetchAt(version)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		for range 2 {
			if got := fetchOffsets(t, cl, version, "unknown"); got["unknown"] != -1 || len(got) != 1 {
				t.Fatalf("v%d unknown group: %v", version, got)
			}
		}
		commitOffset(t, cl, "known", 42)
		if got := fetchOffsets(t, cl, version, "known"); got["known"] != 42 {
			t.Fatalf("v%d known group: %v", version, got)
		}
	}
}

func commitOffset(t *testing.T, cl *kgo.Client, group string, offset int64) {
	t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = group, -1
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic = "old"
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Offset = offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	kresp, err := cl.Broker(0).Request(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	if code := kresp.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatalf("commit: error code %d", code)
	}
}

func offsetFetchAt(version int16) *kversion.Versions {
	v := kversion.V4_0_0()
	v.SetMaxKeyVersion(int16(kmsg.OffsetFetch), version)
	return v
}

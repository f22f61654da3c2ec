package kafkawire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func randomFetch(rng *rand.Rand, version int16) *kmsg.FetchRequest {
	req := randomRequest(rng, keyFetch, version).(*kmsg.FetchRequest)
	req.ReplicaID = -1
	return req
}

// TestPatchFetchRequest patches random requests of every version and compares
// with kmsg doing the same by decoding.
func TestPatchFetchRequest(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for version := int16(fetchMin); version <= fetchMax; version++ {
		for range 100 {
			req := randomFetch(rng, version)
			body := req.AppendTo(nil)
			var seen, want []string
			info, err := PatchFetchRequest(version, body, func(p FetchPartition) error {
				seen = append(seen, fmt.Sprintf("%s %d %d %d", p.Topic, p.Partition, p.FetchOffset, p.MaxBytes))
				return nil
			})
			if err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			session, epoch, rack, forgotten := req.SessionID, req.SessionEpoch, req.Rack, 0
			if version < 7 {
				session, epoch = 0, -1
			}
			if version < 11 {
				rack = ""
			}
			req.SessionID, req.SessionEpoch = 0, -1
			for i := range req.Topics {
				for j := range req.Topics[i].Partitions {
					p := &req.Topics[i].Partitions[j]
					p.CurrentLeaderEpoch, p.LastFetchedEpoch = -1, -1
					want = append(want, fmt.Sprintf("%s %d %d %d", req.Topics[i].Topic, p.Partition, p.FetchOffset, p.PartitionMaxBytes))
				}
			}
			for _, f := range req.ForgottenTopics {
				if version >= 7 {
					forgotten += len(f.Partitions)
				}
			}
			if !bytes.Equal(body, req.AppendTo(nil)) {
				t.Fatalf("version %d: patched\n%x, want\n%x", version, body, req.AppendTo(nil))
			}
			if !slices.Equal(seen, want) {
				t.Errorf("version %d: visited %v, want %v", version, seen, want)
			}
			got := FetchRequest{req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel, session, epoch, forgotten, []byte(rack), info.Tagged}
			if info.Tagged && version < 12 {
				t.Errorf("version %d has no tagged fields", version)
			}
			if info.Rack == nil {
				info.Rack = []byte{}
			}
			if !reflect.DeepEqual(info, got) {
				t.Errorf("version %d: got %+v, want %+v", version, info, got)
			}
		}
	}
}

func TestPatchFetchRequestRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, version := range []int16{-1, 3, 13, 1<<15 - 1} {
		if _, err := PatchFetchRequest(version, nil, nil); !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	for version := int16(fetchMin); version <= fetchMax; version++ {
		req := randomFetch(rng, version)
		for _, replica := range []int32{0, 1, -2} {
			req.ReplicaID = replica
			if _, err := PatchFetchRequest(version, req.AppendTo(nil), nil); !errors.Is(err, ErrFollowerFetch) {
				t.Errorf("version %d, replica %d: %v", version, replica, err)
			}
		}
		req.ReplicaID = -1
		body := req.AppendTo(nil)
		for cut := range body {
			if _, err := PatchFetchRequest(version, body[:cut:cut], nil); !errors.Is(err, ErrMalformed) {
				t.Fatalf("version %d cut at %d of %d: %v", version, cut, len(body), err)
			}
		}
		if _, err := PatchFetchRequest(version, append(body, 0), nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("version %d with a byte after the end: %v", version, err)
		}
	}
	// The array of topics is null, -2 and above what follows.
	head := make([]byte, 17)
	copy(head, []byte{0xff, 0xff, 0xff, 0xff})
	for _, n := range []string{"\xff\xff\xff\xff", "\xff\xff\xff\xfe", "\x7f\xff\xff\xff"} {
		if _, err := PatchFetchRequest(4, append(slices.Clone(head), n...), nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x topics: %v", n, err)
		}
	}
}

var errVisit = errors.New("visitor's own")

func TestPatchFetchRequestVisitError(t *testing.T) {
	req := kmsg.NewPtrFetchRequest()
	req.Version = 11
	req.ReplicaID = -1
	req.Topics = []kmsg.FetchRequestTopic{{Topic: "t", Partitions: make([]kmsg.FetchRequestTopicPartition, 3)}}
	calls := 0
	_, err := PatchFetchRequest(11, req.AppendTo(nil), func(FetchPartition) error { calls++; return errVisit })
	if !errors.Is(err, errVisit) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func randomFetchResponse(rng *rand.Rand, version int16) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	fillRandom(rng, reflect.ValueOf(resp).Elem())
	resp.Version = version
	return resp
}

// TestWalkFetchResponse walks random responses of every version, changes what
// can be changed and compares with kmsg doing the same.
func TestWalkFetchResponse(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for version := int16(fetchMin); version <= fetchMax; version++ {
		for range 100 {
			resp := randomFetchResponse(rng, version)
			body := resp.AppendTo(nil)
			// What this version carries, as it reads back.
			want := kmsg.NewPtrFetchResponse()
			want.Version = version
			if err := want.ReadFrom(bytes.Clone(body)); err != nil {
				t.Fatal(err)
			}
			var parts []*kmsg.FetchResponseTopicPartition
			var topics []string
			for i := range want.Topics {
				for j := range want.Topics[i].Partitions {
					parts = append(parts, &want.Topics[i].Partitions[j])
					topics = append(topics, want.Topics[i].Topic)
				}
			}
			next := 0
			info, err := WalkFetchResponse(version, body, func(p *FetchResponsePartition) error {
				w := parts[next]
				if string(p.Topic) != topics[next] || p.Partition != w.Partition || p.ErrorCode() != w.ErrorCode ||
					p.HighWatermark() != w.HighWatermark || p.LastStableOffset() != w.LastStableOffset ||
					p.LogStartOffset() != w.LogStartOffset || p.PreferredReadReplica() != w.PreferredReadReplica ||
					!bytes.Equal(p.Records, w.RecordBatches) || (p.Records == nil) != (w.RecordBatches == nil) {
					t.Errorf("version %d: partition %d: got %+v, want %+v", version, next, p, w)
				}
				p.SetErrorCode(78)
				p.SetHighWatermark(1000)
				p.SetLastStableOffset(1001)
				p.SetLogStartOffset(1002)
				p.SetPreferredReadReplica(3)
				w.ErrorCode, w.HighWatermark, w.LastStableOffset = 78, 1000, 1001
				w.LogStartOffset, w.PreferredReadReplica = 1002, 3 // left out where the version has none
				next++
				return nil
			})
			if err != nil || next != len(parts) {
				t.Fatalf("version %d: %d of %d partitions, %v", version, next, len(parts), err)
			}
			if info.ThrottleMs != want.ThrottleMillis || info.ErrorCode != want.ErrorCode || info.SessionID != want.SessionID {
				t.Errorf("version %d: got %+v", version, info)
			}
			if !bytes.Equal(body, want.AppendTo(nil)) {
				t.Errorf("version %d: patched\n%x, want\n%x", version, body, want.AppendTo(nil))
			}
		}
	}
}

// TestWalkFetchResponseTagged puts a tagged field in each place that has them.
func TestWalkFetchResponseTagged(t *testing.T) {
	build := func(edit func(*kmsg.FetchResponse, *kmsg.FetchResponseTopic, *kmsg.FetchResponseTopicPartition)) []byte {
		resp := kmsg.NewPtrFetchResponse()
		resp.Version = 12
		resp.Topics = []kmsg.FetchResponseTopic{kmsg.NewFetchResponseTopic()}
		resp.Topics[0].Partitions = []kmsg.FetchResponseTopicPartition{kmsg.NewFetchResponseTopicPartition()}
		edit(resp, &resp.Topics[0], &resp.Topics[0].Partitions[0])
		return resp.AppendTo(nil)
	}
	for name, body := range map[string][]byte{
		"none": build(func(*kmsg.FetchResponse, *kmsg.FetchResponseTopic, *kmsg.FetchResponseTopicPartition) {}),
		"current leader": build(func(_ *kmsg.FetchResponse, _ *kmsg.FetchResponseTopic, p *kmsg.FetchResponseTopicPartition) {
			p.CurrentLeader.LeaderID = 1
		}),
		"diverging epoch": build(func(_ *kmsg.FetchResponse, _ *kmsg.FetchResponseTopic, p *kmsg.FetchResponseTopicPartition) {
			p.DivergingEpoch.Epoch = 1
		}),
		"topic": build(func(_ *kmsg.FetchResponse, x *kmsg.FetchResponseTopic, _ *kmsg.FetchResponseTopicPartition) {
			x.UnknownTags.Set(9, nil)
		}),
		"response": build(func(r *kmsg.FetchResponse, _ *kmsg.FetchResponseTopic, _ *kmsg.FetchResponseTopicPartition) {
			r.UnknownTags.Set(9, nil)
		}),
	} {
		info, err := WalkFetchResponse(12, body, func(*FetchResponsePartition) error { return nil })
		if err != nil || info.Tagged != (name != "none") {
			t.Errorf("%s: tagged is %t, %v", name, info.Tagged, err)
		}
	}
}

func TestWalkFetchResponseRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	visit := func(p *FetchResponsePartition) error { return nil }
	for _, version := range []int16{-1, 3, 13} {
		if _, err := WalkFetchResponse(version, nil, visit); !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	for version := int16(fetchMin); version <= fetchMax; version++ {
		body := randomFetchResponse(rng, version).AppendTo(nil)
		for cut := range body {
			if _, err := WalkFetchResponse(version, body[:cut:cut], visit); !errors.Is(err, ErrMalformed) {
				t.Fatalf("version %d cut at %d of %d: %v", version, cut, len(body), err)
			}
		}
		if _, err := WalkFetchResponse(version, append(body, 0), visit); !errors.Is(err, ErrMalformed) {
			t.Errorf("version %d with a byte after the end: %v", version, err)
		}
	}
}

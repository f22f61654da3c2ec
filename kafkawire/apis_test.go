package kafkawire

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestServed compares the allow-list with kmsg and with the versions that
// first carry a topic id or the second transaction protocol.
func TestServed(t *testing.T) {
	firstForbidden := map[kmsg.Key]int16{
		kmsg.Produce: 12, kmsg.Fetch: 13, kmsg.Metadata: 10, kmsg.OffsetCommit: 10, kmsg.OffsetFetch: 10,
		kmsg.CreateTopics: 7, kmsg.DeleteTopics: 6, kmsg.InitProducerID: 5, kmsg.FindCoordinator: 6,
	}
	apis := Served()
	if !slices.IsSortedFunc(apis, func(a, b API) int { return int(a.Key) - int(b.Key) }) {
		t.Error("not ordered by key")
	}
	for _, api := range apis {
		req := kmsg.RequestForKey(api.Key)
		if req == nil || api.Min < 0 || api.Min > api.Max || api.Max > req.MaxVersion() {
			t.Errorf("%+v is outside what kmsg knows", api)
			continue
		}
		if limit, ok := firstForbidden[kmsg.Key(api.Key)]; ok && api.Max >= limit {
			t.Errorf("%s is served up to %d, %d must not be", api.Name, api.Max, limit)
		}
		if api.Name == "" || api.Name == "Unknown" || api.Kind.String() == "unknown" || (api.Alone && api.Kind != Ours) {
			t.Errorf("%+v", api)
		}
		got, ok := Lookup(api.Key)
		if !ok || got != api {
			t.Errorf("lookup %s: %+v", api.Name, got)
		}
		if got.Accepts(api.Min-1) || !got.Accepts(api.Min) || !got.Accepts(api.Max) || got.Accepts(api.Max+1) {
			t.Errorf("%s accepts the wrong versions", api.Name)
		}
	}
	for _, key := range []kmsg.Key{
		kmsg.LeaderAndISR, kmsg.AddPartitionsToTxn, kmsg.EndTxn, kmsg.WriteTxnMarkers, kmsg.AlterPartitionAssignments,
		kmsg.ElectLeaders, kmsg.ConsumerGroupHeartbeat, kmsg.DescribeTopicPartitions, kmsg.ShareFetch, -1, 999,
	} {
		if api, ok := Lookup(int16(key)); ok {
			t.Errorf("%s is served", api.Name)
		}
	}
	apis[0].Max = 99
	if api, _ := Lookup(apis[0].Key); api.Max == 99 {
		t.Error("the caller can change the allow-list")
	}
}

// TestServedVersionsCarryNoTopicID encodes every message with topic ids set
// and looks for them, in the newest version served and in the newest of all.
func TestServedVersionsCarryNoTopicID(t *testing.T) {
	id := [16]byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	found := 0
	for _, api := range Served() {
		for _, message := range []interface {
			MaxVersion() int16
			SetVersion(int16)
			AppendTo([]byte) []byte
		}{kmsg.RequestForKey(api.Key), kmsg.ResponseForKey(api.Key)} {
			setTopicIDs(message, id)
			message.SetVersion(api.Max)
			if bytes.Contains(message.AppendTo(nil), id[:]) {
				t.Errorf("%T of version %d carries a topic id", message, api.Max)
			}
			message.SetVersion(message.MaxVersion())
			if bytes.Contains(message.AppendTo(nil), id[:]) {
				found++
			}
		}
	}
	if found == 0 {
		t.Error("no message carries a topic id in its newest version: the search is blind")
	}
}

func row(key kmsg.Key, min, max int16) kmsg.ApiVersionsResponseApiKey {
	return kmsg.ApiVersionsResponseApiKey{ApiKey: int16(key), MinVersion: min, MaxVersion: max}
}

func TestIntersect(t *testing.T) {
	one := []kmsg.ApiVersionsResponseApiKey{
		row(kmsg.Produce, 0, 11), row(kmsg.Fetch, 0, 17), row(kmsg.ListOffsets, 3, 7),
		row(kmsg.Heartbeat, 5, 6), row(kmsg.Metadata, 12, 13), row(kmsg.JoinGroup, 0, 9),
	}
	two := []kmsg.ApiVersionsResponseApiKey{
		row(kmsg.Produce, 3, 9), row(kmsg.Fetch, 6, 12), row(kmsg.ListOffsets, 0, 5), row(kmsg.Heartbeat, 0, 4),
	}
	got := map[int16]API{}
	for _, api := range Intersect(Served(), one, two) {
		got[api.Key] = api
	}
	for _, want := range []struct {
		key      kmsg.Key
		min, max int16
	}{{kmsg.Produce, 3, 9}, {kmsg.Fetch, 6, 12}, {kmsg.ListOffsets, 3, 5}, {kmsg.Metadata, 0, 9}} {
		if api := got[int16(want.key)]; api.Min != want.min || api.Max != want.max {
			t.Errorf("%s: got %+v, want %d to %d", want.key.Name(), api, want.min, want.max)
		}
	}
	for _, key := range []kmsg.Key{kmsg.Heartbeat, kmsg.JoinGroup, kmsg.DescribeConfigs, kmsg.SASLAuthenticate} {
		if api, ok := got[int16(key)]; ok {
			t.Errorf("%s is offered though a broker lacks it: %+v", key.Name(), api)
		}
	}
	for _, key := range []kmsg.Key{
		kmsg.ApiVersions, kmsg.Metadata, kmsg.InitProducerID, kmsg.FindCoordinator, kmsg.DescribeCluster,
		kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.CreatePartitions, kmsg.OffsetForLeaderEpoch, kmsg.DeleteRecords,
	} {
		if _, ok := got[int16(key)]; !ok {
			t.Errorf("%s is not offered though the proxy answers it alone", key.Name())
		}
	}
	if !slices.Equal(Intersect(Served()), Served()) {
		t.Error("without brokers the list is not the allow-list")
	}
	if n := len(Intersect(Served(), nil)); n != 10 {
		t.Errorf("with a broker that offers nothing %d APIs are left, want 10", n)
	}
}

func TestApiVersionsResponse(t *testing.T) {
	for v := int16(0); v <= 4; v++ {
		wire := AppendResponse(nil, keyApiVersions, v, 3, ApiVersionsResponse(v, Served()))
		corr, body, err := ParseResponseHeader(keyApiVersions, v, wire[4:])
		if err != nil || corr != 3 {
			t.Fatal(corr, err)
		}
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.SetVersion(v)
		if err := resp.ReadFrom(body); err != nil {
			t.Fatalf("version %d: %v", v, err)
		}
		if len(resp.SupportedFeatures) != 0 || len(resp.FinalizedFeatures) != 0 || resp.FinalizedFeaturesEpoch != -1 || resp.ErrorCode != 0 {
			t.Errorf("version %d: %+v", v, resp)
		}
		if len(resp.ApiKeys) != len(Served()) {
			t.Fatalf("version %d: %d APIs", v, len(resp.ApiKeys))
		}
		for i, api := range Served() {
			want := row(kmsg.Key(api.Key), api.Min, api.Max)
			if api.Key == keyProduce {
				want.MinVersion = 0
			}
			got := resp.ApiKeys[i]
			if got.ApiKey != want.ApiKey || got.MinVersion != want.MinVersion || got.MaxVersion != want.MaxVersion {
				t.Errorf("version %d: got %+v, want %+v", v, got, want)
			}
		}
	}
}

// TestUnsupportedApiVersionsResponse spells the answer out in bytes (KIP-511).
func TestUnsupportedApiVersionsResponse(t *testing.T) {
	got := AppendResponse(nil, keyApiVersions, 0, 5, UnsupportedApiVersionsResponse())
	want := []byte{
		0, 0, 0, 16,
		0, 0, 0, 5, // correlation id
		0, 35, // UNSUPPORTED_VERSION
		0, 0, 0, 1,
		0, 18, 0, 0, 0, 4,
	}
	if !bytes.Equal(got, want) || binary.BigEndian.Uint32(got) != uint32(len(got)-4) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

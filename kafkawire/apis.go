package kafkawire

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Kind says who answers an API.
type Kind int8

const (
	// Ours is answered by the proxy, alone or with the help of its broker.
	Ours Kind = iota + 1
	// Upstream is passed to the local broker on the client's own connection.
	Upstream
	// Coordinator concerns a consumer group and is sent to the broker of the
	// node that coordinates it.
	Coordinator
)

// String returns the kind in lower case.
func (k Kind) String() string {
	switch k {
	case Ours:
		return "ours"
	case Upstream:
		return "upstream"
	case Coordinator:
		return "coordinator"
	}
	return "unknown"
}

// API is one row of the allow-list: requests of this key are accepted from Min
// to Max, both included. Anything not in the list is refused with error 35.
type API struct {
	Key, Min, Max int16
	Name          string
	Kind          Kind
	// Alone is set when the proxy needs no broker to answer, so that what the
	// brokers offer of this API is of no account.
	Alone bool
}

// keyProduce and the other keys are named here because kmsg has constants only
// for the type Key, which no message method takes.
const (
	keyProduce     = int16(kmsg.Produce)
	keyFetch       = int16(kmsg.Fetch)
	keyApiVersions = int16(kmsg.ApiVersions)
)

// advertisedProduceMin is the lowest Produce version advertised. Versions 0 to 2 are
// refused, but librdkafka before 2.8 switches compression off when it does not
// see 0 (KAFKA-18659); Kafka 4 does the same.
const advertisedProduceMin = 0

// served is the allow-list, by key. The upper bounds keep out the versions
// that carry topic ids, which are random on every broker (Produce 13, Fetch
// 13, Metadata 10, OffsetCommit and OffsetFetch 10, CreateTopics 7,
// DeleteTopics 6), and the second transaction protocol (KIP-890: Produce 12,
// InitProducerId 5).
var served = []API{
	{Key: keyProduce, Min: 3, Max: 11, Kind: Ours},
	{Key: keyFetch, Min: 4, Max: 12, Kind: Ours},
	{Key: int16(kmsg.ListOffsets), Min: 1, Max: 9, Kind: Ours},
	{Key: int16(kmsg.Metadata), Min: 0, Max: 9, Kind: Ours, Alone: true},
	{Key: int16(kmsg.OffsetCommit), Min: 2, Max: 9, Kind: Coordinator},
	{Key: int16(kmsg.OffsetFetch), Min: 1, Max: 9, Kind: Coordinator},
	{Key: int16(kmsg.FindCoordinator), Min: 0, Max: 5, Kind: Ours, Alone: true},
	{Key: int16(kmsg.JoinGroup), Min: 0, Max: 9, Kind: Coordinator},
	{Key: int16(kmsg.Heartbeat), Min: 0, Max: 4, Kind: Coordinator},
	{Key: int16(kmsg.LeaveGroup), Min: 0, Max: 5, Kind: Coordinator},
	{Key: int16(kmsg.SyncGroup), Min: 0, Max: 5, Kind: Coordinator},
	{Key: int16(kmsg.DescribeGroups), Min: 0, Max: 5, Kind: Coordinator},
	{Key: int16(kmsg.ListGroups), Min: 0, Max: 5, Kind: Coordinator},
	{Key: int16(kmsg.SASLHandshake), Min: 0, Max: 1, Kind: Upstream},
	{Key: keyApiVersions, Min: 0, Max: 4, Kind: Ours, Alone: true},
	{Key: int16(kmsg.CreateTopics), Min: 2, Max: 6, Kind: Ours, Alone: true},
	{Key: int16(kmsg.DeleteTopics), Min: 1, Max: 5, Kind: Ours, Alone: true},
	{Key: int16(kmsg.DeleteRecords), Min: 0, Max: 2, Kind: Ours, Alone: true},
	{Key: int16(kmsg.InitProducerID), Min: 0, Max: 4, Kind: Ours, Alone: true},
	{Key: int16(kmsg.OffsetForLeaderEpoch), Min: 2, Max: 4, Kind: Ours, Alone: true},
	{Key: int16(kmsg.DescribeACLs), Min: 1, Max: 3, Kind: Upstream},
	{Key: int16(kmsg.CreateACLs), Min: 1, Max: 3, Kind: Ours},
	{Key: int16(kmsg.DeleteACLs), Min: 1, Max: 3, Kind: Ours},
	{Key: int16(kmsg.DescribeConfigs), Min: 1, Max: 4, Kind: Ours},
	{Key: int16(kmsg.AlterConfigs), Min: 0, Max: 2, Kind: Ours},
	{Key: int16(kmsg.SASLAuthenticate), Min: 0, Max: 2, Kind: Upstream},
	{Key: int16(kmsg.CreatePartitions), Min: 0, Max: 3, Kind: Ours, Alone: true},
	{Key: int16(kmsg.DeleteGroups), Min: 0, Max: 2, Kind: Coordinator},
	{Key: int16(kmsg.IncrementalAlterConfigs), Min: 0, Max: 1, Kind: Ours},
	{Key: int16(kmsg.OffsetDelete), Min: 0, Max: 0, Kind: Coordinator},
	{Key: int16(kmsg.DescribeClientQuotas), Min: 0, Max: 1, Kind: Upstream},
	{Key: int16(kmsg.AlterClientQuotas), Min: 0, Max: 1, Kind: Ours},
	{Key: int16(kmsg.DescribeCluster), Min: 0, Max: 1, Kind: Ours, Alone: true},
}

func init() {
	for i := range served {
		served[i].Name = kmsg.NameForKey(served[i].Key)
	}
}

// Served returns the allow-list, ordered by key. The slice is the caller's.
func Served() []API { return slices.Clone(served) }

// Lookup returns the row of the allow-list for key, and false if requests of
// this key are refused.
func Lookup(key int16) (API, bool) {
	return find(served, key)
}

func find(apis []API, key int16) (API, bool) {
	for _, api := range apis {
		if api.Key == key {
			return api, true
		}
	}
	return API{}, false
}

// Accepts reports whether a request of this version is served.
func (a API) Accepts(version int16) bool { return version >= a.Min && version <= a.Max }

// Intersect narrows served to what every broker offers, so that a client may
// be sent to any node. An API that a broker lacks, or whose ranges do not
// meet, is left out, except those the proxy answers alone.
func Intersect(served []API, brokers ...[]kmsg.ApiVersionsResponseApiKey) []API {
	offered := make([]API, 0, len(served))
	for _, api := range served {
		ok := true
		for _, broker := range brokers {
			if api.Alone {
				break
			}
			api, ok = narrow(api, broker)
			if !ok {
				break
			}
		}
		if ok {
			offered = append(offered, api)
		}
	}
	return offered
}

func narrow(api API, broker []kmsg.ApiVersionsResponseApiKey) (API, bool) {
	for _, theirs := range broker {
		if theirs.ApiKey == api.Key {
			api.Min, api.Max = max(api.Min, theirs.MinVersion), min(api.Max, theirs.MaxVersion)
			return api, api.Min <= api.Max
		}
	}
	return api, false
}

// ApiVersionsResponse builds the answer to an ApiVersions request of a served
// version. It names no features, finalized or supported: transaction.version
// would lead clients into the second transaction protocol.
func ApiVersionsResponse(version int16, offered []API) *kmsg.ApiVersionsResponse {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(version)
	resp.ApiKeys = make([]kmsg.ApiVersionsResponseApiKey, 0, len(offered))
	for _, api := range offered {
		resp.ApiKeys = append(resp.ApiKeys, advertise(api))
	}
	return resp
}

func advertise(api API) kmsg.ApiVersionsResponseApiKey {
	row := kmsg.NewApiVersionsResponseApiKey()
	row.ApiKey, row.MinVersion, row.MaxVersion = api.Key, api.Min, api.Max
	if api.Key == keyProduce {
		row.MinVersion = advertisedProduceMin
	}
	return row
}

// UnsupportedApiVersionsResponse builds the answer to an ApiVersions request
// of a version that is not served: a body of version 0 with error 35 and the
// one range the client needs to ask again (KIP-511). Send it as version 0.
func UnsupportedApiVersionsResponse() *kmsg.ApiVersionsResponse {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(0)
	resp.ErrorCode = kerr.UnsupportedVersion.Code
	if api, ok := Lookup(keyApiVersions); ok {
		resp.ApiKeys = append(resp.ApiKeys, advertise(api))
	}
	return resp
}

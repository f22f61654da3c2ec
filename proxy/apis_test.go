package proxy

import (
	"bytes"
	"slices"
	"testing"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

type apiRow = kafkawire.API

func servedRows() []apiRow { return kafkawire.Served() }

func utf16Of(s string) []uint16 { return utf16.Encode([]rune(s)) }

// TestEveryServedAPIHasAHandler, and no handler is out of reach.
func TestEveryServedAPIHasAHandler(t *testing.T) {
	for _, api := range kafkawire.Served() {
		if handlers[api.Key] == nil {
			t.Errorf("%s has no handler", api.Name)
		}
	}
	if len(handlers) != len(kafkawire.Served()) {
		t.Errorf("%d handlers for %d APIs", len(handlers), len(kafkawire.Served()))
	}
}

// TestAPIVersions in every version, and above.
func TestAPIVersions(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for version := int16(0); version <= 4; version++ {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "test", "1"
		resp := do[*kmsg.ApiVersionsResponse](c, version, req)
		if resp.ErrorCode != 0 || len(resp.ApiKeys) != len(kafkawire.Served()) || len(resp.FinalizedFeatures) != 0 || len(resp.SupportedFeatures) != 0 {
			t.Errorf("v%d: code %d, %d keys, %d features", version, resp.ErrorCode, len(resp.ApiKeys), len(resp.FinalizedFeatures))
		}
	}
	// A version that nobody knows yet, with a body that cannot be parsed.
	c.write([]byte{0, 0, 0, 15, 0, 18, 0, 99, 0, 0, 0, 42, 1, 2, 3, 4, 5, 6, 7})
	frame, err := kafkawire.ReadResponseFrame(c.nc, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	resp := kmsg.NewPtrApiVersionsResponse()
	if err := resp.ReadFrom(frame[4:]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(frame[:4], []byte{0, 0, 0, 42}) || resp.ErrorCode != kerr.UnsupportedVersion.Code || len(resp.ApiKeys) != 1 || resp.ApiKeys[0].ApiKey != 18 || resp.ApiKeys[0].MaxVersion != 4 {
		t.Errorf("version 99: correlation id %v, %+v", frame[:4], resp)
	}
	c.alive()
}

// TestAPIVersionsFollowTheBrokers as they change, and fall back to our own.
func TestAPIVersionsFollowTheBrokers(t *testing.T) {
	offer := make(chan []kmsg.ApiVersionsResponseApiKey, 1)
	f := newFixture(t, func(c *Config) {
		c.BrokerVersions = func() []kmsg.ApiVersionsResponseApiKey { return <-offer }
	})
	c := f.dial()
	ask := func(rows []kmsg.ApiVersionsResponseApiKey, key int16) (int16, bool) {
		offer <- rows
		versions := kmsg.NewPtrApiVersionsRequest()
		versions.ClientSoftwareName, versions.ClientSoftwareVersion = "test", "1"
		resp := do[*kmsg.ApiVersionsResponse](c, 3, versions)
		i := slices.IndexFunc(resp.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool { return k.ApiKey == key })
		if i < 0 {
			return 0, false
		}
		return resp.ApiKeys[i].MaxVersion, true
	}
	fetch := int16(kmsg.Fetch)
	if most, ok := ask(nil, fetch); !ok || most != 12 {
		t.Errorf("no broker known: Fetch up to %d, %t", most, ok)
	}
	older := []kmsg.ApiVersionsResponseApiKey{{ApiKey: fetch, MinVersion: 0, MaxVersion: 10}}
	if most, ok := ask(older, fetch); !ok || most != 10 {
		t.Errorf("older broker: Fetch up to %d, %t", most, ok)
	}
	if most, ok := ask(older, int16(kmsg.ListGroups)); ok {
		t.Errorf("a broker without ListGroups: offered up to %d", most)
	}
	if most, ok := ask(older, int16(kmsg.Metadata)); !ok || most != 9 {
		t.Errorf("Metadata needs no broker: up to %d, %t", most, ok)
	}
}

func TestDescribeCluster(t *testing.T) {
	f := newFixture(t, noAuthorizer)
	c := f.dial()
	for version := int16(0); version <= 1; version++ {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.IncludeClusterAuthorizedOperations = version == 1
		req.EndpointType = 1
		resp := do[*kmsg.DescribeClusterResponse](c, version, req)
		wantOps := int32(noOperations)
		if version == 1 {
			wantOps = 8096
		}
		if resp.ErrorCode != 0 || resp.ClusterID != "test-cluster" || resp.ControllerID != 1 || len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 1 || resp.ClusterAuthorizedOperations != wantOps {
			t.Errorf("v%d: %+v", version, resp)
		}
	}
	for kind, code := range map[int8]int16{2: kerr.MismatchedEndpointType.Code, 9: kerr.UnsupportedEndpointType.Code} {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.EndpointType = kind
		if got := do[*kmsg.DescribeClusterResponse](c, 1, req).ErrorCode; got != code {
			t.Errorf("endpoint type %d: code %d, want %d", kind, got, code)
		}
	}
}

func TestInitProducerID(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	seen := map[int64]bool{}
	for version := int16(0); version <= 4; version++ {
		resp := do[*kmsg.InitProducerIDResponse](c, version, kmsg.NewPtrInitProducerIDRequest())
		if resp.ErrorCode != 0 || resp.ProducerID <= 1<<40 || resp.ProducerEpoch != 0 || seen[resp.ProducerID] {
			t.Errorf("v%d: %+v", version, resp)
		}
		seen[resp.ProducerID] = true
		tx := kmsg.NewPtrInitProducerIDRequest()
		tx.TransactionalID = kmsg.StringPtr("tx")
		if resp := do[*kmsg.InitProducerIDResponse](c, version, tx); resp.ErrorCode != kerr.TransactionalIDAuthorizationFailed.Code || resp.ProducerID != -1 {
			t.Errorf("v%d transactional: %+v", version, resp)
		}
		tx.TransactionalID = kmsg.StringPtr("")
		if resp := do[*kmsg.InitProducerIDResponse](c, version, tx); resp.ErrorCode != kerr.InvalidRequest.Code || resp.ProducerID != -1 {
			t.Errorf("v%d, transactional without a name: %+v", version, resp)
		}
		if version < 3 {
			continue
		}
		for _, half := range []struct {
			id    int64
			epoch int16
		}{{5, -1}, {-1, 0}} {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.ProducerID, req.ProducerEpoch = half.id, half.epoch
			if resp := do[*kmsg.InitProducerIDResponse](c, version, req); resp.ErrorCode != kerr.InvalidRequest.Code || resp.ProducerID != -1 {
				t.Errorf("v%d, id %d with epoch %d: %+v", version, half.id, half.epoch, resp)
			}
		}
	}
	for _, has := range []struct {
		id    int64
		epoch int16
		code  int16
	}{{5, -1, kerr.InvalidRequest.Code}, {-1, 3, kerr.InvalidRequest.Code}, {5, 3, 0}} {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.ProducerID, req.ProducerEpoch = has.id, has.epoch
		for version := int16(0); version <= 4; version++ {
			want := has.code
			if version < 3 { // has no such fields
				want = 0
			}
			if resp := do[*kmsg.InitProducerIDResponse](c, version, req); resp.ErrorCode != want || (resp.ProducerID >= 0) != (want == 0) {
				t.Errorf("v%d, client has %d epoch %d: %+v", version, has.id, has.epoch, resp)
			}
		}
	}
}

// TestDescribeConfigsRenamesTheBroker: the client knows node 1, the broker
// calls itself 0.
func TestDescribeConfigsRenamesTheBroker(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, res := range []struct {
		kind kmsg.ConfigResourceType
		name string
	}{{kmsg.ConfigResourceTypeBroker, "1"}, {kmsg.ConfigResourceTypeTopic, "orders"}} {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = res.kind, res.name
		req.Resources = append(req.Resources, r)
	}
	for version := int16(1); version <= 4; version++ {
		resp := do[*kmsg.DescribeConfigsResponse](c, version, req)
		for _, res := range resp.Resources {
			if res.ErrorCode != 0 || len(res.Configs) == 0 {
				t.Errorf("v%d %v %q: code %d, %d settings", version, res.ResourceType, res.ResourceName, res.ErrorCode, len(res.Configs))
			}
			if want := map[kmsg.ConfigResourceType]string{kmsg.ConfigResourceTypeBroker: "1", kmsg.ConfigResourceTypeTopic: "orders"}[res.ResourceType]; res.ResourceName != want {
				t.Errorf("v%d: resource %q, want %q", version, res.ResourceName, want)
			}
		}
		if len(resp.Resources) != 2 {
			t.Errorf("v%d: %d resources", version, len(resp.Resources))
		}
	}
}

// TestSASLSessionIsNotMovedSilently: a client that spoke SASL with the broker
// is not carried on over a connection on which it never did.
func TestSASLSessionIsNotMovedSilently(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	req := kmsg.NewPtrSASLHandshakeRequest()
	req.Mechanism = "PLAIN"
	f.broker.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		return req.ResponseKind(), nil, true
	})
	if code := do[*kmsg.SASLHandshakeResponse](c, 1, req).ErrorCode; code != 0 {
		t.Fatalf("handshake: code %d", code)
	}
	f.srv.snapshot()[0].up.abort(errUpstreamLost)
	c.closed()
}

// TestAPIVersionsNamesOfSoftware: who does not say what it is, or says it in
// other letters than Kafka allows, is refused, in the versions that ask.
func TestAPIVersionsNamesOfSoftware(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial()
	for _, tc := range []struct {
		version        int16
		name, software string
		want           int16
	}{
		{3, "apache-kafka-java", "4.3.1", 0},
		{4, "a", "0", 0},
		{2, "", "", 0},
		{3, "", "1", kerr.InvalidRequest.Code},
		{3, "test", "", kerr.InvalidRequest.Code},
		{4, "-test", "1", kerr.InvalidRequest.Code},
		{4, "test", "1.", kerr.InvalidRequest.Code},
		{4, "te st", "1", kerr.InvalidRequest.Code},
	} {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = tc.name, tc.software
		resp := do[*kmsg.ApiVersionsResponse](c, tc.version, req)
		if resp.ErrorCode != tc.want || (len(resp.ApiKeys) == 0) != (tc.want != 0) {
			t.Errorf("v%d %q %q: code %d with %d keys, want code %d", tc.version, tc.name, tc.software, resp.ErrorCode, len(resp.ApiKeys), tc.want)
		}
	}
}

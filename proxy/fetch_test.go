package proxy

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// longPoll is a wait that no test sits out.
const longPoll = 5 * time.Minute

// fill appends a batch of one record to a partition through the proxy.
func (f *fixture) fill(topic string, partition int32, values ...string) {
	f.t.Helper()
	c := f.dial()
	defer c.nc.Close()
	resp := do[*kmsg.ProduceResponse](c, 9, produceTo(topic, partition, batchOf(values...)))
	if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
		f.t.Fatalf("produce to %s/%d: code %d", topic, partition, code)
	}
}

// fetched indexes a Fetch response.
func fetched(resp *kmsg.FetchResponse) map[partitionKey]kmsg.FetchResponseTopicPartition {
	parts := map[partitionKey]kmsg.FetchResponseTopicPartition{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			parts[partitionKey{t.Topic, p.Partition}] = p
		}
	}
	return parts
}

// TestFetchReturnsTheBrokersBytes fetches in every version and compares the
// records with the broker's own.
func TestFetchReturnsTheBrokersBytes(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.fill("orders", 0, "a", "b")
	f.fill("orders", 0, "c")
	direct := fetchOf(0, fetchPart{name: "orders"})
	direct.SetVersion(11)
	direct.SessionEpoch = -1
	direct.Topics[0].Partitions[0].CurrentLeaderEpoch = -1
	want, err := roundTrip[*kmsg.FetchResponse](f.upstream, direct)
	if err != nil {
		t.Fatal(err)
	}
	records := fetched(want)[partitionKey{"orders", 0}].RecordBatches
	if len(records) == 0 {
		t.Fatal("the broker has no records")
	}
	c := f.dial()
	for version := int16(4); version <= 12; version++ {
		// Leader epoch 3, which the broker does not know, is in the request.
		resp := do[*kmsg.FetchResponse](c, version, fetchOf(0, fetchPart{name: "orders"}))
		p := fetched(resp)[partitionKey{"orders", 0}]
		if resp.ErrorCode != 0 || resp.SessionID != 0 || p.ErrorCode != 0 || p.HighWatermark != 3 || !bytes.Equal(p.RecordBatches, records) {
			t.Errorf("v%d: code %d/%d, session %d, high watermark %d, %d bytes of %d", version,
				resp.ErrorCode, p.ErrorCode, resp.SessionID, p.HighWatermark, len(p.RecordBatches), len(records))
		}
	}
}

// TestFetchSessions: none is given out, one that goes on is unknown, one that
// is closed or begun anew is served.
func TestFetchSessions(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.fill("orders", 0, "a")
	c := f.dial()
	for _, tc := range []struct {
		id, epoch int32
		code      int16
	}{{0, 0, 0}, {0, -1, 0}, {77, -1, 0}, {77, 0, 0}, {77, 1, kerr.FetchSessionIDNotFound.Code}} {
		req := fetchOf(0, fetchPart{name: "orders"})
		req.SessionID, req.SessionEpoch = tc.id, tc.epoch
		resp := do[*kmsg.FetchResponse](c, 12, req)
		if resp.ErrorCode != tc.code || resp.SessionID != 0 || len(fetched(resp)) != 1 && tc.code == 0 {
			t.Errorf("session %d epoch %d: code %d, session %d, %d partitions", tc.id, tc.epoch, resp.ErrorCode, resp.SessionID, len(fetched(resp)))
		}
	}
}

// TestFetchMergesWhatIsNotOurs asks for led, foreign and unknown partitions in
// one poll, which must not wait.
func TestFetchMergesWhatIsNotOurs(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.createTopic("empty", 1, nil)
	f.fill("orders", 0, "a")
	f.cluster.setLeader("orders", 1, 2)
	c := f.dial()
	for version := int16(4); version <= 12; version++ {
		resp := do[*kmsg.FetchResponse](c, version, fetchOf(longPoll,
			fetchPart{name: "nowhere"}, fetchPart{name: "orders"}, fetchPart{name: "orders", partition: 1},
			fetchPart{name: "orders", partition: 9}, fetchPart{name: "empty"}))
		got := fetched(resp)
		want := map[partitionKey]int16{
			{"orders", 0}: 0, {"empty", 0}: 0, {"orders", 1}: kerr.NotLeaderForPartition.Code,
			{"orders", 9}: kerr.UnknownTopicOrPartition.Code, {"nowhere", 0}: kerr.UnknownTopicOrPartition.Code,
		}
		if len(got) != len(want) {
			t.Errorf("v%d: %d partitions, want %d", version, len(got), len(want))
		}
		for key, code := range want {
			if p, ok := got[key]; !ok || p.ErrorCode != code || code != 0 && p.AbortedTransactions == nil {
				t.Errorf("v%d %v: present %t, code %d, want %d", version, key, ok, p.ErrorCode, code)
			}
		}
		if len(got[partitionKey{"orders", 0}].RecordBatches) == 0 {
			t.Errorf("v%d: the led partition has no records", version)
		}
	}
	for _, parts := range [][]fetchPart{{{name: "orders", partition: 1}}, {{name: "empty"}, {name: "orders", partition: 1}}} {
		resp := do[*kmsg.FetchResponse](c, 12, fetchOf(longPoll, parts...))
		if code := fetched(resp)[partitionKey{"orders", 1}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
			t.Errorf("%d partitions without data: code %d", len(parts), code)
		}
	}
}

// TestUnknownIsNotSaidBeforeTheCatalogIsKnown: a consumer would take UNKNOWN
// for a deleted topic.
func TestUnknownIsNotSaidBeforeTheCatalogIsKnown(t *testing.T) {
	f := newFixture(t, nil)
	f.cluster.update(func(v *View) { v.CatalogReady = false })
	c := f.dial()
	resp := do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}))
	if code := fetched(resp)[partitionKey{"orders", 0}].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("fetch: code %d", code)
	}
	produced := do[*kmsg.ProduceResponse](c, 9, produceTo("orders", 0, batchOf("a")))
	if code := produced.Topics[0].Partitions[0].ErrorCode; code != kerr.NotLeaderForPartition.Code {
		t.Errorf("produce: code %d", code)
	}
}

// TestOffsetOutOfRange lets the broker answer out of range and checks what the
// client is told.
func TestOffsetOutOfRange(t *testing.T) {
	outOfRange, notAvailable, notLeader := kerr.OffsetOutOfRange.Code, kerr.OffsetNotAvailable.Code, kerr.NotLeaderForPartition.Code
	cases := []struct {
		name          string
		offset        int64
		end, verified int64
		verifyErr     error
		want          int16
	}{
		{"below the log start", 1, 100, 100, nil, outOfRange},
		{"the broker lags", 50, 100, 100, nil, notAvailable},
		{"the broker lags at the end", 100, 100, 100, nil, notAvailable},
		{"beyond the end", 101, 100, 100, nil, outOfRange},
		{"beyond what this node knew", 101, 100, 200, nil, notAvailable},
		{"no majority to ask", 101, 100, 0, errors.New("no quorum"), notLeader},
	}
	for _, foreign := range []bool{false, true} {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				f := newFixture(t, nil)
				f.createTopic("orders", 2, nil)
				f.fill("orders", 0, "a", "b", "c", "d", "e")
				f.deleteRecords("orders", 0, 2)
				verifications := 0
				f.cluster.behave(func() {
					f.cluster.ends[partitionKey{"orders", 0}] = tc.end
					f.cluster.verify = func(partitionKey) (int64, error) { verifications++; return tc.verified, tc.verifyErr }
				})
				parts := []fetchPart{{name: "orders", offset: tc.offset}}
				if foreign { // the slow path
					f.cluster.setLeader("orders", 1, 3)
					parts = append(parts, fetchPart{name: "orders", partition: 1})
				}
				resp := do[*kmsg.FetchResponse](f.dial(), 11, fetchOf(0, parts...))
				if code := fetched(resp)[partitionKey{"orders", 0}].ErrorCode; code != tc.want {
					t.Errorf("foreign %t: code %d, want %d", foreign, code, tc.want)
				}
				f.srv.Close()
				if want := tc.offset > tc.end; (verifications > 0) != want {
					t.Errorf("%d verifications", verifications)
				}
			})
		}
	}
}

// The question about an offset out of range is answered behind the next request's
// answer, which holds all the room that a connection has until the first is sent.
func TestOffsetOutOfRangeBeforeALargeAnswer(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	f.fill("orders", 0, "a", "b", "c", "d", "e")
	f.deleteRecords("orders", 0, 2)
	f.fill("orders", 1, strings.Repeat("x", 3*minFetchBytes))
	f.cluster.behave(func() { f.cluster.ends[partitionKey{"orders", 0}] = 5 })
	c := f.dial()
	first, second := fetchOf(0, fetchPart{name: "orders", offset: 1}), fetchOf(0, fetchPart{name: "orders", partition: 1})
	first.SetVersion(11)
	second.SetVersion(11)
	one, two := c.send(first), c.send(second)
	p := fetched(receive[*kmsg.FetchResponse](c, one, first))[partitionKey{"orders", 0}]
	if p.ErrorCode != kerr.OffsetOutOfRange.Code {
		t.Errorf("the first is answered with code %d", p.ErrorCode)
	}
	if p = fetched(receive[*kmsg.FetchResponse](c, two, second))[partitionKey{"orders", 1}]; p.ErrorCode != 0 || len(p.RecordBatches) < 3*minFetchBytes {
		t.Errorf("the second is answered with code %d and %d bytes", p.ErrorCode, len(p.RecordBatches))
	}
}

func (f *fixture) deleteRecords(topic string, partition int32, before int64) {
	f.t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.SetVersion(1)
	dt := kmsg.NewDeleteRecordsRequestTopic()
	dt.Topic = topic
	dp := kmsg.NewDeleteRecordsRequestTopicPartition()
	dp.Partition, dp.Offset = partition, before
	dt.Partitions = append(dt.Partitions, dp)
	req.Topics = append(req.Topics, dt)
	resp, err := roundTrip[*kmsg.DeleteRecordsResponse](f.upstream, req)
	if err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		f.t.Fatalf("delete records: %v, %+v", err, resp)
	}
}

// TestBrokersTroubleIsNotLeader: what the broker says of its own leaders and
// epochs becomes a retriable error, and hints at its node id are removed.
func TestBrokersTroubleIsNotLeader(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	codes := map[int16]int16{3: 6, 5: 6, 6: 6, 9: 6, 74: 6, 75: 6, 56: 56, 29: 29}
	c := f.dial()
	for _, hints := range []bool{true, false} { // without hints the answer's bytes are kept
		for from, to := range codes {
			f.broker.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
				return troubledAnswer(t, req.(*kmsg.FetchRequest), from, hints), nil, true
			})
			req := fetchOf(0, fetchPart{name: "orders"})
			req.Topics[0].Partitions[0].LastFetchedEpoch = 3
			resp := do[*kmsg.FetchResponse](c, 12, req)
			p := fetched(resp)[partitionKey{"orders", 0}]
			if p.ErrorCode != to {
				t.Errorf("hints %t: code %d became %d, want %d", hints, from, p.ErrorCode, to)
			}
			if resp.SessionID != 0 || p.CurrentLeader.LeaderID != -1 || p.CurrentLeader.LeaderEpoch != -1 || p.DivergingEpoch.Epoch != -1 || p.PreferredReadReplica != -1 {
				t.Errorf("hints %t: the broker shows through: session %d, %+v", hints, resp.SessionID, p)
			}
		}
	}
}

// troubledAnswer is a broker's answer with an error, and with all that it may
// tell of itself. It checks what the broker gets to see of the client.
func troubledAnswer(t *testing.T, req *kmsg.FetchRequest, code int16, hints bool) *kmsg.FetchResponse {
	p := req.Topics[0].Partitions[0]
	if req.SessionID != 0 || req.SessionEpoch != -1 || p.CurrentLeaderEpoch != -1 || p.LastFetchedEpoch != -1 {
		t.Errorf("the broker sees session %d/%d, epochs %d and %d", req.SessionID, req.SessionEpoch, p.CurrentLeaderEpoch, p.LastFetchedEpoch)
	}
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	ft := kmsg.NewFetchResponseTopic()
	ft.Topic = "orders"
	fp := kmsg.NewFetchResponseTopicPartition()
	fp.ErrorCode, fp.PreferredReadReplica, fp.RecordBatches = code, 0, []byte{}
	if hints {
		resp.SessionID = 99
		fp.CurrentLeader.LeaderID, fp.CurrentLeader.LeaderEpoch = 0, 5
		fp.DivergingEpoch.Epoch = 4
	}
	ft.Partitions = append(ft.Partitions, fp)
	resp.Topics = append(resp.Topics, ft)
	return resp
}

// TestUpstreamIsDialledAgain after the broker closed an idle connection.
func TestUpstreamIsDialledAgain(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}))
	f.srv.snapshot()[0].up.abort(errUpstreamLost)
	resp := do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}))
	if code := fetched(resp)[partitionKey{"orders", 0}].ErrorCode; code != 0 {
		t.Errorf("code %d", code)
	}
}

// TestSlowReadersDoNotStarveOthers leaves large answers unread on many
// connections; another still gets its own.
func TestSlowReadersDoNotStarveOthers(t *testing.T) {
	const perFetch = 1 << 20
	f := newFixture(t, func(c *Config) { c.Limits.MaxResponseBytes = 8 << 20 })
	f.createTopic("orders", 1, nil)
	large := strings.Repeat("x", 120<<10)
	for range 8 * perFetch / len(large) {
		f.fill("orders", 0, large)
	}
	eventually(t, "the producers to be gone", func() bool { return len(f.srv.snapshot()) == 0 })
	for range 12 {
		slow := f.dial()
		if err := slow.nc.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		req := fetchOf(0, fetchPart{name: "orders"})
		req.Topics[0].Partitions[0].PartitionMaxBytes = 8 << 20
		for range 8 {
			slow.send(req)
		}
	}
	c := f.dial()
	for range 3 {
		resp := do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}))
		if p := fetched(resp)[partitionKey{"orders", 0}]; p.ErrorCode != 0 || len(p.RecordBatches) == 0 {
			t.Fatalf("code %d, %d bytes", p.ErrorCode, len(p.RecordBatches))
		}
	}
}

// TestFetchIsBounded: the broker is not asked for more than a share of memory.
func TestFetchIsBounded(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Limits.MaxResponseBytes = 4 << 20 })
	f.createTopic("orders", 2, nil)
	var asked []int32
	f.broker.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		f.broker.KeepControl()
		asked = append(asked, req.(*kmsg.FetchRequest).MaxBytes)
		return nil, nil, false
	})
	c := f.dial()
	small := fetchOf(0, fetchPart{name: "orders"})
	small.MaxBytes = 1000
	do[*kmsg.FetchResponse](c, 12, small)
	do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}))
	f.dial().alive() // a second connection halves the share
	do[*kmsg.FetchResponse](c, 4, fetchOf(0, fetchPart{name: "orders"}))
	f.cluster.setLeader("orders", 1, 2)
	do[*kmsg.FetchResponse](c, 12, fetchOf(0, fetchPart{name: "orders"}, fetchPart{name: "orders", partition: 1}))
	if want := []int32{1000, 2 << 20, 1 << 20, 1 << 20}; !slices.Equal(asked, want) {
		t.Errorf("asked for %v bytes, want %v", asked, want)
	}
}

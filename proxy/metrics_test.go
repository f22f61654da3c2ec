package proxy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// scrape returns every series, by name and labels; of histograms the count.
func (f *fixture) scrape() map[string]float64 {
	f.t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(f.srv)
	families, err := reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			key := fmt.Sprintf("%s{%s}", strings.TrimPrefix(family.GetName(), "lockstep_"), strings.Join(labels, ","))
			out[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// Every request is counted once, with the first error of its answer, whoever
// gave it: this node, or the broker whose answer is passed on.
func TestRequestsAreCounted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.createTopic("t", 1, nil)
	c := f.dial()
	expect := func(what string, want map[string]float64) {
		t.Helper()
		c.alive() // the writer counts an answer before it turns to the next one
		got := f.scrape()
		for key, n := range want {
			if got[key] != n {
				t.Errorf("%s: %s is %v, want %v; there are %v", what, key, got[key], n, slices.Sorted(maps.Keys(got)))
			}
		}
	}
	expect("at first", map[string]float64{"client_connections{" + testListener + "}": 1})

	good := produceTo("t", 0, batchOf("a"))
	asked := len(kafkawire.AppendRequest(nil, kafkawire.RequestHeader{ClientID: kmsg.StringPtr("raw")}, good)) - 4
	do[*kmsg.ProduceResponse](c, 9, good)
	do[*kmsg.ProduceResponse](c, 9, produceTo("none", 0, batchOf("a")))
	expect("produce", map[string]float64{
		"requests_total{Produce,NONE,9}":                       1,
		"requests_total{Produce,UNKNOWN_TOPIC_OR_PARTITION,9}": 1,
		"request_seconds{Produce}":                             2,
		"request_bytes_total{Produce}":                         float64(2*asked + len("none") - len("t")),
	})
	if f.scrape()["response_bytes_total{Produce}"] < 40 {
		t.Error("answers have no bytes")
	}

	heartbeat := kmsg.NewPtrHeartbeatRequest()
	heartbeat.Group, heartbeat.MemberID = "nobody's", "x"
	before := f.scrape()
	code := do[*kmsg.HeartbeatResponse](c, 4, heartbeat).ErrorCode
	if code == 0 {
		t.Fatal("a heartbeat of nobody is welcome")
	}
	name := "requests_total{Heartbeat," + errorName(code) + ",4}"
	expect("heartbeat", map[string]float64{name: before[name] + 1})

	// What is not served is one kind, whatever the number.
	for _, key := range []int16{1000, 1001} {
		bad := f.dial()
		bad.write(headerOnly(key, 0))
		bad.closed()
	}
	f.eventuallyCounts("requests_total{other,"+closedInPlace+",other}", 2)
}

// eventuallyCounts waits for connections that were closed.
func (f *fixture) eventuallyCounts(key string, want float64) {
	f.t.Helper()
	if err := f.srv.Close(); err != nil { // returns when every writer is done
		f.t.Error(err)
	}
	if got := f.scrape(); got[key] != want {
		f.t.Errorf("%s is %v, want %v; there are %v", key, got[key], want, slices.Sorted(maps.Keys(got)))
	}
}

// An answer of a kind that was seen before is counted without an allocation.
func TestCountingAllocatesNothing(t *testing.T) {
	m := newMetrics()
	s := &slot{key: int16(kmsg.Produce), version: 9}
	m.answer(s)
	if n := testing.AllocsPerRun(100, func() { m.answer(s) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	// Made-up versions do not fill the map.
	for v := range int16(1000) {
		m.answer(&slot{key: int16(kmsg.Produce), version: v, code: 7})
	}
	if n := len(*m.seen.Load()); n > 40 {
		t.Errorf("%d kinds are kept", n)
	}
}

func BenchmarkCount(b *testing.B) {
	m := newMetrics()
	s := &slot{key: int16(kmsg.Produce), version: 9}
	for b.Loop() {
		m.answer(s)
	}
}

// Answers that are passed on are counted with the error at their beginning: for
// each API of which that is said, and each version, it is where the codec puts it.
func TestErrorIsAtTheBeginning(t *testing.T) {
	t.Parallel()
	for key := range errorFirst {
		api, ok := kafkawire.Lookup(key)
		if !ok {
			t.Fatalf("API %d is not served", key)
		}
		for version := api.Min; version <= api.Max; version++ {
			resp := kmsg.ResponseForKey(key)
			resp.SetVersion(version)
			reflect.ValueOf(resp).Elem().FieldByName("ErrorCode").SetInt(27)
			frame := kafkawire.AppendResponse(nil, key, version, 1, resp)
			r := &request{h: kafkawire.RequestHeader{Key: key, Version: version}}
			if got := r.errorOf(frame[4:]); got != 27 {
				t.Errorf("%s version %d: error %d", api.Name, version, got)
			}
		}
	}
}

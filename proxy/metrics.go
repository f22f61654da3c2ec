package proxy

import (
	"maps"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// metrics counts what clients ask and what they are told. Labels are the APIs
// and versions that are served, and Kafka's names of errors: all bounded. An
// answer is counted by its connection's writer, once it is written; after the
// first of its kind that takes no lock and allocates nothing.
type metrics struct {
	requests *prometheus.CounterVec
	in, out  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec

	mu   sync.Mutex // taken to add to seen
	seen atomic.Pointer[map[kindOfAnswer]*answered]
}

// kindOfAnswer is what answers are told apart by.
type kindOfAnswer struct {
	key, version int16
	code         int16
	closed       bool // the connection was closed in place of an answer
}

// answered are the counters of one kind.
type answered struct {
	requests, in, out prometheus.Counter
	seconds           prometheus.Observer
}

// closedInPlace stands where an error's name would, for a request that has no
// answer because its connection was closed.
const closedInPlace = "closed"

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "lockstep", Name: name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("requests_total", "Requests of clients, by the first error in the answer: Kafka's name, NONE, or closed if the connection was closed in place of an answer.", "api", "version", "error"),
		in:       counter("request_bytes_total", "Bytes of clients' requests.", "api"),
		out:      counter("response_bytes_total", "Bytes of answers to clients.", "api"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "lockstep", Name: "request_seconds",
			Help:    "From the last byte of a request to the answer's being written; a Fetch may wait for records.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}}, []string{"api"}),
	}
	m.seen.Store(&map[kindOfAnswer]*answered{})
	return m
}

// answer counts one request. Any goroutine.
func (m *metrics) answer(s *slot) {
	k := kindOfAnswer{s.key, s.version, s.code, s.closeErr != nil}
	a := (*m.seen.Load())[k]
	if a == nil {
		a = m.meet(k)
	}
	a.requests.Inc()
	a.in.Add(float64(s.asked))
	a.out.Add(float64(max(len(s.resp), s.size)))
	a.seconds.Observe(time.Since(s.since).Seconds())
}

func (m *metrics) meet(k kindOfAnswer) *answered {
	m.mu.Lock()
	defer m.mu.Unlock()
	api, version, name := kmsg.NameForKey(k.key), strconv.Itoa(int(k.version)), errorName(k.code)
	if k.closed {
		name = closedInPlace
	}
	if known, ok := kafkawire.Lookup(k.key); !ok {
		api, version = "other", "other"
	} else if !known.Accepts(k.version) {
		version = "other"
	}
	a := &answered{requests: m.requests.WithLabelValues(api, version, name),
		in: m.in.WithLabelValues(api), out: m.out.WithLabelValues(api), seconds: m.seconds.WithLabelValues(api)}
	// What a client makes up must not fill the map.
	if version != "other" {
		next := maps.Clone(*m.seen.Load())
		next[k] = a
		m.seen.Store(&next)
	}
	return a
}

func errorName(code int16) string {
	if code == 0 {
		return "NONE"
	}
	if e := kerr.TypedErrorForCode(code); e != nil {
		return e.Message
	}
	return "other"
}

// Collect and Describe of a Server: its connections, and what they asked.

var descConnections = prometheus.NewDesc("lockstep_client_connections", "Connections of clients.", []string{"listener"}, nil)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	ch <- descConnections
	for _, c := range s.metrics.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	open := make(map[string]int)
	for _, l := range s.cfg.Listeners {
		open[l.Name] = 0
	}
	for _, c := range s.snapshot() {
		open[c.listener]++
	}
	for name, n := range open {
		ch <- prometheus.MustNewConstMetric(descConnections, prometheus.GaugeValue, float64(n), name)
	}
	for _, c := range s.metrics.all() {
		c.Collect(ch)
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.in, m.out, m.seconds}
}

// firstError returns the first error code in an answer, 0 if there is none.
func firstError(resp kmsg.Response) int16 {
	switch r := resp.(type) {
	case *kmsg.ProduceResponse:
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 {
					return p.ErrorCode
				}
			}
		}
		return 0
	case *kmsg.MetadataResponse: // may have very many partitions
		for _, t := range r.Topics {
			if t.ErrorCode != 0 {
				return t.ErrorCode
			}
		}
		return 0
	}
	code, _ := errorIn(reflect.ValueOf(resp))
	return code
}

// errorIn looks for a field ErrorCode that is not 0, in the order of the fields.
func errorIn(v reflect.Value) (int16, bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return 0, false
		}
		return errorIn(v.Elem())
	case reflect.Slice:
		if e := v.Type().Elem().Kind(); e != reflect.Struct && e != reflect.Pointer {
			return 0, false
		}
		for i := range v.Len() {
			if code, ok := errorIn(v.Index(i)); ok {
				return code, true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if f.Kind() == reflect.Int16 && v.Type().Field(i).Name == "ErrorCode" && f.Int() != 0 {
				return int16(f.Int()), true
			}
			if code, ok := errorIn(f); ok {
				return code, true
			}
		}
	}
	return 0, false
}

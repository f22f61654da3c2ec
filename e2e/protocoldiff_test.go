//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestProtocolDifferences sends one set of requests, over every API and version
// that the proxy advertises, to a Kafka broker and to a proxy in front of
// another one, and compares the answers field by field. What differs must be in
// the table of docs/protocol.md, and everything in that table must be seen.
//
// Both are node 1 of a cluster of one, so that nothing has to be made equal
// that need not be: see normal.
func TestProtocolDifferences(t *testing.T) {
	doc := readProtocolDoc(t, "../docs/protocol.md")
	dir := runDir(t)
	sides := startSides(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	p := &protocolDiff{t: t, ctx: ctx, doc: doc, sides: sides}

	served := p.checkAdvertised()
	begin := time.Now()
	only := os.Getenv("E2E_API") // one API alone, to look for a cause
	for _, api := range served {
		if only != "" && !strings.EqualFold(only, kmsg.NameForKey(api.ApiKey)) {
			continue
		}
		script := scripts[api.ApiKey]
		if script == nil {
			t.Errorf("%s is advertised, and no request of it is in the set", kmsg.NameForKey(api.ApiKey))
			continue
		}
		for v := api.MinVersion; v <= api.MaxVersion; v++ {
			p.run(&recorder{key: api.ApiKey, version: v}, script)
		}
		p.run(&recorder{key: api.ApiKey, version: 99}, unknownVersion)
	}
	p.run(&recorder{key: 999}, unknownAPI)
	for _, s := range doc.stale(only) {
		t.Errorf("listed in docs/protocol.md, and no longer a difference: %s", s)
	}
	t.Logf("%d requests to each side in %s: %d differences, all but %d of them listed; %d had to be repeated",
		p.sent, time.Since(begin).Round(100*time.Millisecond), p.found, p.unlisted, p.repeated)
}

// side is one of the two that are asked.
type side struct {
	name    string
	addr    string
	normal  normal
	members map[string]string // what coordinators called the members, by our name
}

// startSides starts a broker, and a broker with a proxy, and makes them alike.
func startSides(t *testing.T, dir string) [2]*side {
	t.Helper()
	plain, n := startPair(t, dir, func(*broker) []string { return nil }, "topics.auto_create_topics_enable=false")
	sides := [2]*side{
		{name: "kafka", addr: plain.addr(), normal: normal{port: plain.port}},
		{name: "lockstep", addr: n.kafkaAddr(), normal: normal{port: n.kafkaPort}},
	}
	var wg sync.WaitGroup
	errs := make([]error, len(sides))
	for i, s := range sides {
		s.members = map[string]string{}
		wg.Go(func() { errs[i] = s.prepare(t.Context()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return sides
}

// startPair starts a broker, and a broker with a proxy whose settings are given;
// with gives what else each broker has in its configuration.
func startPair(t *testing.T, dir string, with func(*broker) []string, settings ...string) (plain *broker, n *node) {
	t.Helper()
	plain = makeBroker(t, filepath.Join(dir, "plain"), 1)
	behind := makeBroker(t, filepath.Join(dir, "kafka"), 11)
	for _, b := range []*broker{plain, behind} {
		b.settings = append([]string{"broker.rack=a", "log.retention.ms=-1"}, with(b)...) // records of a fixed time are old
	}
	n = &node{
		id: 1, bin: lockstepBinary(t), dir: filepath.Join(dir, "node"), broker: behind, upstream: behind.addr(),
		kafkaPort: freePort(t), raftPort: freePort(t), adminPort: freePort(t), settings: settings,
	}
	c := &cluster{t: t, dir: dir, nodes: []*node{n, {broker: plain}}}
	c.startBrokers()
	c.nodes = c.nodes[:1]
	t.Cleanup(func() {
		if n.proc != nil {
			if err := n.proc.kill9(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := n.writeConfig(c.nodes, "alone", 1, "wal"); err != nil {
		t.Fatal(err)
	}
	n.startProxy(t)
	c.waitHealthy()
	return plain, n
}

// prepare makes the topics that the requests are about, and has the broker make
// the ones that it keeps for groups.
func (s *side) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	md := kmsg.NewPtrMetadataRequest()
	md.SetVersion(9)
	resp, err := rawCall[*kmsg.MetadataResponse](ctx, s.addr, md)
	if err != nil {
		return err
	}
	s.normal.clusterID = *resp.ClusterID
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(6)
	req.TimeoutMillis = 20_000
	req.Topics = []kmsg.CreateTopicsRequestTopic{
		newTopic("read", 2), newTopic("write", 4), newTopic("once", 12), newTopic("cut", 6),
		newTopic("small", 1, "max.message.bytes", "300"), newTopic("compacted", 1, "cleanup.policy", "compact"),
		newTopic("grow", 1), newTopic("altered", 1, "retention.ms", "86400000"),
	}
	created, err := rawCall[*kmsg.CreateTopicsResponse](ctx, s.addr, req)
	if err != nil {
		return err
	}
	for _, topic := range created.Topics {
		if topic.ErrorCode != 0 {
			return fmt.Errorf("create %s on %s: %s", topic.Topic, s.name, codeName(topic.ErrorCode))
		}
		if err := s.served(ctx, topic.Topic, topic.NumPartitions); err != nil {
			return err
		}
	}
	for _, topic := range []string{"read", "cut"} {
		for p := range int32(6) {
			for range 3 {
				if topic == "read" && p > 0 {
					continue
				}
				if _, code, _, err := rawProduceBytes(ctx, s.addr, topic, p, fixedBatch("one", "two", "three").fixed(nil), 20*time.Second); err != nil || code != 0 {
					return fmt.Errorf("write to %s on %s: code %d: %w", topic, s.name, code, err)
				}
			}
		}
	}
	if err := s.coordinated(ctx); err != nil {
		return err
	}
	return waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		find := kmsg.NewPtrFindCoordinatorRequest() // it makes a broker create what it keeps groups in
		find.CoordinatorKey = "first"
		if _, err := rawCall[*kmsg.FindCoordinatorResponse](ctx, s.addr, find); err != nil {
			return err
		}
		commit := kmsg.NewPtrOffsetCommitRequest()
		commit.SetVersion(8)
		commit.Group, commit.Generation = "first", -1
		commit.Topics = commitOf("read", 0, 1)
		resp, err := rawCall[*kmsg.OffsetCommitResponse](ctx, s.addr, commit)
		if err == nil && resp.Topics[0].Partitions[0].ErrorCode != 0 {
			err = errors.New(codeName(resp.Topics[0].Partitions[0].ErrorCode))
		}
		return err
	})
}

// coordinated has Kafka make what it keeps transactions in, and fetch its first
// producer ids: the first clients to ask would otherwise be told to wait.
func (s *side) coordinated(ctx context.Context) error {
	return waitUntil(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.SetVersion(1)
		find.CoordinatorType, find.CoordinatorKey = 1, "transaction"
		resp, err := rawCall[*kmsg.FindCoordinatorResponse](ctx, s.addr, find)
		if err != nil || s.name != "kafka" {
			return err
		}
		if resp.ErrorCode != 0 {
			return errors.New(codeName(resp.ErrorCode))
		}
		producer, err := rawCall[*kmsg.InitProducerIDResponse](ctx, s.addr, kmsg.NewPtrInitProducerIDRequest())
		if err == nil && producer.ErrorCode != 0 {
			err = errors.New(codeName(producer.ErrorCode))
		}
		return err
	})
}

// served returns when a topic's partitions are led, which is a moment after its
// creation is answered.
func (s *side) served(ctx context.Context, topic string, partitions int32) error {
	return waitUntil(ctx, 20*time.Millisecond, func(ctx context.Context) error {
		for p := range partitions {
			if _, err := endOffset(ctx, s.addr, topic, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// protocolDiff is one comparison. All of it is on the test's goroutine but the
// two calls of an exchange.
type protocolDiff struct {
	t                     *testing.T
	ctx                   context.Context
	doc                   *protocolDoc
	sides                 [2]*side
	sent, found, unlisted int
	repeated              int // requests to a proxy that was not sure to lead
}

// checkAdvertised compares what the proxy advertises with the document, and
// returns it.
func (p *protocolDiff) checkAdvertised() []kmsg.ApiVersionsResponseApiKey {
	p.t.Helper()
	resp, err := rawCall[*kmsg.ApiVersionsResponse](p.ctx, p.sides[1].addr, apiVersionsRequest(3))
	if err != nil {
		p.t.Fatal(err)
	}
	slices.SortFunc(resp.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey) - int(b.ApiKey) })
	for _, api := range resp.ApiKeys {
		r, ok := p.doc.apis[api.ApiKey]
		if api.ApiKey == int16(kmsg.Produce) && r.min == 3 {
			r.min = 0 // advertised for the sake of old clients, and refused
		}
		if !ok || r != (versionRange{api.MinVersion, api.MaxVersion}) {
			p.t.Errorf("%s (%d) is advertised with %d–%d, docs/protocol.md lists %v", kmsg.NameForKey(api.ApiKey), api.ApiKey, api.MinVersion, api.MaxVersion, r)
		}
	}
	if len(p.doc.apis) != len(resp.ApiKeys) {
		p.t.Errorf("%d APIs are advertised, docs/protocol.md lists %d", len(resp.ApiKeys), len(p.doc.apis))
	}
	return resp.ApiKeys
}

// run makes a script's exchanges and sends them.
func (p *protocolDiff) run(r *recorder, script func(*recorder)) {
	script(r)
	api := kmsg.NameForKey(r.key)
	for _, x := range r.list {
		p.sent++
		out := p.exchange(x)
		diffs := differences(api, r.version, x.name, p.sides[0].normal, p.sides[1].normal, out[0], out[1])
		for end := time.Now().Add(10 * time.Second); unsureToLead(diffs) && time.Now().Before(end); {
			p.repeated++
			p.ask(1, x, &out)
			diffs = differences(api, r.version, x.name, p.sides[0].normal, p.sides[1].normal, out[0], out[1])
		}
		if x.quiet {
			continue
		}
		for end := time.Now().Add(5 * time.Second); x.eventually && time.Now().Before(end) && !p.allListed(diffs); {
			out = p.exchange(x)
			diffs = differences(api, r.version, x.name, p.sides[0].normal, p.sides[1].normal, out[0], out[1])
		}
		for _, d := range diffs {
			p.found++
			if !p.doc.lists(d, true) {
				p.unlisted++
				p.t.Errorf("not in docs/protocol.md: %v", d)
			}
		}
	}
}

func (p *protocolDiff) allListed(diffs []difference) bool {
	return !slices.ContainsFunc(diffs, func(d difference) bool { return !p.doc.lists(d, false) })
}

// exchange sends one request to both sides.
func (p *protocolDiff) exchange(x *exchange) [2]diffOutcome {
	var out [2]diffOutcome
	var wg sync.WaitGroup
	for i := range p.sides {
		wg.Go(func() { p.ask(i, x, &out) })
	}
	wg.Wait()
	return out
}

// ask sends a request to one side.
func (p *protocolDiff) ask(i int, x *exchange, out *[2]diffOutcome) {
	s := p.sides[i]
	var err error
	out[i], err = s.send(p.ctx, x)
	if err == nil && x.after != nil && out[i].resp != nil {
		err = x.after(p.ctx, s, out[i].resp)
	}
	if err != nil {
		p.t.Errorf("%s: %s: %v", s.name, x.name, err)
	}
}

// unsureToLead says whether the proxy did nothing because it was not sure to lead,
// which a node says after its process got no time for a while. Clients ask
// again, and so does the test: the proxy alone, for Kafka has answered.
func unsureToLead(diffs []difference) bool {
	return slices.ContainsFunc(diffs, func(d difference) bool {
		return slices.Contains([]string{"NOT_LEADER_FOR_PARTITION", "NOT_CONTROLLER", "NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE"}, d.ours)
	})
}

func differences(api string, version int16, request string, kn, on normal, kafka, ours diffOutcome) []difference {
	var out []difference
	report := func(field, k, o string) {
		out = append(out, difference{api, version, request, field, k, o})
	}
	if kafka.state != ours.state || kafka.resp == nil || ours.resp == nil {
		if kafka.state != ours.state {
			report("connection", kafka.state, ours.state)
		}
		return out
	}
	compare("", kn.describe("", reflect.ValueOf(kafka.resp)), on.describe("", reflect.ValueOf(ours.resp)), report)
	return out
}

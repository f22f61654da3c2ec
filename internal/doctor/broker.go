package doctor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Broker is the local broker, as far as it can be asked.
type Broker interface {
	// Describe names what the broker seems to be.
	Describe(ctx context.Context) (string, error)
	// Nodes are the brokers that it names to clients, host:port by id.
	Nodes(ctx context.Context) (map[int32]string, error)
	// Settings are a broker's own.
	Settings(ctx context.Context, node int32) (map[string]string, error)
	// TopicSettings are those in effect for topics, as far as they are named.
	TopicSettings(ctx context.Context, topics, settings []string) (map[string]map[string]string, error)
	// OwnQuotas are those that bear on the connections of a user, by key.
	OwnQuotas(ctx context.Context, user string) (map[string]float64, error)
}

// setting is one of the broker's that Lockstep, or its clients, depend on.
type setting struct {
	name string
	bad  func(value string) bool
	Finding
}

func isNot(want string) func(string) bool { return func(v string) bool { return v != want } }

func is(want string) func(string) bool { return func(v string) bool { return v == want } }

func above(limit int64) func(string) bool {
	return func(v string) bool { n, err := strconv.ParseInt(v, 10, 64); return err == nil && n > limit }
}

func below(limit int64) func(string) bool {
	return func(v string) bool { n, err := strconv.ParseInt(v, 10, 64); return err == nil && n < limit }
}

// settings are looked at; maxMessage is the largest batch that clients may send.
func settings(maxMessage int64) []setting {
	file := "set %s in the broker's configuration file and restart it"
	return []setting{
		{"auto.create.topics.enable", is("true"), Finding{Severity: Warning,
			Why: "a reader of the broker creates topics that no other node has", Next: fmt.Sprintf(file, "auto.create.topics.enable=false")}},
		{"delete.topic.enable", is("false"), Finding{Severity: Error,
			Why: "topics can neither be deleted nor made anew from the others' copies", Next: fmt.Sprintf(file, "delete.topic.enable=true")}},
		{"offsets.topic.replication.factor", above(1), Finding{Severity: Error,
			Why: "a broker alone cannot make its __consumer_offsets, and consumer groups wait for ever", Next: fmt.Sprintf(file, "offsets.topic.replication.factor=1")}},
		{"transaction.state.log.replication.factor", above(1), Finding{Severity: Warning,
			Why: "a broker alone cannot make its __transaction_state, and keeps trying when a transactional producer asks for it", Next: fmt.Sprintf(file, "transaction.state.log.replication.factor=1")}},
		{"min.insync.replicas", above(1), Finding{Severity: Error,
			Why: "a broker alone refuses every write with acks=all, its own __consumer_offsets included", Next: fmt.Sprintf(file, "min.insync.replicas=1")}},
		{"log.segment.bytes", below(maxMessage), Finding{Severity: Error,
			Why:  "a batch larger than a segment is refused, though it is committed",
			Next: fmt.Sprintf(file, "log.segment.bytes=1073741824") + ", or lower raft.max_entry_bytes on all nodes"}},
		{"log.message.timestamp.type", isNot("CreateTime"), Finding{Severity: Warning,
			Why:  "the broker gives records its own times; topics written so cannot be adopted, and lockstep's own are written anew as soon as they lose their setting",
			Next: fmt.Sprintf(file, "log.message.timestamp.type=CreateTime")}},
		{"compression.type", isNot("producer"), Finding{Severity: Warning,
			Why:  "the broker writes batches anew in topics without a setting of their own; the copies of one that loses it differ and are quarantined",
			Next: fmt.Sprintf(file, "compression.type=producer")}},
		{"create.topic.policy.class.name", isNot(""), Finding{Severity: Warning,
			Why: "it may refuse the topics that lockstep makes on the broker, which then has no copy of them", Next: "have it let lockstep's user pass, or take it out of the broker's configuration file and restart it"}},
		{"alter.config.policy.class.name", isNot(""), Finding{Severity: Warning,
			Why: "it may refuse the settings without which the broker rewrites or refuses what was committed", Next: "have it let lockstep's user pass, or take it out of the broker's configuration file and restart it"}},
		{"socket.request.max.bytes", below(maxMessage + 1<<20), Finding{Severity: Error,
			Why:  "the largest batch that this node takes does not fit into a request to the broker",
			Next: fmt.Sprintf(file, "socket.request.max.bytes=104857600") + ", or lower raft.max_entry_bytes on all nodes"}},
	}
}

// BrokerChecks look at the broker. advertised is where clients reach this node,
// bootstrap where this node reaches the broker, user as whom, if anybody.
func BrokerChecks(b Broker, bootstrap, user string, advertised []string, maxMessage int64) []Check {
	return []Check{
		{"broker", func(ctx context.Context) []Finding {
			kind, err := b.Describe(ctx)
			if err != nil {
				return []Finding{{Severity: Error, What: fmt.Sprintf("no Kafka broker answers at %s: %v", bootstrap, err),
					Why: "this node serves nobody without its broker", Next: "start the broker, or correct broker.bootstrap_server"}}
			}
			return ok("%s answers at %s", kind, bootstrap)
		}},
		{"broker's settings", func(ctx context.Context) []Finding { return brokerSettings(ctx, b, maxMessage) }},
		{"quotas", func(ctx context.Context) []Finding { return quotas(ctx, b, user) }},
		{"way around the proxy", func(ctx context.Context) []Finding { return bypass(ctx, b, advertised) }},
	}
}

func brokerSettings(ctx context.Context, b Broker, maxMessage int64) (out []Finding) {
	nodes, err := b.Nodes(ctx)
	if err != nil {
		return unknown("start the broker, then ask again", "the broker cannot be asked: %v", err)
	}
	if len(nodes) > 1 {
		return []Finding{{Severity: Error, What: fmt.Sprintf("the broker belongs to a cluster of %d", len(nodes)),
			Why: "its other brokers would change topics behind this node's back", Next: "put every node in front of a broker of its own"}}
	}
	for id := range nodes {
		have, err := b.Settings(ctx, id)
		if err != nil {
			return unknown("check them in the broker's configuration file", "the broker does not tell its settings: %v", err)
		}
		for _, s := range settings(maxMessage) {
			if v, told := have[s.name]; told && s.bad(v) {
				f := s.Finding
				f.What = fmt.Sprintf("%s is %s", s.name, v)
				out = append(out, f)
			}
		}
	}
	if out == nil {
		return ok("nothing in them is in the way")
	}
	return out
}

// quotas says which of the broker's slow down what is written to it for all
// clients together.
func quotas(ctx context.Context, b Broker, user string) (out []Finding) {
	found, err := b.OwnQuotas(ctx, user)
	if err != nil {
		return unknown("look at them with kafka-configs --describe --entity-type users, and clients", "the broker does not tell its quotas: %v", err)
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		out = append(out, Finding{Severity: Warning, What: fmt.Sprintf("%s is %g for lockstep's own connection", key, found[key]),
			Why:  "the broker slows down what all clients write together, and the node's log fills up meanwhile",
			Next: "take the quota away from " + cmp.Or(user, "ANONYMOUS") + ", or let lockstep authenticate as a user without one"})
	}
	if out == nil {
		return ok("none bears on lockstep's own connection")
	}
	return out
}

// bypass says whether clients on other machines could write to the broker
// itself: what they write there is on one node only, and quarantines the topic.
func bypass(ctx context.Context, b Broker, advertised []string) []Finding {
	nodes, err := b.Nodes(ctx)
	if err != nil {
		return unknown("start the broker, then ask again", "the broker cannot be asked: %v", err)
	}
	for _, addr := range nodes {
		if slices.Contains(advertised, addr) {
			return []Finding{{Severity: Error, What: "the broker advertises " + addr + ", which is where clients reach this node",
				Why: "one of the two does not get its clients", Next: "give the broker's advertised.listeners another port, on loopback"}}
		}
		if local(addr) {
			continue
		}
		return []Finding{{Severity: Warning, What: "the broker advertises " + addr + ", which other machines may reach",
			Why:  "what is written there goes past lockstep: it is on one node only, and the topic is quarantined there",
			Next: "bind the broker's listeners to loopback, or let a firewall or its ACLs keep others out"}}
	}
	return ok("the broker is named to this machine only")
}

// local says whether an address leads to the machine itself, wherever it is used.
func local(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback())
}

//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// scramSession is how long brokers let a client in before it must authenticate again.
const scramSession = 4 * time.Second

// TestSCRAMOverTLS: brokers authenticate everybody by SCRAM over TLS, Lockstep
// itself included; clients show the proxies a certificate, too, and must
// authenticate again every few seconds. franz-go and Java do so and lose nothing
// when a leader is killed; who does not is cut off in time; and a broker's ACLs
// hold.
func TestSCRAMOverTLS(t *testing.T) {
	s := newScramCluster(t)
	c := s.c
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, javaTopic, partitions = "orders", "java-orders", 3
	admin := s.client(t, s.sha512("admin", "admin-512"))
	for _, name := range []string{topic, javaTopic, "secret", "small"} {
		if err := createAs(ctx, admin, name); err != nil {
			t.Fatalf("create %s: %v", name, err)
		}
	}
	for _, name := range []string{topic, javaTopic} {
		if err := growAs(ctx, admin, name, partitions); err != nil {
			t.Fatalf("grow %s: %v", name, err)
		}
	}
	s.grant(ctx, kmsg.ACLResourceTypeTopic, javaTopic, kmsg.ACLOperationWrite, kmsg.ACLOperationRead)
	s.grant(ctx, kmsg.ACLResourceTypeGroup, "java-group", kmsg.ACLOperationRead)
	java := startJavaProducer(t, c.dir, c.bootstrap(), javaTopic, 50, s.javaSettings()...)
	again := &authentications{}
	w := startWorkloadWith(t, append(s.options(s.sha512("admin", "admin-512")), kgo.WithHooks(again)), c.bootstrap(), topic, partitions, 50*time.Millisecond, "p1")

	s.mechanisms(ctx)
	s.denied(ctx)
	// Each of the two clients has three connections or more.
	waitFor(t, "clients to authenticate again", time.Minute, func(context.Context) error {
		if n := again.answers.Load()/2 - again.connects.Load(); n < 15 {
			return fmt.Errorf("%d times so far, on %d connections", n, again.connects.Load())
		}
		return nil
	})
	if n := again.disconnects.Load(); n > 0 {
		t.Errorf("%d connections of clients that authenticate again were cut off", n)
	}
	if lines := c.logLines("after the end of the session"); len(lines) > 0 {
		t.Errorf("clients that authenticate again were cut off: %s", lines[0])
	}
	s.stubborn(ctx)

	s.killLeader(ctx, javaTopic, func(killed time.Time) {
		if err := w.h.waitAcks(ctx, partitions, killed, 20); err != nil {
			t.Errorf("after the kill: %v", err)
		}
		seen := len(java.stdout.snapshot())
		if err := java.stdout.waitFor(ctx, func(all []string) bool { return len(all) > seen+200 || java.proc.exited() }); err != nil || java.proc.exited() {
			t.Errorf("the Java producer does not go on after the kill: %v\n%s", err, lastBytes(java.stderr.text(), 2000))
		}
	})
	acks := java.stop(t)
	flush, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	if err := errors.Join(w.stopProducing(flush), w.waitConsumed(flush)); err != nil {
		t.Fatal(err)
	}
	c.waitBrokersHold(c.nodes, topic, w.h.ends())
	w.h.check(c.readBrokers(c.nodes, topic, partitions), partitions).report(t)
	checkJava(t, acks, c.readBrokers(c.nodes, javaTopic, partitions))
	s.javaReads(ctx, javaTopic, len(acks))
	c.verify()
	for _, n := range c.nodes {
		secretsAbsent(t, n, s.secrets...)
	}
}

// scramCluster is a cluster whose brokers know everybody by SCRAM only.
type scramCluster struct {
	t       *testing.T
	c       *cluster
	ca      *testAuthority // of servers and clients
	dir     string
	cert    tls.Certificate // of clients
	clients map[int]int     // by node: the port of the broker where clients come
	secrets []string
}

func newScramCluster(t *testing.T) *scramCluster {
	t.Helper()
	s := &scramCluster{t: t, ca: newTestAuthority(t), dir: t.TempDir(), clients: map[int]int{},
		secrets: []string{"own-secret-77ae", "admin-256-51fd", "admin-512-c088", "writer-512-e94b"}}
	file := func(name string) string { return filepath.Join(s.dir, name) }
	writeSecret(t, file("ca.pem"), s.ca.pem())
	writeSecret(t, file("password"), []byte(s.secret("own")+"\n"))
	certFile, keyFile := s.ca.issue(t, t.TempDir())
	store := file("server.pem")
	joinFiles(t, store, keyFile, certFile)
	clientCert, clientKey := s.ca.issue(t, t.TempDir())
	joinFiles(t, file("client.pem"), clientKey, clientCert)
	var err error
	if s.cert, err = tls.LoadX509KeyPair(clientCert, clientKey); err != nil {
		t.Fatal(err)
	}
	own := map[*broker]int{}
	s.c = newClusterWith(t, clusterOpts{
		via: func(b *broker) string { return loopback(own[b]) },
		settings: func(n *node) []string {
			own[n.broker], s.clients[n.id] = freePort(t), freePort(t)
			at := "SASL_SSL://" + n.kafkaAddr()
			return []string{"listeners=" + at, "advertised_listeners=" + at, "ssl.cert_file=" + certFile, "ssl.key_file=" + keyFile,
				"ssl.client_auth=required", "ssl.ca_file=" + file("ca.pem"), "broker.ssl.ca_file=" + file("ca.pem"),
				"broker.security_protocol=SASL_SSL", "broker.sasl.mechanism=SCRAM-SHA-512", "broker.sasl.username=lockstep", "broker.sasl.password_file=" + file("password"),
				"broker.client_server=" + loopback(s.clients[n.id]), "broker.client_security_protocol=SASL_SSL"}
		},
		prepare: func(_ *testing.T, n *node) {
			n.broker.settings = scramOverTLS(n.broker, own[n.broker], s.clients[n.id], store)
			for mechanism, users := range map[string][]string{"SCRAM-SHA-256": {"admin-256"}, "SCRAM-SHA-512": {"own-", "admin-512", "writer-512"}} {
				for _, user := range users {
					name, _, _ := strings.Cut(user, "-")
					n.broker.users = append(n.broker.users, fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, strings.Replace(name, "own", "lockstep", 1), s.secret(user)))
				}
			}
		},
	})
	return s
}

// secret is the password that begins so.
func (s *scramCluster) secret(begins string) string {
	return s.secrets[slices.IndexFunc(s.secrets, func(p string) bool { return strings.HasPrefix(p, begins) })]
}

func joinFiles(t *testing.T, to string, from ...string) {
	t.Helper()
	var all []byte
	for _, name := range from {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	writeSecret(t, to, all)
}

// scramOverTLS gives a broker a listener for Lockstep and one for clients, whose
// sessions end. Whoever comes by the third, the test itself, may do everything.
func scramOverTLS(b *broker, own, clients int, store string) []string {
	lines := []string{
		fmt.Sprintf("listeners=PLAINTEXT://%s,CONTROLLER://%s,OWN://%s,CLIENTS://%s", b.addr(), loopback(b.controllerPort), loopback(own), loopback(clients)),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://%s,OWN://%s,CLIENTS://%s", b.addr(), loopback(own), loopback(clients)),
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,OWN:SASL_SSL,CLIENTS:SASL_SSL",
		"listener.name.own.sasl.enabled.mechanisms=SCRAM-SHA-512",
		"listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS;User:lockstep;User:admin",
	}
	for listener, mechanisms := range map[string][]string{"own": {"scram-sha-512"}, "clients": {"scram-sha-256", "scram-sha-512"}} {
		prefix := "listener.name." + listener + "."
		lines = append(lines, prefix+"ssl.keystore.type=PEM", prefix+"ssl.keystore.location="+store)
		for _, m := range mechanisms {
			lines = append(lines, prefix+m+".sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;")
			if listener == "clients" {
				lines = append(lines, fmt.Sprintf("%s%s.connections.max.reauth.ms=%d", prefix, m, scramSession.Milliseconds()))
			}
		}
	}
	return lines
}

func (s *scramCluster) sha256(user, password string) sasl.Mechanism {
	return scram.Auth{User: user, Pass: s.secret(password)}.AsSha256Mechanism()
}

func (s *scramCluster) sha512(user, password string) sasl.Mechanism {
	return scram.Auth{User: user, Pass: s.secret(password)}.AsSha512Mechanism()
}

func (s *scramCluster) tls() *tls.Config {
	return &tls.Config{RootCAs: s.ca.pool, Certificates: []tls.Certificate{s.cert}}
}

func (s *scramCluster) options(m sasl.Mechanism) []kgo.Opt {
	return []kgo.Opt{kgo.DialTLSConfig(s.tls()), kgo.SASL(m)}
}

func (s *scramCluster) client(t *testing.T, m sasl.Mechanism, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(append(clientOpts(s.c.bootstrap()), s.options(m)...), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// grant gives the writer rights on every broker.
func (s *scramCluster) grant(ctx context.Context, kind kmsg.ACLResourceType, name string, operations ...kmsg.ACLOperation) {
	s.t.Helper()
	for _, op := range operations {
		a := aclOn(name)
		a.ResourceType, a.Operation = kind, op
		for _, n := range s.c.nodes {
			acl(s.t, ctx, n, a)
		}
	}
}

// javaSettings are the writer's, for a Java client.
func (s *scramCluster) javaSettings() []string {
	return []string{"security.protocol=SASL_SSL", "sasl.mechanism=SCRAM-SHA-512",
		fmt.Sprintf(`sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="writer" password="%s";`, s.secret("writer")),
		"ssl.truststore.type=PEM", "ssl.truststore.location=" + filepath.Join(s.dir, "ca.pem"),
		"ssl.keystore.type=PEM", "ssl.keystore.location=" + filepath.Join(s.dir, "client.pem")}
}

// authentications counts what clients' connections do.
type authentications struct{ connects, disconnects, answers atomic.Int64 }

func (a *authentications) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err == nil {
		a.connects.Add(1)
	}
}

func (a *authentications) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) { a.disconnects.Add(1) }

// OnBrokerWrite counts SaslAuthenticate: SCRAM has two each time.
func (a *authentications) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if err == nil && key == int16(kmsg.SASLAuthenticate) {
		a.answers.Add(1)
	}
}

// mechanisms lets clients in by either mechanism, and nobody with a wrong password
// or without a certificate.
func (s *scramCluster) mechanisms(ctx context.Context) {
	s.t.Helper()
	for name, m := range map[string]sasl.Mechanism{"SCRAM-SHA-256": s.sha256("admin", "admin-256"), "SCRAM-SHA-512": s.sha512("admin", "admin-512")} {
		cl := s.client(s.t, m, kgo.ConsumeTopics("small"), kgo.FetchMaxWait(200*time.Millisecond))
		if err := sendAs(ctx, cl, "small", name); err != nil {
			s.t.Fatalf("produce with %s: %v", name, err)
		}
		for found := false; !found; {
			fetches := cl.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				s.t.Fatalf("consume with %s: %v", name, err)
			}
			fetches.EachRecord(func(r *kgo.Record) { found = found || string(r.Value) == name })
		}
	}
	// The passwords of the two mechanisms are different.
	for name, m := range map[string]sasl.Mechanism{"SCRAM-SHA-256": s.sha256("admin", "admin-512"), "SCRAM-SHA-512": s.sha512("admin", "admin-256"),
		"of somebody unknown": s.sha512("stranger", "admin-512")} {
		if err := s.client(s.t, m, kgo.RequestRetries(0)).Ping(ctx); !errors.Is(err, kerr.SaslAuthenticationFailed) {
			s.t.Errorf("a wrong password with %s: %v, want %v", name, err, kerr.SaslAuthenticationFailed)
		}
	}
	bare, err := kgo.NewClient(append(clientOpts(s.c.bootstrap()), kgo.DialTLSConfig(&tls.Config{RootCAs: s.ca.pool}), kgo.SASL(s.sha512("admin", "admin-512")), kgo.RequestRetries(0))...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer bare.Close()
	short, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	if err := bare.Ping(short); err == nil {
		s.t.Error("a client without a certificate was let in")
	}
}

// denied asks for what the writer may not do, by both clients.
func (s *scramCluster) denied(ctx context.Context) {
	s.t.Helper()
	if err := sendAs(ctx, s.client(s.t, s.sha512("writer", "writer")), "secret", "spy"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		s.t.Errorf("franz-go writes to a topic that is denied: %v", err)
	}
	out, err := kafka(s.t).tool(ctx, s.dir, "org.apache.kafka.tools.VerifiableProducer", "--bootstrap-server", strings.Join(s.c.bootstrap(), ","),
		"--topic", "secret", "--max-messages", "1", "--acks", "-1", "--command-config", idempotentConfig(s.t, s.dir, s.javaSettings()...))
	if strings.Contains(out, "producer_send_success") || !strings.Contains(out, "TopicAuthorizationException") {
		s.t.Errorf("Java writes to a topic that is denied: %v\n%s", err, out)
	}
}

// leader is the node that leads a topic's first partition.
func (s *scramCluster) leader(ctx context.Context, topic string) int {
	s.t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = &topic
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, s.client(s.t, s.sha512("admin", "admin-512")))
	if err != nil {
		s.t.Fatal(err)
	}
	return int(resp.Topics[0].Partitions[0].Leader)
}

// killLeader kills that node, proxy and broker, and brings it back when during
// returns.
func (s *scramCluster) killLeader(ctx context.Context, topic string, during func(killed time.Time)) {
	s.t.Helper()
	victim, killed := s.leader(ctx, topic), time.Now()
	s.c.killNode(victim)
	s.t.Logf("killed node %d, which leads %s/0", victim, topic)
	during(killed)
	s.c.restartNode(victim)
	s.c.waitHealthy()
}

// javaReads has Kafka's own consumer read all records, as the writer.
func (s *scramCluster) javaReads(ctx context.Context, topic string, count int) {
	s.t.Helper()
	config := filepath.Join(s.dir, "consumer.properties")
	writeSecret(s.t, config, []byte(strings.Join(s.javaSettings(), "\n")+"\n"))
	out, err := kafka(s.t).tool(ctx, s.dir, "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", strings.Join(s.c.bootstrap(), ","),
		"--topic", topic, "--group", "java-group", "--from-beginning", "--max-messages", fmt.Sprint(count), "--timeout-ms", "60000", "--command-config", config)
	if err != nil {
		s.t.Fatal(err)
	}
	values := strings.Fields(out)
	slices.Sort(values)
	if n := len(slices.Compact(values)); n != count {
		s.t.Errorf("Java read %d different records of %d", n, count)
	}
}

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// TestAuthorization puts Lockstep in front of brokers that authenticate clients
// and have Kafka's own authorizer: a client gets what its ACLs say, and Kafka's
// own errors for the rest, though it is Lockstep that writes.
func TestAuthorization(t *testing.T) {
	ports := map[int]int{}
	c := newClusterWith(t, clusterOpts{
		prepare: func(t *testing.T, n *node) { secure(n.broker, ports[n.id]) },
		settings: func(n *node) []string { // first, then prepare
			ports[n.id] = freePort(t)
			return []string{"broker.client_server=" + loopback(ports[n.id])}
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	admin, writer := c.as(t, "admin"), c.as(t, "writer")
	for _, topic := range []string{"granted", "secret"} {
		if err := createAs(ctx, admin, topic); err != nil {
			t.Fatalf("create %s as admin: %v", topic, err)
		}
	}
	grant := kmsg.NewCreateACLsRequestCreation()
	grant.ResourceType, grant.ResourceName, grant.ResourcePatternType = kmsg.ACLResourceTypeTopic, "granted", kmsg.ACLResourcePatternTypeLiteral
	grant.Principal, grant.Host, grant.PermissionType = "User:writer", "*", kmsg.ACLPermissionTypeAllow
	grant.Operation = kmsg.ACLOperationWrite
	for _, n := range c.nodes {
		acl(t, ctx, n, grant)
	}
	waitFor(t, "the right to write", 60*time.Second, func(ctx context.Context) error {
		return sendAs(ctx, writer, "granted", "first")
	})
	denied := kerr.TopicAuthorizationFailed
	for what, do := range map[string]func() error{
		"produce":           func() error { return sendAs(ctx, writer, "secret", "spy") },
		"create a topic":    func() error { return createAs(ctx, writer, "mine") },
		"delete a topic":    func() error { return deleteAs(ctx, writer, "granted") },
		"add partitions":    func() error { return growAs(ctx, writer, "granted", 5) },
		"alter settings":    func() error { return alterAs(ctx, writer, "granted") },
		"describe settings": func() error { return describeAs(ctx, writer, "granted") },
		"delete records":    func() error { return deleteRecordsAs(ctx, writer, "granted", 0) },
	} {
		if err := do(); !errors.Is(err, denied) {
			t.Errorf("%s as writer: %v, want %v", what, err, denied)
		}
	}
	for what, do := range map[string]func() error{
		"alter settings":    func() error { return alterAs(ctx, admin, "granted") },
		"describe settings": func() error { return describeAs(ctx, admin, "granted") },
		"add partitions":    func() error { return growAs(ctx, admin, "granted", 5) },
		"delete records":    func() error { return deleteRecordsAs(ctx, admin, "granted", 0) },
		"produce":           func() error { return sendAs(ctx, admin, "secret", "known") },
	} {
		if err := do(); err != nil {
			t.Errorf("%s as admin: %v", what, err)
		}
	}
	// Nobody: the broker does not talk to who did not say its name.
	req := kmsg.NewPtrCreateTopicsRequest()
	req.SetVersion(5)
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = "nobodys", 1, 1
	req.Topics = append(req.Topics, rt)
	if resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, c.nodes[0].kafkaAddr(), req); err == nil && resp.Topics[0].ErrorCode == 0 {
		t.Error("a client that did not authenticate created a topic")
	}
	for _, n := range c.nodes {
		// Asked directly, as Lockstep itself. A follower's broker gets the
		// record after the acknowledgement; the one that was refused never.
		waitFor(t, fmt.Sprintf("one record of secret on the broker of node %d", n.id), 30*time.Second, func(ctx context.Context) error {
			end, err := endOffset(ctx, n.broker.addr(), "secret", 0)
			if err == nil && end != 1 {
				err = fmt.Errorf("the log ends at %d", end)
			}
			return err
		})
	}
	if err := deleteAs(ctx, admin, "granted"); err != nil {
		t.Errorf("delete a topic as admin: %v", err)
	}
	c.verify()
}

// secure gives a broker a listener where clients authenticate, each user with its
// name for a password, and an authorizer. Who comes by the other listener may do
// everything.
func secure(b *broker, port int, users ...string) {
	logins := ""
	for _, user := range append([]string{"admin", "writer"}, users...) {
		logins += fmt.Sprintf(" user_%[1]s=%[1]q", user)
	}
	b.settings = []string{
		fmt.Sprintf("listeners=PLAINTEXT://%s,CONTROLLER://%s,CLIENTS://%s", b.addr(), loopback(b.controllerPort), loopback(port)),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://%s,CLIENTS://%s", b.addr(), loopback(port)),
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENTS:SASL_PLAINTEXT",
		"listener.name.clients.sasl.enabled.mechanisms=PLAIN",
		"listener.name.clients.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required" + logins + ";",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS;User:admin",
	}
}

// as is a client that authenticates through the proxies.
func (c *cluster) as(t *testing.T, user string) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()), kgo.SASL(plain.Auth{User: user, Pass: user}.AsMechanism()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func acl(t *testing.T, ctx context.Context, n *node, creation kmsg.CreateACLsRequestCreation) {
	t.Helper()
	req := kmsg.NewPtrCreateACLsRequest()
	req.SetVersion(2)
	req.Creations = append(req.Creations, creation)
	resp, err := rawCall[*kmsg.CreateACLsResponse](ctx, n.broker.addr(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Results[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
}

func sendAs(ctx context.Context, cl *kgo.Client, topic, value string) error {
	return cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr()
}

func createAs(ctx context.Context, cl *kgo.Client, topic string) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 20_000
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, 1, 3
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

func deleteAs(ctx context.Context, cl *kgo.Client, topic string) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = 20_000
	req.TopicNames = []string{topic}
	t := kmsg.NewDeleteTopicsRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

func growAs(ctx context.Context, cl *kgo.Client, topic string, total int32) error {
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.TimeoutMillis = 20_000
	t := kmsg.NewCreatePartitionsRequestTopic()
	t.Topic, t.Count = topic, total
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

func alterAs(ctx context.Context, cl *kgo.Client, topic string) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	res := kmsg.NewIncrementalAlterConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	cfg := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	cfg.Name, cfg.Value = "retention.ms", kmsg.StringPtr("900000000")
	res.Configs = append(res.Configs, cfg)
	req.Resources = append(req.Resources, res)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Resources[0].ErrorCode)
}

func describeAs(ctx context.Context, cl *kgo.Client, topic string) error {
	req := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	req.Resources = append(req.Resources, res)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Resources[0].ErrorCode)
}

func deleteRecordsAs(ctx context.Context, cl *kgo.Client, topic string, offset int64) error {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 20_000
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic = topic
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Offset = offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

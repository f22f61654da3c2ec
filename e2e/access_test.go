//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAccessReplicated alters ACLs and quotas through one proxy, while another
// node is down and while a broker is: in the end all three brokers, asked
// directly, list the same, but for what an operator gave to one of them. Who may
// not is refused. A quota of everybody does not slow down what is committed.
func TestAccessReplicated(t *testing.T) {
	ports := map[int]int{}
	c := newClusterWith(t, clusterOpts{
		prepare: func(t *testing.T, n *node) { secure(n.broker, ports[n.id]) },
		settings: func(n *node) []string { // first, then prepare
			ports[n.id] = freePort(t)
			return []string{"broker.client_server=" + loopback(ports[n.id])}
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	admin, writer := c.as(t, "admin"), c.as(t, "writer")
	via := c.node(1)
	for _, topic := range []string{"granted", "secret"} {
		if err := createAs(ctx, admin, topic); err != nil {
			t.Fatalf("create %s as admin: %v", topic, err)
		}
	}
	operators := aclOn("operators")
	acl(t, ctx, via, operators)
	everybody := quotaChange("producer_byte_rate", 1000, "user", "")
	byHand := quotaChange("consumer_byte_rate", 5_000_000, "user", "writer")

	for what, code := range map[string]int16{
		"create ACLs":    codeOf(createACLsAs(ctx, writer, via, aclOn("mine"))),
		"delete ACLs":    codeOf(deleteACLsAs(ctx, writer, via, "granted")),
		"alter quotas":   codeOf(alterQuotasAs(ctx, writer, via, byHand)),
		"describe ACLs":  describedCode(ctx, writer, via),
		"without a user": describedCode(ctx, c.unknown(t), via),
	} {
		want := kerr.ClusterAuthorizationFailed.Code
		if what == "without a user" {
			want = -1 // the broker hangs up
		}
		if code != want {
			t.Errorf("%s as writer: code %d, want %d", what, code, want)
		}
	}
	if err := createACLsAs(ctx, admin, via, aclOn("granted"), aclOn("passing")); err != nil {
		t.Fatal(err)
	}
	if err := alterQuotasAs(ctx, admin, via, everybody, byHand); err != nil {
		t.Fatal(err)
	}
	c.brokersList("granted", "passing")
	waitFor(t, "the right to write", 60*time.Second, func(ctx context.Context) error {
		return sendAs(ctx, writer, "granted", "first")
	})
	if err := sendAs(ctx, writer, "secret", "spy"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("produce to another topic: %v", err)
	}

	// One node misses a creation, a deletion and changes of quotas; after that
	// one broker alone misses a deletion.
	c.killNode(3)
	if err := createACLsAs(ctx, admin, via, aclOn("later")); err != nil {
		t.Fatal(err)
	}
	if err := deleteACLsAs(ctx, admin, via, "passing"); err != nil {
		t.Fatal(err)
	}
	gone := quotaChange("consumer_byte_rate", 0, "user", "writer")
	gone.Ops[0].Remove = true
	if err := alterQuotasAs(ctx, admin, via, gone, quotaChange("request_percentage", 150.5, "user", "writer", "client-id", "")); err != nil {
		t.Fatal(err)
	}
	c.restartNode(3)
	c.waitHealthy()
	c.brokersList("granted", "later")
	c.node(2).broker.kill9(t)
	if err := deleteACLsAs(ctx, admin, via, "later"); err != nil {
		t.Fatal(err)
	}
	c.node(2).broker.restart(t)
	c.waitHealthy()
	c.brokersList("granted")

	// A quota of 1000 bytes a second for everybody.
	begin := time.Now()
	for range 10 {
		if err := sendAs(ctx, admin, "secret", strings.Repeat("x", 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	c.waitBrokersHold(c.nodes, "secret", map[int32]int64{0: 10})
	took := time.Since(begin).Round(time.Millisecond)
	t.Logf("1 MB under a quota of 1 kB/s for everybody: on every broker after %s", took)
	if took > 15*time.Second {
		t.Errorf("a quota of clients slowed down what is committed: 1 MB took %s", took)
	}

	c.accessTools(ctx, via)
	if err := deleteACLsAs(ctx, admin, via, "operators"); err != nil {
		t.Fatal(err)
	}
	c.brokersList("granted", "by-tool")
	if got, err := brokerACLs(ctx, via); err != nil || slices.Contains(got, showACL(operators)) {
		t.Errorf("an ACL of this broker only, deleted through its node: %v, %v", got, err)
	}
	c.verify()
}

// accessTools are Apache Kafka's own.
func (c *cluster) accessTools(ctx context.Context, via *node) {
	c.t.Helper()
	config := filepath.Join(via.dir, "admin.properties")
	text := "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n" +
		`sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="admin" password="admin";` + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	tool := func(class string, args ...string) string {
		c.t.Helper()
		out, err := kafka(c.t).tool(ctx, via.dir, class, append([]string{"--bootstrap-server", via.kafkaAddr(), "--command-config", config}, args...)...)
		if err != nil {
			c.t.Fatal(err)
		}
		return out
	}
	acls := "org.apache.kafka.tools.AclCommand"
	tool(acls, "--add", "--allow-principal", "User:writer", "--operation", "Write", "--topic", "by-tool")
	if out := tool(acls, "--list", "--topic", "by-tool"); !strings.Contains(out, "principal=User:writer") {
		c.t.Errorf("kafka-acls --list says\n%s", out)
	}
	tool(acls, "--add", "--deny-principal", "User:writer", "--operation", "Read", "--group", "by-tool")
	tool(acls, "--remove", "--force", "--group", "by-tool")
	tool("kafka.admin.ConfigCommand", "--alter", "--entity-type", "clients", "--entity-name", "tool", "--add-config", "consumer_byte_rate=777000")
	if out := tool("kafka.admin.ConfigCommand", "--describe", "--entity-type", "clients", "--entity-name", "tool"); !strings.Contains(out, "777000") {
		c.t.Errorf("kafka-configs --describe says\n%s", out)
	}
	c.brokersList("granted", "by-tool")
}

// aclOn lets the writer write to a topic.
func aclOn(topic string) kmsg.CreateACLsRequestCreation {
	a := kmsg.NewCreateACLsRequestCreation()
	a.ResourceType, a.ResourceName, a.ResourcePatternType = kmsg.ACLResourceTypeTopic, topic, kmsg.ACLResourcePatternTypeLiteral
	a.Principal, a.Host, a.Operation, a.PermissionType = "User:writer", "*", kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeAllow
	return a
}

func showACL(a kmsg.CreateACLsRequestCreation) string {
	return fmt.Sprint(a.ResourceType, a.ResourceName, a.ResourcePatternType, a.Principal, a.Host, a.Operation, a.PermissionType)
}

// ask sends a request to one node, as the client.
func ask[R kmsg.Response](ctx context.Context, cl *kgo.Client, via *node, req kmsg.Request) (R, error) {
	var none R
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	if err := cl.Ping(ctx); err != nil {
		return none, err // the client learns where the nodes are
	}
	resp, err := cl.Broker(via.id).Request(ctx, req)
	if err != nil {
		return none, err
	}
	return resp.(R), nil
}

func createACLsAs(ctx context.Context, cl *kgo.Client, via *node, acls ...kmsg.CreateACLsRequestCreation) error {
	req := kmsg.NewPtrCreateACLsRequest()
	req.Creations = acls
	resp, err := ask[*kmsg.CreateACLsResponse](ctx, cl, via, req)
	if err != nil {
		return err
	}
	for _, r := range resp.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return err
		}
	}
	return nil
}

// deleteACLsAs deletes all ACLs on a topic: one.
func deleteACLsAs(ctx context.Context, cl *kgo.Client, via *node, topic string) error {
	req := kmsg.NewPtrDeleteACLsRequest()
	f := kmsg.NewDeleteACLsRequestFilter()
	f.ResourceType, f.ResourceName, f.ResourcePatternType = kmsg.ACLResourceTypeTopic, &topic, kmsg.ACLResourcePatternTypeLiteral
	f.Operation, f.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	req.Filters = append(req.Filters, f)
	resp, err := ask[*kmsg.DeleteACLsResponse](ctx, cl, via, req)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(resp.Results[0].ErrorCode); err != nil {
		return err
	}
	if n := len(resp.Results[0].MatchingACLs); n != 1 {
		return fmt.Errorf("%d ACLs on %s were deleted, want 1", n, topic)
	}
	return nil
}

// quotaChange sets a key of an entity: type, name and so on, "" for the default.
func quotaChange(key string, value float64, parts ...string) kmsg.AlterClientQuotasRequestEntry {
	e := kmsg.NewAlterClientQuotasRequestEntry()
	for i := 0; i < len(parts); i += 2 {
		part := kmsg.NewAlterClientQuotasRequestEntryEntity()
		if part.Type = parts[i]; parts[i+1] != "" {
			part.Name = &parts[i+1]
		}
		e.Entity = append(e.Entity, part)
	}
	op := kmsg.NewAlterClientQuotasRequestEntryOp()
	op.Key, op.Value = key, value
	e.Ops = append(e.Ops, op)
	return e
}

func alterQuotasAs(ctx context.Context, cl *kgo.Client, via *node, entries ...kmsg.AlterClientQuotasRequestEntry) error {
	req := kmsg.NewPtrAlterClientQuotasRequest()
	req.Entries = entries
	resp, err := ask[*kmsg.AlterClientQuotasResponse](ctx, cl, via, req)
	if err != nil {
		return err
	}
	for _, e := range resp.Entries {
		if err := kerr.ErrorForCode(e.ErrorCode); err != nil {
			return err
		}
	}
	return nil
}

// codeOf is Kafka's code of an error, -1 if it is none of Kafka's.
func codeOf(err error) int16 {
	var ke *kerr.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ke):
		return ke.Code
	}
	return -1
}

func allACLs() *kmsg.DescribeACLsRequest {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.SetVersion(3)
	req.ResourceType, req.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	return req
}

func describedCode(ctx context.Context, cl *kgo.Client, via *node) int16 {
	resp, err := ask[*kmsg.DescribeACLsResponse](ctx, cl, via, allACLs())
	if err != nil {
		return codeOf(err)
	}
	return resp.ErrorCode
}

// unknown is a client that does not say who it is.
func (c *cluster) unknown(t *testing.T) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(clientOpts(c.bootstrap()), kgo.RequestRetries(0))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// brokerACLs asks a node's broker directly, as Lockstep itself.
func brokerACLs(ctx context.Context, n *node) ([]string, error) {
	resp, err := rawCall[*kmsg.DescribeACLsResponse](ctx, n.broker.addr(), allACLs())
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range resp.Resources {
		for _, a := range r.ACLs {
			out = append(out, fmt.Sprint(r.ResourceType, r.ResourceName, r.ResourcePatternType, a.Principal, a.Host, a.Operation, a.PermissionType))
		}
	}
	slices.Sort(out)
	return out, kerr.ErrorForCode(resp.ErrorCode)
}

// brokerQuotas asks a node's broker directly.
func brokerQuotas(ctx context.Context, n *node) ([]string, error) {
	req := kmsg.NewPtrDescribeClientQuotasRequest()
	req.SetVersion(1)
	resp, err := rawCall[*kmsg.DescribeClientQuotasResponse](ctx, n.broker.addr(), req)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range resp.Entries {
		entity := ""
		for _, p := range e.Entity {
			name := "<default>"
			if p.Name != nil {
				name = *p.Name
			}
			entity += p.Type + "=" + name + " "
		}
		for _, v := range e.Values {
			out = append(out, fmt.Sprint(entity, v.Key, "=", v.Value))
		}
	}
	slices.Sort(out)
	return out, kerr.ErrorForCode(resp.ErrorCode)
}

// brokersList waits until every broker lists the ACLs on these topics and no
// others, but for what an operator gave to it, and the same quotas as the others.
func (c *cluster) brokersList(topics ...string) {
	c.t.Helper()
	var want []string
	for _, topic := range topics {
		want = append(want, showACL(aclOn(topic)))
	}
	slices.Sort(want)
	var quotas []string
	waitFor(c.t, "the same ACLs and quotas on all brokers", 60*time.Second, func(ctx context.Context) error {
		quotas = nil
		for _, n := range c.nodes {
			got, err := brokerACLs(ctx, n)
			if err != nil {
				return err
			}
			got = slices.DeleteFunc(got, func(a string) bool { return a == showACL(aclOn("operators")) })
			if !slices.Equal(got, want) {
				return fmt.Errorf("broker of node %d has %q, want %q", n.id, got, want)
			}
			q, err := brokerQuotas(ctx, n)
			if err != nil {
				return err
			}
			if quotas != nil && !slices.Equal(q, quotas) {
				return fmt.Errorf("broker of node %d has the quotas %q, the one before %q", n.id, q, quotas)
			}
			if quotas = q; len(q) == 0 {
				return fmt.Errorf("broker of node %d has no quota", n.id)
			}
		}
		return nil
	})
	c.t.Logf("quotas: %q", quotas)
}

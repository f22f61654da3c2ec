//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestAuthorizationMatrix asks every API that the proxy advertises, in its oldest
// and its newest version, as every principal: of a broker with Kafka's
// StandardAuthorizer, and of a proxy in front of another one. The answers must be
// the same, but for what docs/protocol.md lists (and for the words of errors).
func TestAuthorizationMatrix(t *testing.T) {
	m := newAuthMatrix(t)
	begin := time.Now()
	only := os.Getenv("E2E_API") // one API alone, to look for a cause
	for _, p := range m.principals {
		m.connect(p)
		for _, api := range m.served {
			if only != "" && !strings.EqualFold(only, kmsg.NameForKey(api.ApiKey)) {
				continue
			}
			for _, v := range slices.Compact([]int16{api.MinVersion, api.MaxVersion}) {
				m.ask(p, api.ApiKey, v)
			}
		}
	}
	for _, api := range m.served {
		answers := m.answers[api.ApiKey]
		if only == "" && len(answers) < 2 && !needsNoRight[kmsg.Key(api.ApiKey)] {
			t.Errorf("%s: all principals are answered alike: it shows nothing", kmsg.NameForKey(api.ApiKey))
		}
	}
	for _, row := range m.doc.rights {
		if len(row.seen) == 0 && (only == "" || strings.EqualFold(only, row.api)) {
			t.Errorf("listed in docs/protocol.md, and no longer a difference: line %d: %s, %s: %s", row.line, row.api, row.request, row.field)
		}
	}
	t.Logf("%d principals, %d APIs, %d requests to each side in %s: %d unlike, %d had to be repeated",
		len(m.principals), len(m.served), m.sent, time.Since(begin).Round(100*time.Millisecond), m.unlike, m.repeated)
}

// needsNoRight has the APIs that answer all who have logged in alike.
var needsNoRight = map[kmsg.Key]bool{kmsg.ApiVersions: true, kmsg.SASLHandshake: true, kmsg.SASLAuthenticate: true}

// authMatrix is the comparison. All of it is on the test's goroutine but the two
// calls of an exchange.
type authMatrix struct {
	t          *testing.T
	ctx        context.Context
	doc        *protocolDoc
	sides      [2]*side
	served     []kmsg.ApiVersionsResponseApiKey
	principals []*principal
	admin      [2]*loginConn
	as         [2]*loginConn // the principal whose turn it is
	counts     map[string]int32
	answers    map[int16]map[string]bool // of the broker, by API, to those who have logged in

	sent, unlike, repeated int
}

func newAuthMatrix(t *testing.T) *authMatrix {
	m := &authMatrix{t: t, doc: readProtocolDoc(t, "../docs/protocol.md"), principals: principals(),
		counts: map[string]int32{}, answers: map[int16]map[string]bool{}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	m.ctx = ctx
	var users []string
	for _, p := range m.principals {
		users = append(users, p.name)
	}
	ports := map[int]int{1: freePort(t), 11: freePort(t)} // by the brokers' ids
	_, n := startPair(t, runDir(t), func(b *broker) []string {
		secure(b, ports[b.nodeID], users[1:]...)
		if b.nodeID == 1 { // its own: the other's topics are the proxy's to make
			return append(b.settings, "auto.create.topics.enable=true")
		}
		return b.settings
	}, "topics.auto_create_topics_enable=true", "broker.client_server="+loopback(ports[11]))
	m.sides = [2]*side{
		{name: "kafka", addr: loopback(ports[1]), normal: normal{port: ports[1]}},
		{name: "lockstep", addr: n.kafkaAddr(), normal: normal{port: n.kafkaPort}},
	}
	for i, s := range m.sides {
		m.admin[i] = &loginConn{side: s, user: "admin"}
		t.Cleanup(m.admin[i].close)
	}
	resp, err := rawCall[*kmsg.ApiVersionsResponse](ctx, m.sides[1].addr, apiVersionsRequest(3))
	if err != nil {
		t.Fatal(err)
	}
	m.served = resp.ApiKeys
	slices.SortFunc(m.served, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey) - int(b.ApiKey) })
	for i := range m.served {
		if m.served[i].ApiKey == int16(kmsg.Produce) {
			m.served[i].MinVersion = 3 // the older ones are advertised for old clients' sake, and refused
		}
	}
	m.prepare()
	return m
}

// connect makes the connections of one principal; those before it end.
func (m *authMatrix) connect(p *principal) {
	for i, s := range m.sides {
		if m.as[i] != nil {
			m.as[i].close()
		}
		m.as[i] = &loginConn{side: s, user: p.name, how: p.how}
		m.t.Cleanup(m.as[i].close)
	}
}

// ask sends what the matrix has of one API and version.
func (m *authMatrix) ask(p *principal, key, version int16) {
	script := authScripts[key]
	if script == nil {
		m.t.Errorf("%s is advertised, and the matrix has no request of it", kmsg.NameForKey(key))
		return
	}
	s := &authScript{m: m, key: key, version: version}
	script(s)
	if len(s.list) == 0 {
		m.t.Errorf("%s %d: the matrix has no request of it", kmsg.NameForKey(key), version)
	}
	for _, c := range s.list {
		m.run(p, c)
	}
}

// run compares the answers to one request, and puts right what it has changed.
func (m *authMatrix) run(p *principal, c *authCase) {
	if c.fresh || p.how != loggedIn {
		m.connect(p)
	}
	m.sent++
	out := m.exchange(m.as, c.exchange)
	m.halfway(p, c, &out)
	diffs := m.unlisted(p, c, out)
	for end := time.Now().Add(10 * time.Second); unsureToLead(diffs) && time.Now().Before(end); {
		m.repeated++
		m.one(m.as, 1, c.exchange, &out)
		diffs = m.unlisted(p, c, out)
	}
	for _, d := range diffs {
		m.unlike++
		m.t.Errorf("as %s: %v", p.name, d)
	}
	if p.how == loggedIn {
		if m.answers[c.key] == nil {
			m.answers[c.key] = map[string]bool{}
		}
		m.answers[c.key][fmt.Sprint(c.name, c.version, out[0].state, codesOf(m.describe(0, out[0])))] = true
	}
	if c.mend != nil && slices.ContainsFunc(out[:], func(o diffOutcome) bool { return o.resp != nil }) {
		if err := c.mend(p, out); err != nil {
			m.t.Fatalf("as %s: after %s %d, %s: %v", p.name, kmsg.NameForKey(c.key), c.version, c.name, err)
		}
	}
}

// halfway makes a closed connection of what Kafka says to who is in the middle of
// logging in, which is an error and then the end: nothing may be done for them.
func (m *authMatrix) halfway(p *principal, c *authCase, out *[2]diffOutcome) {
	if p.how != halfLoggedIn || out[0].resp == nil || c.key == int16(kmsg.SASLHandshake) || c.key == int16(kmsg.SASLAuthenticate) {
		return
	}
	told := codesOf(m.describe(0, out[0]))
	refused := strings.Contains(told, "ILLEGAL_SASL_STATE") || c.key == int16(kmsg.Metadata) // which has no place for it
	if !refused || strings.Contains(told, "]ErrorCode=NONE") || strings.Contains(told, "Brokers[") {
		m.t.Errorf("as %s: %s %d, %s: kafka answers %s", p.name, kmsg.NameForKey(c.key), c.version, c.name, told)
	}
	out[0] = diffOutcome{state: "closed"}
}

func (m *authMatrix) exchange(as [2]*loginConn, x *exchange) [2]diffOutcome {
	var out [2]diffOutcome
	var wg sync.WaitGroup
	for i := range m.sides {
		wg.Go(func() { m.one(as, i, x, &out) })
	}
	wg.Wait()
	return out
}

func (m *authMatrix) one(as [2]*loginConn, i int, x *exchange, out *[2]diffOutcome) {
	var err error
	if out[i], err = as[i].send(m.ctx, x); err != nil {
		m.t.Errorf("%s as %s: %s %d, %s: %v", m.sides[i].name, as[i].user, kmsg.NameForKey(x.key), x.version, x.name, err)
	}
}

// unlisted are the differences that count. Words are for people, and what is not
// a matter of rights is TestProtocolDifferences' to compare.
func (m *authMatrix) unlisted(p *principal, c *authCase, out [2]diffOutcome) []difference {
	diffs := differences(kmsg.NameForKey(c.key), c.version, c.name, m.sides[0].normal, m.sides[1].normal, out[0], out[1])
	return slices.DeleteFunc(diffs, func(d difference) bool {
		if strings.HasSuffix(d.field, "ErrorMessage") || c.same != nil && c.same(d) || m.doc.lists(d, false) {
			return true
		}
		d.request = p.name + ": " + d.request
		return slices.ContainsFunc(m.doc.rights, func(row *intended) bool {
			if !row.matches(d) {
				return false
			}
			row.seen[d.version]++
			return true
		})
	})
}

// adminCall asks one side as a super user.
func adminCall[R kmsg.Response](m *authMatrix, i int, version int16, req kmsg.Request) (R, error) {
	var none R
	x := &exchange{name: "preparation", key: req.Key(), version: version, build: func(*side) kmsg.Request { return req }}
	out, err := m.admin[i].send(m.ctx, x)
	if err != nil {
		return none, err
	}
	resp, ok := out.resp.(R)
	if !ok {
		return none, fmt.Errorf("%s: %s %s", m.sides[i].name, kmsg.NameForKey(req.Key()), out.state)
	}
	return resp, nil
}

// onBoth does something to both sides as a super user, until it is done.
func (m *authMatrix) onBoth(do func(i int) error) error {
	var wg sync.WaitGroup
	var errs [2]error
	for i, s := range m.sides {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(m.ctx, 30*time.Second)
			defer cancel()
			if err := waitUntil(ctx, 5*time.Millisecond, func(context.Context) error { return do(i) }); err != nil {
				errs[i] = fmt.Errorf("%s: %w", s.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// prepare makes the topics, groups and ACLs.
func (m *authMatrix) prepare() {
	var acls []kmsg.CreateACLsRequestCreation
	for _, p := range m.principals {
		acls = append(acls, p.grants...)
	}
	acls = append(acls, aclFor(aclGone))
	err := m.onBoth(func(i int) error {
		if err := m.coordinated(i); err != nil {
			return err
		}
		md, err := adminCall[*kmsg.MetadataResponse](m, i, 9, kmsg.NewPtrMetadataRequest())
		if err != nil {
			return err
		}
		m.sides[i].normal.clusterID = *md.ClusterID
		return m.createACLs(i, acls...)
	})
	for _, name := range []string{ownName, otherName} {
		for _, suffix := range []string{"", "-gone", "-grow", "-alter"} {
			err = errors.Join(err, m.createTopic(name+suffix))
		}
		m.counts[name+"-grow"] = 1
	}
	err = errors.Join(err, m.recommit(ownName, otherName, ownName+"-doomed", otherName+"-doomed"))
	err = errors.Join(err, m.onBoth(func(i int) error { return m.listed(i, len(acls)) }))
	if err != nil {
		m.t.Fatal(err)
	}
}

// coordinated has the broker make what it keeps groups and transactions in, and
// fetch its first producer ids.
func (m *authMatrix) coordinated(i int) error {
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorKey = ownName
	if _, err := adminCall[*kmsg.FindCoordinatorResponse](m, i, 1, find); err != nil {
		return err
	}
	find.CoordinatorType, find.CoordinatorKey = 1, ownName
	resp, err := adminCall[*kmsg.FindCoordinatorResponse](m, i, 1, find)
	if err != nil || i == 1 {
		return err
	}
	producer, err := adminCall[*kmsg.InitProducerIDResponse](m, i, 0, kmsg.NewPtrInitProducerIDRequest())
	if err != nil {
		return err
	}
	return errors.Join(kerr.ErrorForCode(resp.ErrorCode), kerr.ErrorForCode(producer.ErrorCode))
}

// describe is one side's answer as a tree.
func (m *authMatrix) describe(i int, out diffOutcome) *tree {
	if out.resp == nil {
		return leaf("%s", out.state)
	}
	return m.sides[i].normal.describe("", reflect.ValueOf(out.resp))
}

// codesOf returns the error codes and the rights in an answer, and who is listed.
func codesOf(t *tree) string {
	var out strings.Builder
	var walk func(path string, t *tree)
	walk = func(path string, t *tree) {
		for _, name := range slices.Sorted(maps.Keys(t.fields)) {
			f := t.fields[name]
			if f.fields == nil && (strings.HasSuffix(name, "ErrorCode") || strings.HasSuffix(name, "Operations")) || strings.HasPrefix(name, "[") {
				fmt.Fprintf(&out, "%s%s=%s ", path, name, f.summary())
			}
			walk(path+name, f)
		}
	}
	walk("", t)
	return out.String()
}

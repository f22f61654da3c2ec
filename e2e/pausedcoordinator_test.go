//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestPausedCoordinator stops the coordinating proxy (SIGSTOP) when its broker
// has accepted a member's commit and the proxy has not heard of it, lets another
// node take the group over and commit further, and continues the first: the
// commit that it then proposes must change nothing. Nor may the member of
// before, whom the first broker still remembers, when that node coordinates the
// group again.
func TestPausedCoordinator(t *testing.T) {
	relays := map[*broker]*relay{}
	c := newClusterVia(t, func(b *broker) string {
		relays[b] = startRelay(t, b.addr())
		return relays[b].addr()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const topic, group = "paused", "paused-group"
	c.createTopic(c.node(1), topic, 1)
	first, old := joinAtCoordinator(t, ctx, c, group)
	if code := old.commit(t, topic, 10); code != 0 {
		t.Fatalf("the first commit: %v", kerr.ErrorForCode(code))
	}

	release := relays[first.broker].hold()
	t.Cleanup(release)
	answer := old.send(t, old.commitRequest(topic, 11))
	waitFor(t, "the commit to be on its way to the broker", 10*time.Second, func(context.Context) error {
		if relays[first.broker].holds() == 0 {
			return fmt.Errorf("nothing is held back")
		}
		return nil
	})
	if err := first.proc.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	release()
	waitFor(t, "the broker to accept the commit", 10*time.Second, func(ctx context.Context) error {
		return offsetIs(ctx, first.broker.addr(), group, topic, 11)
	})
	t.Logf("node %d's broker has accepted offset 11, its proxy is stopped", first.id)

	second, member := joinAtCoordinator(t, ctx, c, group, first)
	if code := member.commit(t, topic, 20); code != 0 {
		t.Fatalf("the new coordinator's commit: %v", kerr.ErrorForCode(code))
	}
	t.Logf("node %d coordinates, offset 20 is committed", second.id)
	if err := first.proc.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	code := answer().(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
	t.Logf("the paused coordinator answers %v", kerr.ErrorForCode(code))
	if code == 0 {
		t.Error("a commit that was validated before the group moved was acknowledged")
	}
	waitFor(t, "the offset of the new coordinator", 20*time.Second, func(ctx context.Context) error {
		return offsetIs(ctx, second.kafkaAddr(), group, topic, 20)
	})
	c.waitHealthy()

	// Back to the first node: the second goes.
	member.close()
	c.killNode(second.id)
	waitFor(t, "another coordinator", time.Minute, func(ctx context.Context) error {
		id, err := findCoordinator(ctx, c, group)
		if err == nil && id == second.id {
			err = fmt.Errorf("still node %d", id)
		}
		if err == nil {
			err = offsetIs(ctx, c.node(id).kafkaAddr(), group, topic, 20)
		}
		return err
	})
	id, err := findCoordinator(ctx, c, group)
	if err != nil {
		t.Fatal(err)
	}
	zombie := &groupMember{rawConn: dialRaw(t, c.node(id).kafkaAddr()), group: group, id: old.id, generation: old.generation}
	if code := zombie.commit(t, topic, 12); code == 0 {
		t.Errorf("node %d accepts a commit of a member of long ago", id)
	} else {
		t.Logf("node %d answers the member of before %v", id, kerr.ErrorForCode(code))
	}
	if err := offsetIs(ctx, c.node(id).kafkaAddr(), group, topic, 20); err != nil {
		t.Error(err)
	}
	c.restartNode(second.id)
	c.waitHealthy()
}

func offsetIs(ctx context.Context, addr, group, topic string, want int64) error {
	got, err := committedOffsets(ctx, addr, group, topic, 1)
	if err == nil && got[0] != want {
		err = fmt.Errorf("the committed offset is %d, want %d", got[0], want)
	}
	return err
}

// rawConn is a connection on which requests are sent one after the other.
type rawConn struct {
	net.Conn
	t *testing.T
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &rawConn{conn, t}
}

func (r *rawConn) close() { r.Conn.Close() }

// send writes a request; what it returns waits for the answer.
func (r *rawConn) send(t *testing.T, req kmsg.Request) func() kmsg.Response {
	t.Helper()
	if err := r.SetDeadline(time.Now().Add(90 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("e2e")).AppendRequest(nil, req, 7)); err != nil {
		t.Fatal(err)
	}
	return func() kmsg.Response {
		t.Helper()
		resp, err := r.receive(req)
		if err != nil {
			t.Fatalf("%s: %v", kmsg.NameForKey(req.Key()), err)
		}
		return resp
	}
}

func (r *rawConn) receive(req kmsg.Request) (kmsg.Response, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > 1<<20 {
		return nil, fmt.Errorf("answer claims %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	body = body[4:]
	resp := req.ResponseKind()
	if resp.IsFlexible() {
		b := kbin.Reader{Src: body}
		kmsg.SkipTags(&b)
		body = b.Src
	}
	return resp, resp.ReadFrom(body)
}

// groupMember is the only member of a group, on a connection of its own.
type groupMember struct {
	*rawConn
	group, id  string
	instance   string // a static member's name, empty for a dynamic one
	topic      string // of which the member has partition 0, empty for none
	generation int32
	assignment []byte
}

// static adds the member's name to a request, of that version, if it has one.
func (m *groupMember) static(req kmsg.Request, version int16, name **string) {
	if m.instance != "" {
		req.SetVersion(version)
		*name = &m.instance
	}
}

// joinAtCoordinator joins a group as its only member, at whichever node
// coordinates it, but none of those excepted.
func joinAtCoordinator(t *testing.T, ctx context.Context, c *cluster, group string, except ...*node) (*node, *groupMember) {
	t.Helper()
	return memberAtCoordinator(t, ctx, c, groupMember{group: group}, except...)
}

// memberAtCoordinator is joinAtCoordinator for a member that is like another.
func memberAtCoordinator(t *testing.T, ctx context.Context, c *cluster, like groupMember, except ...*node) (*node, *groupMember) {
	t.Helper()
	var at *node
	var m *groupMember
	waitFor(t, "a coordinator that lets a member in", time.Minute, func(wait context.Context) error {
		for _, n := range c.nodes {
			if len(except) > 0 && n == except[0] || !n.running() {
				continue
			}
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.SetVersion(3)
			req.CoordinatorKey = like.group
			resp, err := rawCall[*kmsg.FindCoordinatorResponse](wait, n.kafkaAddr(), req)
			if err == nil {
				err = kerr.ErrorForCode(resp.ErrorCode)
			}
			if err != nil {
				return err
			}
			if len(except) > 0 && int(resp.NodeID) == except[0].id {
				return fmt.Errorf("node %d coordinates", resp.NodeID)
			}
			at = c.node(int(resp.NodeID))
			break
		}
		m = &groupMember{rawConn: dialRaw(t, at.kafkaAddr()), group: like.group, instance: like.instance, topic: like.topic}
		return m.join(t)
	})
	return at, m
}

func (m *groupMember) join(t *testing.T) error {
	join := kmsg.NewPtrJoinGroupRequest()
	join.SetVersion(3)
	m.static(join, 5, &join.InstanceID)
	join.Group, join.ProtocolType = m.group, "consumer"
	join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = 1_200_000, 10_000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name = "range"
	if m.topic != "" {
		p.Metadata = (&kmsg.ConsumerMemberMetadata{Topics: []string{m.topic}}).AppendTo(nil)
	}
	join.Protocols = append(join.Protocols, p)
	joined := m.send(t, join)().(*kmsg.JoinGroupResponse)
	if err := kerr.ErrorForCode(joined.ErrorCode); err != nil {
		return err
	}
	m.id, m.generation = joined.MemberID, joined.Generation
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.SetVersion(2)
	m.static(sync, 3, &sync.InstanceID)
	sync.Group, sync.Generation, sync.MemberID = m.group, m.generation, m.id
	a := kmsg.NewSyncGroupRequestGroupAssignment()
	a.MemberID, a.MemberAssignment = m.id, m.assign()
	sync.GroupAssignment = append(sync.GroupAssignment, a)
	synced := m.send(t, sync)().(*kmsg.SyncGroupResponse)
	m.assignment = synced.MemberAssignment
	return kerr.ErrorForCode(synced.ErrorCode)
}

// assign is the member's own assignment, with the generation in it.
func (m *groupMember) assign() []byte {
	a := kmsg.ConsumerMemberAssignment{UserData: fmt.Append(nil, m.generation)}
	if m.topic != "" {
		a.Topics = []kmsg.ConsumerMemberAssignmentTopic{{Topic: m.topic, Partitions: []int32{0}}}
	}
	return a.AppendTo(nil)
}

// heartbeat returns the answer's code.
func (m *groupMember) heartbeat(t *testing.T) int16 {
	t.Helper()
	req := kmsg.NewPtrHeartbeatRequest()
	req.SetVersion(2)
	m.static(req, 3, &req.InstanceID)
	req.Group, req.Generation, req.MemberID = m.group, m.generation, m.id
	return m.send(t, req)().(*kmsg.HeartbeatResponse).ErrorCode
}

func (m *groupMember) commitRequest(topic string, offset int64) *kmsg.OffsetCommitRequest {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.SetVersion(5)
	m.static(req, 7, &req.InstanceID)
	req.Group, req.Generation, req.MemberID = m.group, m.generation, m.id
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = topic
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Offset = offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// commit returns the answer's code.
func (m *groupMember) commit(t *testing.T, topic string, offset int64) int16 {
	t.Helper()
	return m.send(t, m.commitRequest(topic, offset))().(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
}

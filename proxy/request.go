package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// request is one request of a client. A handler runs on the connection's
// reader goroutine, one at a time; it finishes the slot itself or leaves that
// to a callback, and returns an error only to close the connection.
type request struct {
	c     *conn
	api   kafkawire.API
	h     kafkawire.RequestHeader
	frame []byte // the whole request without its length; ours to overwrite
	body  []byte // the frame after its header
	slot  *slot

	// judged says that the broker is asked what the client may do. It is fixed
	// when the request comes: a broker may say otherwise meanwhile.
	judged bool
}

// handler serves one API.
type handler func(*request) error

// handlers has an entry for every API of kafkawire.Served; a test holds it to that.
var handlers map[int16]handler

func init() {
	handlers = map[int16]handler{
		int16(kmsg.Produce):              handleProduce,
		int16(kmsg.Fetch):                handleFetch,
		int16(kmsg.ListOffsets):          handleListOffsets,
		int16(kmsg.Metadata):             handleMetadata,
		int16(kmsg.OffsetCommit):         handleOffsetCommit,
		int16(kmsg.OffsetFetch):          handleOffsetFetch,
		int16(kmsg.FindCoordinator):      handleFindCoordinator,
		int16(kmsg.JoinGroup):            handleJoinGroup,
		int16(kmsg.Heartbeat):            handleHeartbeat,
		int16(kmsg.LeaveGroup):           handleLeaveGroup,
		int16(kmsg.SyncGroup):            handleSyncGroup,
		int16(kmsg.DescribeGroups):       handleDescribeGroups,
		int16(kmsg.ListGroups):           handleListGroups,
		int16(kmsg.SASLHandshake):        handleSASLHandshake,
		int16(kmsg.ApiVersions):          handleAPIVersions,
		int16(kmsg.CreateTopics):         handleCreateTopics,
		int16(kmsg.DeleteTopics):         handleDeleteTopics,
		int16(kmsg.DeleteRecords):        handleDeleteRecords,
		int16(kmsg.InitProducerID):       handleInitProducerID,
		int16(kmsg.OffsetForLeaderEpoch): handleOffsetForLeaderEpoch,
		int16(kmsg.DescribeConfigs):      handleDescribeConfigs,
		int16(kmsg.AlterConfigs):         handleAlterConfigs,
		int16(kmsg.SASLAuthenticate):     handleSASLAuthenticate,
		int16(kmsg.CreatePartitions):     handleCreatePartitions,
		int16(kmsg.DeleteGroups):         handleDeleteGroups,
		int16(kmsg.OffsetDelete):         handleOffsetDelete,
		int16(kmsg.DescribeCluster):      handleDescribeCluster,

		int16(kmsg.IncrementalAlterConfigs): handleIncrementalAlterConfigs,

		int16(kmsg.DescribeACLs):         handlePassThrough,
		int16(kmsg.CreateACLs):           handleCreateACLs,
		int16(kmsg.DeleteACLs):           handleDeleteACLs,
		int16(kmsg.DescribeClientQuotas): handlePassThrough,
		int16(kmsg.AlterClientQuotas):    handleAlterClientQuotas,
	}
}

// parse decodes the request's body. The error is a violation: Kafka closes the
// connection too, for it cannot tell where the damage ends.
func parse[T kmsg.Request](r *request) (T, error) {
	var none T
	req, err := kafkawire.ParseRequest(r.h, r.body)
	if err != nil {
		return none, &violation{"request is malformed", err}
	}
	typed, ok := req.(T)
	if !ok {
		return none, fmt.Errorf("parse %s: decoded as %T", r.api.Name, req)
	}
	return typed, nil
}

// reply finishes the request with an answer of ours.
func (r *request) reply(resp kmsg.Response) {
	r.replyHolding(resp, nil)
}

func (r *request) replyHolding(resp kmsg.Response, held *lease) { r.replySized(resp, held, 0) }

// replySized is replyHolding for who knows about how long the answer will be.
func (r *request) replySized(resp kmsg.Response, held *lease, size int) {
	frame := kafkawire.AppendResponse(make([]byte, 0, size), r.h.Key, r.h.Version, r.h.CorrelationID, resp)
	r.slot.finishAs(firstError(resp), frame[4:], held, nil)
}

// relay finishes the request with the broker's answer as it is. The caller has
// kept nothing of it: its buffer is used again once it is written.
func (r *request) relay(resp []byte, held *lease) { r.relayAs(r.errorOf(resp), resp, held) }

// errorOf returns the error code of a broker's answer, 0 if it has none at its
// beginning.
func (r *request) errorOf(resp []byte) int16 {
	since, ok := errorFirst[r.h.Key]
	_, body, err := kafkawire.ParseResponseHeader(r.h.Key, r.h.Version, resp)
	if !ok || err != nil {
		return 0
	}
	at := 0
	if since >= 0 && r.h.Version >= since {
		at = 4
	}
	if len(body) < at+2 {
		return 0
	}
	return int16(binary.BigEndian.Uint16(body[at:]))
}

// errorFirst has the APIs whose answers begin with their error code, or with
// the throttle time before it, and the version since which that is so; -1 never.
var errorFirst = map[int16]int16{
	int16(kmsg.JoinGroup): 2, int16(kmsg.SyncGroup): 1, int16(kmsg.Heartbeat): 1, int16(kmsg.LeaveGroup): 1,
	int16(kmsg.DescribeACLs): 0, int16(kmsg.DescribeClientQuotas): 0,
	int16(kmsg.SASLHandshake): -1, int16(kmsg.SASLAuthenticate): -1,
}

// relayAs is relay for an answer in which code is the first error.
func (r *request) relayAs(code int16, resp []byte, held *lease) {
	if err := kafkawire.SetCorrelationID(resp, r.h.CorrelationID); err != nil {
		held.release()
		r.slot.finish(nil, nil, fmt.Errorf("%w: %w", errUpstreamGarbage, err))
		return
	}
	held.recycle(resp)
	r.slot.finishAs(code, resp, held, nil)
}

// abandon closes the connection in place of an answer, after what precedes it.
func (r *request) abandon(err error) { r.slot.finish(nil, nil, err) }

// forward passes the request's own frame to the broker.
func (r *request) forward(timeout time.Duration, lostBy func(*View) bool, done func(resp []byte, held *lease, err error)) {
	r.forwardCall(&call{timeout: timeout, lostBy: lostBy, done: done})
}

func (r *request) forwardCall(c *call) {
	c.frame = r.frame
	lostBy := c.lostBy
	r.c.up.send(r.c.ctx, c)
	if lostBy != nil && lostBy(r.c.srv.cluster.View()) {
		// The view changed between the handler's look and the queueing, when
		// the watcher could not see the call yet.
		r.c.up.abort(errLeadershipLost)
	}
}

// ask sends req, a message of the same API and version, to the broker and
// hands the decoded answer to done. An answer that cannot be decoded is an
// error like an unreachable broker.
func ask[T kmsg.Response](r *request, req kmsg.Request, timeout time.Duration, done func(resp T, held *lease, err error)) {
	req.SetVersion(r.h.Version)
	askAs(r, req, timeout, done)
}

// askAs is ask for a message of any API, in the version that it has.
func askAs[T kmsg.Response](r *request, req kmsg.Request, timeout time.Duration, done func(resp T, held *lease, err error)) {
	frame := kafkawire.AppendRequest(nil, r.h, req)[4:]
	r.c.up.send(r.c.ctx, &call{frame: frame, timeout: timeout, done: func(raw []byte, held *lease, err error) {
		var none T
		if err != nil {
			done(none, nil, err)
			return
		}
		resp, err := decodeAnswer[T](req, raw)
		if err != nil {
			held.release()
			r.c.log.Warn("broker's answer cannot be read", "api", r.api.Name, "version", r.h.Version, "error", err)
			done(none, nil, err)
			return
		}
		done(resp, held, nil)
	}})
}

// askAndWait sends req, which has its version, and waits for the answer. Not from
// the link's own goroutine.
func askAndWait[T kmsg.Response](r *request, req kmsg.Request) (T, *lease, error) {
	type answer struct {
		resp T
		held *lease
		err  error
	}
	ch := make(chan answer, 1)
	askAs(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(resp T, held *lease, err error) { ch <- answer{resp, held, err} })
	a := <-ch
	return a.resp, a.held, a.err
}

func decodeAnswer[T kmsg.Response](req kmsg.Request, raw []byte) (T, error) {
	var none T
	_, body, err := kafkawire.ParseResponseHeader(req.Key(), req.GetVersion(), raw)
	if err != nil {
		return none, fmt.Errorf("%w: %w", errUpstreamGarbage, err)
	}
	resp, ok := req.ResponseKind().(T)
	if !ok {
		return none, fmt.Errorf("decode answer: %T", req.ResponseKind())
	}
	if err := kafkawire.ReadResponse(resp, body); err != nil {
		return none, fmt.Errorf("%w: %w", errUpstreamGarbage, err)
	}
	return resp, nil
}

// noteUpstream logs, once in a while, that the broker is in the way of clients.
func (r *request) noteUpstream(err error) {
	if upstreamFault(err) {
		r.c.srv.notices.warn("", "upstream", "broker did not answer; clients get retriable errors until it does",
			"api", r.api.Name, "broker", r.c.srv.cfg.Upstream, "error", err)
	}
}

// upstreamFault tells the broker's failures from what we ended ourselves:
// shutdown, lost leadership, a client that is gone or sent away.
func upstreamFault(err error) bool {
	return errors.Is(err, errUpstreamUnreachable) || errors.Is(err, errUpstreamLost) || errors.Is(err, errUpstreamGarbage)
}

package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"lockstep/fsm"
	"lockstep/transport"
)

// Methods of peer calls that this room answers. Others begin at
// FirstFreeMethod.
const (
	methodJoin      uint8 = 1
	methodSubmit    uint8 = 2
	methodNote      uint8 = 3
	methodWatch     uint8 = 4
	FirstFreeMethod uint8 = 16
)

// codeInvalidRequest is Kafka's INVALID_REQUEST.
const codeInvalidRequest = 42

// verdict is the part of a Result that travels between nodes.
type verdict struct {
	Verdict  fsm.Verdict `json:"v"`
	Code     int16       `json:"c,omitempty"`
	Message  string      `json:"m,omitempty"`
	Topic    uint64      `json:"t,omitempty"`
	FirstN   int64       `json:"n,omitempty"`
	Revision uint64      `json:"r,omitempty"`
	Codes    []int16     `json:"k,omitempty"`
	// NotLeader: the command was surely not proposed.
	NotLeader bool `json:"x,omitempty"`
}

// Submit proposes a control command to whichever node leads the group, and
// returns its verdict. It goes on trying, at the next leader, as long as the
// command was surely not proposed. ErrUnknownOutcome: it may have been.
func (n *Node) Submit(ctx context.Context, group uint32, cmd fsm.Command) (fsm.Result, error) {
	g := n.Group(group)
	if g == nil {
		return fsm.Result{}, fmt.Errorf("there is no group %d", group)
	}
	for {
		leader, changed := g.Leader.Changed()
		leading, took := g.Leading.Changed()
		res, err := n.submitTo(ctx, g, leader, leading != nil, cmd)
		if !errors.Is(err, ErrNotLeader) {
			return res, err
		}
		// The leader is not known, not reached or not in office yet. When
		// that changes we hear of it, or at the latest some heartbeats on.
		again, stop := n.after(n.cfg.HeartbeatTimeout)
		select {
		case <-changed:
		case <-took:
		case <-again:
		case <-ctx.Done():
			stop()
			return fsm.Result{}, fmt.Errorf("group %d has no leader that can be reached: %w", group, ErrNotLeader)
		case <-n.ctx.Done():
			stop()
			return fsm.Result{}, ErrStopped
		}
		stop()
	}
}

func (n *Node) submitTo(ctx context.Context, g *Group, leader int32, leading bool, cmd fsm.Command) (fsm.Result, error) {
	switch {
	case leading:
		return g.proposeAndWait(ctx, cmd)
	case leader == 0 || leader == n.cfg.NodeID:
		return fsm.Result{}, ErrNotLeader
	}
	payload := binary.BigEndian.AppendUint32(nil, g.ID)
	payload = append(payload, fsm.EncodeEntry(0, []fsm.Command{cmd})...)
	answer, err := n.transport.Call(ctx, leader, methodSubmit, payload)
	switch {
	case errors.Is(err, transport.ErrNotSent):
		return fsm.Result{}, ErrNotLeader
	case err != nil:
		return fsm.Result{}, errors.Join(ErrUnknownOutcome, err)
	}
	var v verdict
	if err := json.Unmarshal(answer, &v); err != nil {
		return fsm.Result{}, errors.Join(ErrUnknownOutcome, err)
	}
	if v.NotLeader {
		return fsm.Result{}, ErrNotLeader
	}
	return fsm.Result{Kind: cmd.Kind, Verdict: v.Verdict, Code: v.Code, Message: v.Message, Topic: v.Topic, FirstN: v.FirstN,
		Revision: v.Revision, Codes: v.Codes}, nil
}

// proposeAndWait proposes on this node.
func (g *Group) proposeAndWait(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	type outcome struct {
		r   fsm.Result
		err error
	}
	ch := make(chan outcome, 1)
	g.Propose(cmd, func(r fsm.Result, err error) { ch <- outcome{r, err} })
	select {
	case o := <-ch:
		return o.r, o.err
	case <-ctx.Done():
		return fsm.Result{}, errors.Join(ErrUnknownOutcome, context.Cause(ctx))
	}
}

// heardSubmit answers methodSubmit.
func (n *Node) heardSubmit(ctx context.Context, from transport.Hello, payload []byte) ([]byte, error) {
	if err := n.Admit(from, true); err != nil {
		n.log.Debug("a submit is not admitted", "node", from.NodeID, "error", err)
		return json.Marshal(verdict{NotLeader: true})
	}
	if len(payload) < 4 {
		return nil, errors.New("a submit needs a group")
	}
	g := n.Group(binary.BigEndian.Uint32(payload))
	if g == nil {
		return nil, errors.New("no such group")
	}
	_, cmds, err := fsm.DecodeEntry(payload[4:])
	if err != nil || len(cmds) != 1 || cmds[0].Kind == fsm.KindAppend {
		return nil, errors.New("a submit carries one control command")
	}
	if err := fsm.Readable(cmds[0]); err != nil {
		// Committed, it would stop this node, and everybody else of its build.
		return json.Marshal(verdict{Verdict: fsm.Rejected, Code: codeInvalidRequest,
			Message: fmt.Sprintf("node %d, which leads group %d, cannot take the order: %v", n.cfg.NodeID, g.ID, err)})
	}
	r, err := g.proposeAndWait(ctx, cmds[0])
	switch {
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrStopped):
		return json.Marshal(verdict{NotLeader: true})
	case err != nil:
		return nil, err
	}
	return json.Marshal(verdict{Verdict: r.Verdict, Code: r.Code, Message: r.Message, Topic: r.Topic, FirstN: r.FirstN,
		Revision: r.Revision, Codes: r.Codes})
}

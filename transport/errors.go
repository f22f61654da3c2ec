package transport

import (
	"errors"
	"fmt"
)

var (
	// ErrNotSent is returned by Call when the request surely was not executed:
	// the peer could not be reached, refused us, was too busy to start it, or
	// the request had not left this node completely. Trying again is safe.
	ErrNotSent = errors.New("request not sent")

	// ErrOutcomeUnknown is returned by Call when the request left this node and
	// no answer came: it may have been executed, may be executing still, or may
	// never be. It is not a failure.
	ErrOutcomeUnknown = errors.New("outcome unknown")

	// ErrConnLost is returned, together with ErrOutcomeUnknown, when the
	// connection ended between request and answer.
	ErrConnLost = errors.New("connection lost")

	// ErrUnknownMethod is returned, together with ErrNotSent, when the peer has
	// no handler for the method: it runs another version.
	ErrUnknownMethod = errors.New("peer has no handler for this method")

	// ErrBusy is returned, together with ErrNotSent, when the peer already runs
	// as many handlers for us, or holds as many bytes, as it allows.
	ErrBusy = errors.New("peer is busy")

	// ErrTooLarge is returned, together with ErrNotSent, for a payload above
	// Config.MaxMessage.
	ErrTooLarge = errors.New("payload exceeds the largest message")

	// ErrUnknownPeer is returned when no address is known for a node.
	ErrUnknownPeer = errors.New("unknown peer")

	// ErrRaftCut is returned by Raft dials after CutRaft.
	ErrRaftCut = errors.New("raft streams are cut on this node")

	// ErrClosed is returned after Close.
	ErrClosed = errors.New("transport closed")

	// errStranger marks input that no node of ours sends: a port scanner, a
	// browser, TLS on a plain port.
	errStranger = errors.New("not a lockstep node")

	// errProtocol marks a peer that broke the rules of a stream after a good
	// handshake; the connection is closed.
	errProtocol = errors.New("protocol violation")
)

// RefusedError says that the handshake with a peer ended in a refusal.
type RefusedError struct {
	Node   int32  // the node that was dialled
	Reason string // for the operator: the cause, in the words of the side that refused
	ByPeer bool   // true: the peer refused us; false: we refused the peer
	err    error  // what our own check or Gate returned, nil when ByPeer
}

// Error names the node, the side that refused and the reason.
func (e *RefusedError) Error() string {
	if e.ByPeer {
		return fmt.Sprintf("node %d refused this node: %s", e.Node, e.Reason)
	}
	return fmt.Sprintf("refused node %d: %s", e.Node, e.Reason)
}

// Unwrap gives the error of our own Gate, so that errors.Is sees through it.
func (e *RefusedError) Unwrap() error { return e.err }

// RemoteError is the error a peer's handler returned: the request was executed
// and this is its answer.
type RemoteError struct {
	Node    int32
	Message string
	From    Hello // who it was, as it said when the connection was made; empty on a Raft stream
}

// Error names the node and repeats what its handler said.
func (e *RemoteError) Error() string { return fmt.Sprintf("node %d: %s", e.Node, e.Message) }

package transport

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's requests and answers on a stream of their own, numbers big-endian:
//
//	request  kind 1 | length 4 | head | what the head announces
//	answer   status 1 | length 4 | head, or the text of an error
//
// The head of AppendEntries has the lengths of its entries' data, which follow
// it as they are, so that nothing of them is copied into a message; the head of
// InstallSnapshot has the size of the snapshot, which follows it. The streams'
// handshake says the version of all this. What the header's address stands for
// (Leader, Candidate, Peers) is not sent.
const (
	raftAppendEntries   = 1
	raftRequestVote     = 2
	raftRequestPreVote  = 3
	raftInstallSnapshot = 4
	raftTimeoutNow      = 5

	raftAnswerOK    = 0
	raftAnswerError = 1

	raftPrefix     = 5
	maxRaftHead    = 4 << 20  // of 10,000 servers, or of 100,000 entries
	maxRaftEntry   = 64 << 20 // far above raft.max_entry_bytes
	raftEntryFixed = 8 + 8 + 1 + 8 + 4 + 4
	raftReadAtOnce = 1 << 20
)

// raftHead writes heads.
type raftHead []byte

func (h *raftHead) u8(v byte)    { *h = append(*h, v) }
func (h *raftHead) u32(v uint32) { *h = binary.BigEndian.AppendUint32(*h, v) }
func (h *raftHead) u64(v uint64) { *h = binary.BigEndian.AppendUint64(*h, v) }

func (h *raftHead) bool(v bool) {
	if v {
		h.u8(1)
	} else {
		h.u8(0)
	}
}

func (h *raftHead) bytes(b []byte) {
	h.u32(uint32(len(b)))
	*h = append(*h, b...)
}

func (h *raftHead) header(r raft.RPCHeader) {
	h.u8(byte(r.ProtocolVersion))
	h.bytes(r.ID)
	h.bytes(r.Addr)
}

// begin starts a message; end puts its length in.
func (h *raftHead) begin(kind byte) { *h = append((*h)[:0], kind, 0, 0, 0, 0) }

func (h *raftHead) end() error {
	n := len(*h) - raftPrefix
	if n > maxRaftHead {
		return fmt.Errorf("%w: a head of %d bytes", errProtocol, n)
	}
	binary.BigEndian.PutUint32((*h)[1:], uint32(n))
	return nil
}

// request writes the head of a request, and fails for what no peer would read.
func (h *raftHead) request(args any) error {
	switch a := args.(type) {
	case *raft.AppendEntriesRequest:
		h.begin(raftAppendEntries)
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.u64(a.PrevLogEntry)
		h.u64(a.PrevLogTerm)
		h.u64(a.LeaderCommitIndex)
		h.u32(uint32(len(a.Entries)))
		for _, l := range a.Entries {
			if len(l.Data) > maxRaftEntry || len(l.Extensions) > maxRaftEntry {
				return fmt.Errorf("%w: entry %d has %d bytes", errProtocol, l.Index, len(l.Data)+len(l.Extensions))
			}
			h.u64(l.Index)
			h.u64(l.Term)
			h.u8(byte(l.Type))
			h.u64(uint64(nanos(l.AppendedAt)))
			h.u32(uint32(len(l.Data)))
			h.u32(uint32(len(l.Extensions)))
		}
	case *raft.RequestVoteRequest:
		h.begin(raftRequestVote)
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.u64(a.LastLogIndex)
		h.u64(a.LastLogTerm)
		h.bool(a.LeadershipTransfer)
	case *raft.RequestPreVoteRequest:
		h.begin(raftRequestPreVote)
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.u64(a.LastLogIndex)
		h.u64(a.LastLogTerm)
	case *raft.InstallSnapshotRequest:
		h.begin(raftInstallSnapshot)
		h.header(a.RPCHeader)
		h.u8(byte(a.SnapshotVersion))
		h.u64(a.Term)
		h.u64(a.LastLogIndex)
		h.u64(a.LastLogTerm)
		h.bytes(a.Configuration)
		h.u64(a.ConfigurationIndex)
		h.u64(uint64(a.Size))
	case *raft.TimeoutNowRequest:
		h.begin(raftTimeoutNow)
		h.header(a.RPCHeader)
	default:
		return fmt.Errorf("%w: no raft request: %T", errProtocol, args)
	}
	return h.end()
}

// nanos is a time as the wire has it: 0 for none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// answer writes an answer, or the error in its place.
func (h *raftHead) answer(resp any, failed error) error {
	if failed != nil {
		h.begin(raftAnswerError)
		text := failed.Error()
		*h = append(*h, text[:min(len(text), 1<<10)]...)
		return h.end()
	}
	h.begin(raftAnswerOK)
	switch a := resp.(type) {
	case *raft.AppendEntriesResponse:
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.u64(a.LastLog)
		h.bool(a.Success)
		h.bool(a.NoRetryBackoff)
	case *raft.RequestVoteResponse:
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.bool(a.Granted)
	case *raft.RequestPreVoteResponse:
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.bool(a.Granted)
	case *raft.InstallSnapshotResponse:
		h.header(a.RPCHeader)
		h.u64(a.Term)
		h.bool(a.Success)
	case *raft.TimeoutNowResponse:
		h.header(a.RPCHeader)
	default:
		return fmt.Errorf("%w: no raft answer: %T", errProtocol, resp)
	}
	return h.end()
}

// raftFields reads heads. After a fault everything is zero.
type raftFields struct {
	b   []byte
	err error
}

func (f *raftFields) take(n int) []byte {
	if f.err == nil && (n < 0 || n > len(f.b)) {
		f.err = fmt.Errorf("%w: raft message ends early", errProtocol)
	}
	if f.err != nil {
		return nil
	}
	b := f.b[:n:n]
	f.b = f.b[n:]
	return b
}

func (f *raftFields) u8() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *raftFields) u32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *raftFields) u64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (f *raftFields) bool() bool {
	v := f.u8()
	if v > 1 && f.err == nil {
		f.err = fmt.Errorf("%w: %d is neither yes nor no", errProtocol, v)
	}
	return v == 1
}

// bytes aliases the head, which is read into memory of its own. No bytes are
// nil, as they were before they were sent.
func (f *raftFields) bytes() []byte {
	if b := f.take(int(f.u32())); len(b) > 0 {
		return b
	}
	return nil
}

func (f *raftFields) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(f.u8()), ID: f.bytes(), Addr: f.bytes()}
}

func (f *raftFields) end() error {
	if f.err == nil && len(f.b) > 0 {
		f.err = fmt.Errorf("%w: %d bytes behind a raft message", errProtocol, len(f.b))
	}
	return f.err
}

// readRaftHead reads the kind or status and the head behind it.
func readRaftHead(r *bufio.Reader) (kind byte, head []byte, err error) {
	var prefix [raftPrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if n > maxRaftHead {
		return 0, nil, fmt.Errorf("%w: a raft message with a head of %d bytes", errProtocol, n)
	}
	head, err = readRaftBytes(r, int(n))
	return prefix[0], head, err
}

// readRaftBytes reads n bytes into new memory, which grows as they come if they
// are many: a length alone costs little.
func readRaftBytes(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, raftReadAtOnce))
	for at := 0; ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, noEOF(err)
		}
		if at = len(b); at == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*at))
		copy(grown, b)
		b = grown
	}
}

// readRaftRequest reads a request, with its entries. A snapshot is left unread.
func readRaftRequest(r *bufio.Reader) (any, error) {
	kind, head, err := readRaftHead(r)
	if err != nil {
		return nil, err
	}
	f := &raftFields{b: head}
	var req any
	switch kind {
	case raftAppendEntries:
		a, sizes := f.appendEntries()
		if err := f.end(); err != nil {
			return nil, err
		}
		return a, readRaftEntries(r, a.Entries, sizes)
	case raftRequestVote:
		req = &raft.RequestVoteRequest{RPCHeader: f.header(), Term: f.u64(),
			LastLogIndex: f.u64(), LastLogTerm: f.u64(), LeadershipTransfer: f.bool()}
	case raftRequestPreVote:
		req = &raft.RequestPreVoteRequest{RPCHeader: f.header(), Term: f.u64(), LastLogIndex: f.u64(), LastLogTerm: f.u64()}
	case raftInstallSnapshot:
		a := &raft.InstallSnapshotRequest{RPCHeader: f.header(), SnapshotVersion: raft.SnapshotVersion(f.u8()), Term: f.u64(),
			LastLogIndex: f.u64(), LastLogTerm: f.u64(), Configuration: f.bytes(), ConfigurationIndex: f.u64(), Size: int64(f.u64())}
		if a.Size < 0 && f.err == nil {
			f.err = fmt.Errorf("%w: a snapshot of %d bytes", errProtocol, a.Size)
		}
		req = a
	case raftTimeoutNow:
		req = &raft.TimeoutNowRequest{RPCHeader: f.header()}
	default:
		return nil, fmt.Errorf("%w: raft request of kind %d", errProtocol, kind)
	}
	if err := f.end(); err != nil {
		return nil, err
	}
	return req, nil
}

// appendEntries reads the head; the entries get their data later.
func (f *raftFields) appendEntries() (*raft.AppendEntriesRequest, [][2]uint32) {
	a := &raft.AppendEntriesRequest{RPCHeader: f.header(), Term: f.u64(), PrevLogEntry: f.u64(),
		PrevLogTerm: f.u64(), LeaderCommitIndex: f.u64()}
	n := int(f.u32())
	if f.err == nil && n != len(f.b)/raftEntryFixed {
		f.err = fmt.Errorf("%w: %d entries in %d bytes", errProtocol, n, len(f.b))
	}
	if f.err != nil || n == 0 {
		return a, nil
	}
	a.Entries = make([]*raft.Log, n)
	logs, sizes := make([]raft.Log, n), make([][2]uint32, n)
	for i := range logs {
		l := &logs[i]
		l.Index, l.Term, l.Type = f.u64(), f.u64(), raft.LogType(f.u8())
		if at := int64(f.u64()); at != 0 {
			l.AppendedAt = time.Unix(0, at)
		}
		sizes[i] = [2]uint32{f.u32(), f.u32()}
		if max(sizes[i][0], sizes[i][1]) > maxRaftEntry && f.err == nil {
			f.err = fmt.Errorf("%w: entry %d has %d and %d bytes", errProtocol, l.Index, sizes[i][0], sizes[i][1])
		}
		a.Entries[i] = l
	}
	return a, sizes
}

// readRaftEntries reads the data. Every entry has memory of its own: Raft and
// the cache of its log keep them one by one.
func readRaftEntries(r io.Reader, entries []*raft.Log, sizes [][2]uint32) (err error) {
	for i, l := range entries {
		if n := sizes[i][0]; n > 0 {
			if l.Data, err = readRaftBytes(r, int(n)); err != nil {
				return err
			}
		}
		if n := sizes[i][1]; n > 0 {
			if l.Extensions, err = readRaftBytes(r, int(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readRaftAnswer reads an answer into resp. The error is a *RemoteError if the
// peer could not answer; then, too, the stream goes on.
func readRaftAnswer(r *bufio.Reader, resp any) error {
	status, head, err := readRaftHead(r)
	if err != nil {
		return err
	}
	if status == raftAnswerError {
		return &RemoteError{Node: noNode, Message: string(head)}
	}
	if status != raftAnswerOK {
		return fmt.Errorf("%w: raft answer of status %d", errProtocol, status)
	}
	f := &raftFields{b: head}
	switch a := resp.(type) {
	case *raft.AppendEntriesResponse:
		*a = raft.AppendEntriesResponse{RPCHeader: f.header(), Term: f.u64(), LastLog: f.u64(), Success: f.bool(), NoRetryBackoff: f.bool()}
	case *raft.RequestVoteResponse:
		*a = raft.RequestVoteResponse{RPCHeader: f.header(), Term: f.u64(), Granted: f.bool()}
	case *raft.RequestPreVoteResponse:
		*a = raft.RequestPreVoteResponse{RPCHeader: f.header(), Term: f.u64(), Granted: f.bool()}
	case *raft.InstallSnapshotResponse:
		*a = raft.InstallSnapshotResponse{RPCHeader: f.header(), Term: f.u64(), Success: f.bool()}
	case *raft.TimeoutNowResponse:
		*a = raft.TimeoutNowResponse{RPCHeader: f.header()}
	default:
		return fmt.Errorf("%w: no raft answer: %T", errProtocol, resp)
	}
	return f.end()
}

package transport

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// raftRequests are one of each kind, with every field set, and the sparse ones
// that are sent most.
func raftRequests() []any {
	h := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("2"), Addr: []byte("b.example:7400")}
	large := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // more than is read at once
	return []any{
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 7},
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 7, PrevLogEntry: 8, PrevLogTerm: 9, LeaderCommitIndex: 1<<64 - 1, Entries: []*raft.Log{
			{Index: 9, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(12, 34)},
			{Index: 10, Term: 7, Type: raft.LogNoop},
			{Index: 11, Term: 7, Type: raft.LogConfiguration, Data: large},
			{Index: 12, Term: 7, Extensions: []byte{0}},
		}},
		&raft.RequestVoteRequest{RPCHeader: h, Term: 1, LastLogIndex: 2, LastLogTerm: 3, LeadershipTransfer: true},
		&raft.RequestPreVoteRequest{RPCHeader: h, Term: 1, LastLogIndex: 2, LastLogTerm: 3},
		&raft.InstallSnapshotRequest{RPCHeader: h, SnapshotVersion: 1, Term: 2, LastLogIndex: 3, LastLogTerm: 4,
			Configuration: []byte("conf"), ConfigurationIndex: 5, Size: 1 << 40},
		&raft.TimeoutNowRequest{RPCHeader: h},
		&raft.TimeoutNowRequest{},
	}
}

func raftAnswers() []any {
	h := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("2"), Addr: []byte("b.example:7400")}
	return []any{
		&raft.AppendEntriesResponse{RPCHeader: h, Term: 1, LastLog: 2, Success: true, NoRetryBackoff: true},
		&raft.AppendEntriesResponse{RPCHeader: h},
		&raft.RequestVoteResponse{RPCHeader: h, Term: 1, Granted: true},
		&raft.RequestPreVoteResponse{RPCHeader: h, Term: 1, Granted: true},
		&raft.InstallSnapshotResponse{RPCHeader: h, Term: 1, Success: true},
		&raft.TimeoutNowResponse{RPCHeader: h},
	}
}

// wire is a request as it is sent, without a snapshot's bytes.
func wire(t testing.TB, req any) []byte {
	t.Helper()
	var b bytes.Buffer
	p := &raftPeer{w: bufio.NewWriter(&b)}
	if err := p.write(req); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Every request and answer arrives as it was sent, one behind the other on one
// stream.
func TestRaftMessagesArriveWhole(t *testing.T) {
	var stream bytes.Buffer
	for _, req := range raftRequests() {
		stream.Write(wire(t, req))
	}
	r := bufio.NewReader(&stream)
	for _, want := range raftRequests() {
		got, err := readRaftRequest(r)
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if _, err := readRaftRequest(r); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last: %v", err)
	}
	for _, want := range raftAnswers() {
		var h raftHead
		if err := h.answer(want, nil); err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
		if err := readRaftAnswer(bufio.NewReader(bytes.NewReader(h)), got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// What Raft says in place of an answer arrives as its text.
func TestRaftErrorArrives(t *testing.T) {
	var h raftHead
	if err := h.answer(nil, errors.New("not now")); err != nil {
		t.Fatal(err)
	}
	var remote *RemoteError
	err := readRaftAnswer(bufio.NewReader(bytes.NewReader(h)), &raft.TimeoutNowResponse{})
	if !errors.As(err, &remote) || remote.Message != "not now" {
		t.Errorf("got %v", err)
	}
}

// A message that ends early, or claims what it has not, is an error, and takes
// no memory to speak of.
func TestRaftMessagesAreChecked(t *testing.T) {
	for _, req := range raftRequests() {
		whole := wire(t, req)
		for n := range min(len(whole), 300) {
			if _, err := readRaftRequest(bufio.NewReader(bytes.NewReader(whole[:n]))); err == nil {
				t.Errorf("%T of %d bytes was read from %d", req, len(whole), n)
			}
		}
	}
	var entries raftHead
	if err := entries.request(&raft.AppendEntriesRequest{Entries: []*raft.Log{{Data: make([]byte, 1)}}}); err != nil {
		t.Fatal(err)
	}
	claim := bytes.Clone(entries)
	copy(claim[len(claim)-8:], []byte{0x7f, 0xff, 0xff, 0xff})
	for name, b := range map[string][]byte{
		"a head of 4 GiB":     {raftAppendEntries, 0xff, 0xff, 0xff, 0xff},
		"an unknown kind":     {9, 0, 0, 0, 0},
		"an entry of 2 GiB":   claim,
		"bytes behind a head": append([]byte{raftTimeoutNow, 0, 0, 0, 10}, make([]byte, 10)...),
	} {
		if _, err := readRaftRequest(bufio.NewReader(bytes.NewReader(b))); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v, want %v", name, err, errProtocol)
		}
	}
	var h raftHead
	if err := h.request(&raft.AppendEntriesRequest{Entries: []*raft.Log{{Data: make([]byte, maxRaftEntry+1)}}}); !errors.Is(err, errProtocol) {
		t.Errorf("an entry that no peer would read was sent: %v", err)
	}
}

// FuzzRaftRequest: no panic; memory is bounded by what came; what is read is
// written as it was.
func FuzzRaftRequest(f *testing.F) {
	for _, req := range raftRequests() {
		if b := wire(f, req); len(b) < 1<<10 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		r := bufio.NewReaderSize(in, 16)
		req, err := readRaftRequest(r)
		if err != nil {
			return
		}
		used := len(b) - in.Len() - r.Buffered()
		if got := wire(t, req); !bytes.Equal(got, b[:used]) {
			t.Errorf("%T is written as\n%x and was\n%x", req, got, b[:used])
		}
	})
}

// FuzzRaftAnswer: no panic, and what is read is written as it was.
func FuzzRaftAnswer(f *testing.F) {
	for i, resp := range raftAnswers() {
		var h raftHead
		if err := h.answer(resp, nil); err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), []byte(h))
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		kinds := raftAnswers()
		resp := reflect.New(reflect.TypeOf(kinds[int(kind)%len(kinds)]).Elem()).Interface()
		in := bytes.NewReader(b)
		r := bufio.NewReaderSize(in, 16)
		if err := readRaftAnswer(r, resp); err != nil {
			return
		}
		var h raftHead
		if err := h.answer(resp, nil); err != nil {
			t.Fatal(err)
		}
		if used := len(b) - in.Len() - r.Buffered(); !bytes.Equal(h, b[:used]) {
			t.Errorf("%T is written as %x and was %x", resp, []byte(h), b[:used])
		}
	})
}

// BenchmarkRaftAppend sends entries through a pipeline over the loopback, with
// this transport and with hashicorp/raft's own (msgpack).
func BenchmarkRaftAppend(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 128 << 10, 512 << 10} {
		b.Run(fmt.Sprintf("framed/%dKiB", size>>10), func(b *testing.B) {
			x, y := pair(b)
			serveAll(b, x, y)
			from, err := x.RaftTransport(0, nil, 0)
			if err != nil {
				b.Fatal(err)
			}
			to, err := y.RaftTransport(0, nil, 0)
			if err != nil {
				b.Fatal(err)
			}
			benchRaftAppend(b, from, to, raft.ServerAddress(y.Addr().String()), size)
		})
		b.Run(fmt.Sprintf("msgpack/%dKiB", size>>10), func(b *testing.B) {
			var ts [2]*raft.NetworkTransport
			for i := range ts {
				var err error
				if ts[i], err = raft.NewTCPTransport("127.0.0.1:0", nil, raftMaxPool, DefaultRaftTimeout, io.Discard); err != nil {
					b.Fatal(err)
				}
				defer ts[i].Close()
			}
			benchRaftAppend(b, ts[0], ts[1], ts[1].LocalAddr(), size)
		})
	}
}

func benchRaftAppend(b *testing.B, from, to raft.Transport, at raft.ServerAddress, size int) {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case rpc := <-to.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			case <-stop:
				return
			}
		}
	}()
	p, err := from.AppendEntriesPipeline("2", at)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	go func() {
		for {
			select {
			case <-p.Consumer():
			case <-stop:
				return
			}
		}
	}()
	data := bytes.Repeat([]byte{'x'}, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	var last raft.AppendFuture
	for i := range b.N {
		args := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: uint64(i), Entries: []*raft.Log{{Index: uint64(i + 1), Term: 1, Data: data}}}
		if last, err = p.AppendEntries(args, new(raft.AppendEntriesResponse)); err != nil {
			b.Fatal(err)
		}
	}
	if err := last.Error(); err != nil {
		b.Fatal(err)
	}
}

package transport

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// raftPair are the two ends of a group.
func raftPair(t *testing.T) (from, to *GroupTransport, at raft.ServerAddress) {
	t.Helper()
	x, y := pair(t)
	serveAll(t, x, y)
	var ends [2]*GroupTransport
	for i, n := range []*testNode{x, y} {
		var err error
		if ends[i], err = n.RaftTransport(0, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1], raft.ServerAddress(y.Addr().String())
}

// Answers come in the order of the requests, each to its own.
func TestRaftPipelineKeepsItsOrder(t *testing.T) {
	from, to, at := raftPair(t)
	const n = 2000
	go func() {
		for range n {
			rpc := <-to.Consumer()
			rpc.Respond(&raft.AppendEntriesResponse{Success: true, LastLog: rpc.Command.(*raft.AppendEntriesRequest).PrevLogEntry}, nil)
		}
	}()
	p, err := from.AppendEntriesPipeline("2", at)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sent := make(chan error, 1)
	go func() {
		for i := range uint64(n) {
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: i + 1}, new(raft.AppendEntriesResponse)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range uint64(n) {
		f := within(t, p.Consumer(), "an answer")
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if got := f.Response().LastLog; got != i+1 || f.Request().PrevLogEntry != i+1 {
			t.Fatalf("answer %d is that of request %d", i+1, got)
		}
	}
	if err := within(t, sent, "the sender"); err != nil {
		t.Error(err)
	}
}

// Who waits for room in a pipeline is set free by its end, and so is who waits
// for an answer.
func TestRaftPipelineEnds(t *testing.T) {
	ends := map[string]func(p raft.AppendPipeline, to *GroupTransport) error{
		"closed":      func(p raft.AppendPipeline, _ *GroupTransport) error { return p.Close() },
		"peer closes": func(_ raft.AppendPipeline, to *GroupTransport) error { return to.Close() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			from, to, at := raftPair(t)
			p, err := from.AppendEntriesPipeline("2", at)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			futures, ended := make(chan raft.AppendFuture, 100), make(chan error, 1)
			go func() {
				for range cap(futures) {
					f, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 1}, new(raft.AppendEntriesResponse))
					if err != nil {
						ended <- err
						return
					}
					futures <- f
				}
			}()
			first := within(t, futures, "the first request to be sent")
			rpc := within(t, to.Consumer(), "the first request to arrive") // nobody answers it
			if rpc.Command.(*raft.AppendEntriesRequest).PrevLogEntry != 1 {
				t.Error("another request arrived")
			}
			if err := end(p, to); err != nil {
				t.Fatal(err)
			}
			if err := within(t, ended, "the sender to be set free"); err == nil {
				t.Error("a pipeline that ended took a request")
			}
			failed := make(chan error, 1)
			go func() { failed <- first.Error() }()
			if err := within(t, failed, "the first answer to be given up"); err == nil {
				t.Error("a request that nobody answered succeeded")
			}
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{}, new(raft.AppendEntriesResponse)); !errors.Is(err, raft.ErrPipelineShutdown) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// A snapshot arrives behind its head; what Raft does not read of it is not taken
// for the next request.
func TestRaftSnapshotIsStreamed(t *testing.T) {
	from, to, at := raftPair(t)
	const size = 3 << 20
	for _, reads := range []int64{size, 1000, 0} {
		got := make(chan int64, 1)
		go func() {
			rpc := <-to.Consumer()
			n, _ := readAtMost(rpc.Reader, reads)
			got <- n
			rpc.Respond(&raft.InstallSnapshotResponse{Success: reads == size}, nil)
		}()
		var resp raft.InstallSnapshotResponse
		if err := from.InstallSnapshot("2", at, &raft.InstallSnapshotRequest{Term: 1, Size: size}, &resp, zeros{}); err != nil {
			t.Fatalf("a reader of %d bytes: %v", reads, err)
		}
		if n := within(t, got, "the snapshot"); n != reads || resp.Success != (reads == size) {
			t.Errorf("%d bytes of %d were read, answered %v", n, reads, resp.Success)
		}
	}
	short := io.LimitReader(zeros{}, size-1)
	if err := from.InstallSnapshot("2", at, &raft.InstallSnapshotRequest{Term: 1, Size: size}, &raft.InstallSnapshotResponse{}, short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a snapshot that is shorter than it says: %v", err)
	}
	cut := within(t, to.Consumer(), "the head of the short snapshot")
	if n, _ := io.Copy(io.Discard, cut.Reader); n >= size { // Raft counts, too
		t.Errorf("%d bytes were read of a snapshot whose stream ended", n)
	}
	cut.Respond(&raft.InstallSnapshotResponse{}, nil)
	go func() { rpc := <-to.Consumer(); rpc.Respond(&raft.TimeoutNowResponse{}, nil) }()
	if err := from.TimeoutNow("2", at, &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}); err != nil {
		t.Errorf("behind a snapshot: %v", err)
	}
}

// Heartbeats go past whoever does not take requests.
func TestRaftHeartbeatsPass(t *testing.T) {
	from, to, at := raftPair(t)
	to.SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Term: 9, Success: true}, nil) })
	beat := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a"), ID: []byte("1")}, Term: 9}
	answered := make(chan error, 1)
	go func() {
		var resp raft.AppendEntriesResponse
		err := from.AppendEntries("2", at, beat, &resp)
		if err == nil && resp.Term != 9 {
			err = errors.New("another answer")
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the heartbeat waits behind requests that nobody takes")
	}
}

// zeros is an endless snapshot.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func readAtMost(r io.Reader, n int64) (int64, error) {
	return io.Copy(io.Discard, io.LimitReader(r, n))
}

package transport

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestHandshakeRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Hello) // of the node that dials
		byPeer bool
		reason string
	}{
		{"other cluster", func(h *Hello) { h.ClusterID = "other" }, true, "cluster ids differ"},
		{"other number of groups", func(h *Hello) { h.Groups = 5 }, true, "check raft.groups"},
		{"id taken", func(h *Hello) { h.NodeID = 2 }, true, "both sides are node 2"},
		{"not in peers", func(h *Hello) { h.NodeID = 7 }, true, "not in raft.peers"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := helloOf(1)
			test.change(&h)
			a, b := newNode(t, h, admitAll), newNode(t, helloOf(2), admitAll)
			b.Handle(methodEcho, echo)
			b.SetPeer(1, a.Addr().String())
			b.SetPeer(2, b.Addr().String())
			target := int32(2)
			if h.NodeID == 2 {
				target = 3 // it believes that node 3 is there
			}
			a.SetPeer(target, b.Addr().String())
			if err := b.Serve(); err != nil {
				t.Fatal(err)
			}
			_, err := a.Call(testContext(t), target, methodEcho, nil)
			wantRefused(t, err, test.byPeer, test.reason)
			if !errors.Is(err, ErrNotSent) {
				t.Fatalf("a refused call was not sent, got %v", err)
			}
		})
	}
}

// The address of node 2 leads to node 3: nothing may be said to the wrong node.
func TestHandshakeWrongNodeAnswers(t *testing.T) {
	a, b := newNode(t, helloOf(1), admitAll), newNode(t, helloOf(3), admitAll)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	a.SetPeer(2, b.Addr().String())
	_, err := a.Call(testContext(t), 2, methodEcho, nil)
	wantRefused(t, err, false, "the address of node 2 is answered by node 3")
}

func TestGateRefusesOnEitherSide(t *testing.T) {
	stranger := errors.New("incarnation is not the registered one")
	refuse := GateFunc(func(h Hello, _ bool) error {
		if h.Incarnation != "first" {
			t.Errorf("gate was asked about %+v", h)
		}
		return stranger
	})
	t.Run("acceptor", func(t *testing.T) {
		a, b := newNode(t, helloOf(1), admitAll), newNode(t, helloOf(2), refuse)
		serveAll(t, a, b)
		_, err := a.Call(testContext(t), 2, methodEcho, nil)
		wantRefused(t, err, true, stranger.Error())
	})
	t.Run("dialler", func(t *testing.T) {
		a, b := newNode(t, helloOf(1), refuse), newNode(t, helloOf(2), admitAll)
		serveAll(t, a, b)
		_, err := a.Call(testContext(t), 2, methodEcho, nil)
		wantRefused(t, err, false, stranger.Error())
		if !errors.Is(err, stranger) {
			t.Fatalf("the gate's own error is lost: %v", err)
		}
	})
}

// A wiped node keeps its calls (it must ask to be readmitted) but gets no Raft
// stream, and none of its bytes reach raft.
func TestGateKeepsRaftFromStranger(t *testing.T) {
	b := newNode(t, helloOf(2), GateFunc(func(_ Hello, raftStream bool) error {
		if raftStream {
			return errors.New("unknown incarnation")
		}
		return nil
	}))
	b.Handle(methodEcho, echo)
	b.SetPeer(1, "127.0.0.1:1")
	group, err := b.RaftTransport(0, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	dialAs(t, b, helloOf(1), kindCalls, 0)

	c := dialRaw(t, b)
	open, err := appendOpening(nil, opening{protocolVersion, kindRaft, 0, helloOf(1)})
	if err != nil {
		t.Fatal(err)
	}
	// A whole RequestVote, sent without waiting to be welcomed.
	mustWrite(t, c, append(open, "\x01\x84\xa4Term\x05"...))
	a, err := readAnswer(c)
	if err != nil || !a.refused || !strings.Contains(a.reason, "unknown incarnation") {
		t.Fatalf("got answer %+v, %v", a, err)
	}
	_ = c.Close()
	if err := b.Close(); err != nil { // joins whatever might have handed it over
		t.Fatal(err)
	}
	select {
	case rpc := <-group.Consumer():
		t.Fatalf("raft received %+v", rpc.Command)
	default:
	}
}

func TestStrangersAreClosedAndToldOfOnce(t *testing.T) {
	b := newNode(t, helloOf(2), admitAll, func(c *Config) { c.HandshakeTimeout = 300 * time.Millisecond })
	b.Handle(methodEcho, echo)
	a := newNode(t, helloOf(1), admitAll)
	serveAll(t, a, b)
	good, err := appendOpening(nil, opening{protocolVersion, kindCalls, 0, helloOf(1)})
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{
		"http":            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"tls":             "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"kafka":           "\x00\x00\x00\x14\x00\x12\x00\x03",
		"long hello":      magic + "\x01\x01\x00\x00\x00\x00\xff\xff",
		"hello not json":  magic + "\x01\x01\x00\x00\x00\x00\x00\x04abcd",
		"empty hello":     magic + "\x01\x01\x00\x00\x00\x00\x00\x02{}",
		"negative node":   magic + "\x01\x01\x00\x00\x00\x00\x00\x2b" + `{"cluster_id":"test","node_id":-1,"groups":2}`[:43],
		"unknown kind":    magic + "\x01\x09\x00\x00\x00\x00\x00\x00",
		"half an opening": string(good[:len(good)-1]),
		"one byte":        magic[:1],
		"nothing":         "",
	}
	for name, input := range bad {
		t.Run(name, func(t *testing.T) {
			c := dialRaw(t, b)
			mustWrite(t, c, []byte(input))
			wantClosed(t, c)
		})
	}
	if _, err := a.Call(testContext(t), 2, methodEcho, nil); err != nil {
		t.Fatalf("a good peer suffers: %v", err)
	}
	if n := b.lines.count("closed connection of a stranger"); n != 1 {
		t.Fatalf("%d log lines about strangers, want 1", n)
	}
}

func TestUnknownProtocolVersionIsToldWhy(t *testing.T) {
	b := newNode(t, helloOf(2), admitAll)
	serveAll(t, b)
	c := dialRaw(t, b)
	mustWrite(t, c, append([]byte(magic+"\x09"), make([]byte, 100)...))
	a, err := readAnswer(c)
	if err != nil || !a.refused || !strings.Contains(a.reason, "version 9 is not known") {
		t.Fatalf("got %+v, %v", a, err)
	}
}

// Peers dial many times a second: one line per change of the reason.
func TestRefusalIsLoggedOncePerReason(t *testing.T) {
	reasons := make(chan error, 16)
	gate := GateFunc(func(Hello, bool) error { return <-reasons })
	a, b := newNode(t, helloOf(1), admitAll), newNode(t, helloOf(2), gate)
	b.Handle(methodEcho, echo)
	serveAll(t, a, b)
	ctx := testContext(t)
	call := func(reason error) {
		reasons <- reason
		if _, err := a.Call(ctx, 2, methodEcho, nil); (err == nil) != (reason == nil) {
			t.Fatalf("gate says %v, call says %v", reason, err)
		}
	}
	for range 3 {
		call(errors.New("not yet registered"))
	}
	call(errors.New("another reason"))
	call(nil)
	a.DropPeer(2)
	call(errors.New("another reason"))
	if got := a.lines.count("no stream to peer"); got != 3 {
		t.Errorf("%d lines on the dialling side, want 3:\n%s", got, a.lines.buf.String())
	}
	if got := b.lines.count("refused peer"); got != 3 {
		t.Errorf("%d lines on the accepting side, want 3:\n%s", got, b.lines.buf.String())
	}
	if a.lines.count("peer is back") != 1 || b.lines.count("peer is back") != 1 {
		t.Errorf("the end of the trouble was not logged once on each side")
	}
}

// A peer that accepts and then says nothing costs one handshake timeout.
func TestDialGivesUpOnSilentPeer(t *testing.T) {
	a := newNode(t, helloOf(1), admitAll, func(c *Config) { c.HandshakeTimeout = 100 * time.Millisecond })
	silent := newNode(t, helloOf(2), admitAll) // bound, and nobody accepts
	a.SetPeer(2, silent.Addr().String())
	_, err := a.Call(testContext(t), 2, methodEcho, nil)
	if !errors.Is(err, ErrNotSent) || errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

// The claimed length is refused before as much as one byte is read for it.
func TestHelloLengthIsCheckedFirst(t *testing.T) {
	body := strings.NewReader(strings.Repeat(" ", maxHello+1))
	if _, err := readHello(body, maxHello+1); !errors.Is(err, errStranger) || body.Len() != maxHello+1 {
		t.Fatalf("got %v with %d bytes left", err, body.Len())
	}
}

func FuzzReadOpening(f *testing.F) {
	good, err := appendOpening(nil, opening{protocolVersion, kindRaft, 3, helloOf(1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:9])
	f.Add([]byte(magic + "\x01\x01\x00\x00\x00\x00\xff\xff{}"))
	f.Add([]byte(magic + "\x07"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := readOpening(strings.NewReader(string(b)))
		if err != nil || o.protocol != protocolVersion {
			return
		}
		again, err := appendOpening(nil, o)
		if err != nil {
			return // grew above the limit by escaping
		}
		o2, err := readOpening(strings.NewReader(string(again)))
		if err != nil || o2 != o {
			t.Fatalf("%+v became %+v, %v", o, o2, err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	for _, a := range []answer{
		{protocol: protocolVersion, hello: helloOf(1)},
		{protocol: protocolVersion, refused: true, reason: "no"},
	} {
		b, err := appendAnswer(nil, a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(magic + "\x01\x01\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAnswer(strings.NewReader(string(b)))
		if err != nil {
			return
		}
		if a.refused && (len(a.reason) > maxReason || a.hello != Hello{}) {
			t.Fatalf("got %+v", a)
		}
		if !a.refused && a.hello.validate() != nil {
			t.Fatalf("invalid hello passed: %+v", a.hello)
		}
	})
}

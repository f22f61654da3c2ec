package transport

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestForgedAppendEntriesReachesNoGroup: whoever is not the node that it claims
// to be sends a whole AppendEntries of a higher term behind its opening, without
// waiting to be welcomed. No Raft group ever sees it, the connection is closed,
// and the log names the cause. From the node itself the same bytes arrive.
func TestForgedAppendEntriesReachesNoGroup(t *testing.T) {
	ca, other := newAuthority(t, "ours"), newAuthority(t, "other")
	holder := func(a *authority, name string) *tls.Config {
		files, err := LoadTLS(a.issue(t, t.TempDir(), nodeCert(name), ca))
		if err != nil {
			t.Fatal(err)
		}
		cfg := files.client(func(error) {})
		// Shown even to who says that it trusts another authority.
		shown := cfg.Certificates[0]
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
		return cfg
	}
	for _, test := range []struct {
		name  string
		as    *tls.Config // nil: plaintext
		cause string      // in the log; "" where it must arrive
	}{
		{"plaintext", nil, "this node requires TLS"},
		{"no certificate", &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, "didn't provide a certificate"},
		{"another authority's", holder(other, "lockstep-node-1"), "unknown authority"},
		{"another node's", holder(ca, "lockstep-node-3"), "not that of node 1"},
		{"the node itself", holder(ca, "lockstep-node-1"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newNode(t, helloOf(2), admitAll, ca.withTLS(t, nodeCert("lockstep-node-2"), ca))
			b.SetPeer(1, "127.0.0.1:1")
			group, err := b.RaftTransport(0, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Serve(); err != nil {
				t.Fatal(err)
			}
			c := dialRaw(t, b)
			if test.as != nil {
				c = tls.Client(c, test.as)
			}
			sent := forge(t, c)
			if test.cause == "" {
				rpc := within(t, group.Consumer(), "the AppendEntries of the node itself")
				if got, ok := rpc.Command.(*raft.AppendEntriesRequest); !ok || got.Term != forgedTerm {
					t.Fatalf("raft received %+v", rpc.Command)
				}
				return
			}
			if sent == nil {
				wantAnswerThenClosed(t, c)
			}
			// What the log says is written when the connection is dealt with.
			waitLine(t, b, test.cause)
			if err := b.Close(); err != nil { // joins whatever might have handed it over
				t.Fatal(err)
			}
			select {
			case rpc := <-group.Consumer():
				t.Fatalf("raft received %+v", rpc.Command)
			default:
			}
		})
	}
}

const forgedTerm = 1 << 40

// forge sends the opening of node 1 and an AppendEntries of a higher term. The
// error is that of a connection which was closed before all was sent.
func forge(t *testing.T, c net.Conn) error {
	t.Helper()
	open, err := appendOpening(nil, opening{protocolVersion, kindRaft, 0, helloOf(1)})
	if err != nil {
		t.Fatal(err)
	}
	entry := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("1"), Addr: []byte("127.0.0.1:1")},
		Term: forgedTerm, LeaderCommitIndex: 1 << 40,
		Entries: []*raft.Log{{Index: 1, Term: forgedTerm, Type: raft.LogCommand, Data: []byte("forged")}}}
	_, err = c.Write(append(open, wire(t, entry)...))
	return err
}

// wantAnswerThenClosed reads a refusal, if there is one, and then the end.
func wantAnswerThenClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if a, err := readAnswer(c); err == nil && !a.refused {
		t.Fatalf("the stranger was welcomed: %+v", a)
	}
	_ = c.Close()
}

func waitLine(t *testing.T, n *testNode, part string) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for n.lines.count(part) == 0 {
		select {
		case <-again.C:
		case <-deadline:
			n.lines.mu.Lock()
			defer n.lines.mu.Unlock()
			t.Fatalf("the log does not name %q:\n%s", part, n.lines.buf.String())
		}
	}
}

package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/transport"
)

// FuzzPeerCalls gives a node what another one, or a stranger, may send it.
// Whatever that is, the node answers or refuses it, and does nothing that it was
// not asked for.
func FuzzPeerCalls(f *testing.F) {
	seed := func(method byte, v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(method, raw)
	}
	seed(0, joinRequest{Enter: true, Node: fsm.CatalogNode{ID: 2, Incarnation: "x", Raft: "127.0.0.1:2", Listeners: map[string]string{"PLAINTEXT": "b:1"}}})
	seed(1, transferNote{Group: 1, From: 2, To: 3, Why: "why"})
	entry := fsm.EncodeEntry(0, []fsm.Command{fsm.Control(fsm.KindLogStart, fsm.LogStart{Offset: 5})})
	f.Add(byte(2), append(binary.BigEndian.AppendUint32(nil, 1), entry...))
	n := New(Config{ClusterID: "test", NodeID: 1, DataDir: f.TempDir(), Version: "test", Groups: 3,
		Listen: "127.0.0.1:1", Peers: map[int32]string{1: "127.0.0.1:1", 2: "127.0.0.1:2"}, Logger: hclog.NewNullLogger()})
	if err := n.Init(); err != nil {
		f.Fatal(err)
	}
	n.identity.Member, n.identity.Known = true, map[int32]string{2: "x"}
	ctx, cancel := context.WithCancel(f.Context())
	cancel() // nothing is waited for
	f.Fuzz(func(t *testing.T, method byte, payload []byte) {
		handlers := []transport.Handler{n.heardJoin, n.heardNote, n.heardSubmit}
		for _, from := range []transport.Hello{{NodeID: 2, Incarnation: "x"}, {NodeID: 3, Incarnation: "y"}} {
			answer, err := handlers[int(method)%len(handlers)](ctx, from, payload)
			if err == nil && answer == nil && method%3 != 1 {
				t.Error("neither an answer nor an error")
			}
			var a joinAnswer
			if method%3 == 0 && err == nil {
				if err := json.Unmarshal(answer, &a); err != nil || from.NodeID == 3 && a.Admitted {
					t.Errorf("a stranger is answered %q, %v", answer, err)
				}
			}
		}
		for _, g := range n.Groups() {
			g.mu.Lock()
			note := g.note
			g.mu.Unlock()
			if note.From != 0 && (note.From != 2 || note.Group != g.ID) {
				t.Errorf("took the note %+v for group %d from node 2", note, g.ID)
			}
		}
	})
}

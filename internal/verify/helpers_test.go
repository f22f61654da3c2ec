package verify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/admin"
	"lockstep/internal/cluster"
)

// fakeNode answers the admin requests of a node with one topic, "t", of one
// partition.
type fakeNode struct {
	id     int32
	server *httptest.Server

	mu      sync.Mutex
	st      cluster.Status
	info    admin.PartitionInfo
	start   int64
	end     int64
	batches []admin.BatchDigest
	fail    string // ends the digest with this error
	asked   int    // for partitions
	onAsk   func(n *fakeNode)
}

func (n *fakeNode) addr() string { return strings.TrimPrefix(n.server.URL, "http://") }

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lines := json.NewEncoder(w)
	switch r.URL.Path {
	case "/status":
		_ = lines.Encode(n.st)
	case "/partitions":
		n.asked++
		if n.onAsk != nil {
			n.onAsk(n)
		}
		_ = lines.Encode([]admin.PartitionInfo{n.info})
	case "/digest":
		_ = lines.Encode(admin.LogDigest{Start: n.start, End: n.end})
		if r.URL.Query().Get("ends") != "" {
			return
		}
		for _, b := range n.batches {
			_ = lines.Encode(b)
		}
		if n.fail != "" {
			_ = lines.Encode(map[string]string{"error": n.fail})
		}
	}
}

// logOf makes a log of batches with count records each, from offset 0.
func logOf(counts ...int32) []admin.BatchDigest {
	var out []admin.BatchDigest
	var base int64
	for i, c := range counts {
		out = append(out, admin.BatchDigest{Base: base, Last: base + int64(c) - 1, Count: c, Length: 61 + 10*int(c), CRC: uint32(1000 + i), OK: true})
		base += int64(c)
	}
	chain(out)
	return out
}

// chain sets the hashes of a log that begins at 0.
func chain(batches []admin.BatchDigest) {
	var h uint64
	for i := range batches {
		b := &batches[i]
		h = fsm.ChainHash(h, b.Base, b.Length, b.CRC)
		b.Hash = fmt.Sprintf("%016x", h)
	}
}

// three starts three nodes that hold the same log of 4 batches and 10 records.
func three(t *testing.T) []*fakeNode {
	t.Helper()
	var nodes []*fakeNode
	for id := int32(1); id <= 3; id++ {
		n := &fakeNode{id: id, batches: logOf(3, 1, 4, 2), end: 10}
		n.info = admin.PartitionInfo{Topic: "t", TopicID: 7, End: 10, Hash: n.batches[3].Hash}
		n.server = httptest.NewServer(n)
		t.Cleanup(n.server.Close)
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.st = cluster.Status{ClusterID: "c", NodeID: n.id, Healthy: true}
		for _, o := range nodes {
			n.st.Nodes = append(n.st.Nodes, cluster.NodeStatus{ID: o.id, Alive: true, Admin: o.addr(),
				Raft: "127.0.0.1:1", Broker: cluster.BrokerStatus{State: "up"}})
		}
	}
	return nodes
}

// check runs a comparison that asks node 1 first.
func check(t *testing.T, nodes []*fakeNode, change func(*Config)) *Report {
	t.Helper()
	client := admin.NewClient()
	defer client.Close()
	cfg := Config{Addrs: []string{nodes[0].addr()}, Wait: 300 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	r, err := Run(t.Context(), client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

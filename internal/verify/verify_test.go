package verify

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/internal/admin"
	"lockstep/internal/apply"
	"lockstep/internal/cluster"
)

func TestIdenticalLogsAndStateMachines(t *testing.T) {
	r := check(t, three(t), nil)
	if !r.Identical || r.Problems == nil || len(r.Problems) > 0 || !slices.Equal(r.Nodes, []int32{1, 2, 3}) {
		t.Fatalf("report %+v", r)
	}
	p := r.Partitions[0]
	if p.Result != Identical || p.Start != 0 || p.End != 10 || p.Batches != 4 || p.Digest != logOf(3, 1, 4, 2)[3].Hash {
		t.Errorf("partition %+v", p)
	}
}

// TestEveryDifferenceIsFound changes one thing on one node at a time.
func TestEveryDifferenceIsFound(t *testing.T) {
	tests := []struct {
		name   string
		change func(n *fakeNode) // node 2
		result string
		offset int64 // -1: no first difference
		says   string
	}{
		{"checksum", func(n *fakeNode) { n.batches[1].CRC++ }, Differs, 3, "node 2 has offsets 3-3"},
		{"length", func(n *fakeNode) { n.batches[2].Length++ }, Differs, 4, "node 2 has offsets 4-7"},
		{"count", func(n *fakeNode) { n.batches[2].Count-- }, Differs, 4, "(3 records"},
		{"boundaries", func(n *fakeNode) { n.batches = logOf(3, 5, 2) }, Differs, 3, "node 2 has offsets 3-7"},
		{"damaged body", func(n *fakeNode) { n.batches[3].OK = false }, Differs, 8, "damaged"},
		{"chain", func(n *fakeNode) { n.batches[0].Hash = "00000000000000ff" }, Differs, 0, "chain 00000000000000ff"},
		{"state machine", func(n *fakeNode) { n.info.Hash = "00000000000000ff" }, Differs, 10, "state machines of nodes 1 and 2"},
		{"more than committed", func(n *fakeNode) {
			n.batches, n.end = append(n.batches, admin.BatchDigest{Base: 10, Last: 10, Count: 1, OK: true}), 11
		}, Differs, 10, "beyond all that its state machine says"},
		{"hole at the end", func(n *fakeNode) { n.batches = n.batches[:3] }, Differs, 8, "node 2 has nothing more"},
		{"broker behind", func(n *fakeNode) { n.batches, n.end = n.batches[:2], 4 }, Behind, -1, "its broker's log ends at 4 of 10"},
		{"state machine behind", func(n *fakeNode) {
			n.info.End, n.info.Hash = 4, n.batches[1].Hash
			n.batches, n.end = n.batches[:2], 4
		}, Behind, -1, "its state machine ends at 4 of 10"},
		{"unreadable", func(n *fakeNode) { n.batches, n.fail = n.batches[:2], "disk on fire" }, Unreadable, -1, "disk on fire"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nodes := three(t)
			tt.change(nodes[1])
			r := check(t, nodes, nil)
			p := r.Partitions[0]
			if r.Identical || p.Result != tt.result {
				t.Errorf("identical %t, result %q, want %q", r.Identical, p.Result, tt.result)
			}
			if (p.FirstDiff == nil) != (tt.offset < 0) || p.FirstDiff != nil && p.FirstDiff.Offset != tt.offset {
				t.Errorf("first difference %+v, want offset %d", p.FirstDiff, tt.offset)
			}
			if text := strings.Join(r.Problems, "\n"); !strings.Contains(text, tt.says) || !strings.Contains(text, "t/0") {
				t.Errorf("problems %q do not say %q of t/0", text, tt.says)
			}
		})
	}
}

// All brokers alike but not what was committed.
func TestBrokersAgainstStateMachine(t *testing.T) {
	nodes := three(t)
	for _, n := range nodes {
		n.batches[1].CRC++
		chain(n.batches)
	}
	r := check(t, nodes, nil)
	if p := r.Partitions[0]; r.Identical || p.FirstDiff == nil || !strings.Contains(p.FirstDiff.What, "the state machine of node 1 says") {
		t.Errorf("report %+v, first difference %+v", r, p.FirstDiff)
	}
	nodes = three(t)
	for _, n := range nodes {
		n.batches = logOf(3, 1, 7)
		n.end, n.info.End = 11, 10
	}
	r = check(t, nodes, nil)
	if p := r.Partitions[0]; r.Identical || p.FirstDiff == nil || p.FirstDiff.Offset != 10 || !strings.Contains(p.FirstDiff.What, "no batch ends there") {
		t.Errorf("report %+v, first difference %+v", r, p.FirstDiff)
	}
}

// All logs end before their brokers said.
func TestLogsThatEndEarly(t *testing.T) {
	nodes := three(t)
	for _, n := range nodes {
		n.batches, n.info.End, n.info.Hash = n.batches[:3], 8, n.batches[2].Hash
	}
	r := check(t, nodes, nil)
	if p := r.Partitions[0]; r.Identical || !strings.Contains(strings.Join(r.Problems, "\n"), "ends at 8, though its broker said 10") {
		t.Errorf("problems %q, partition %+v", r.Problems, p)
	}
}

// Retention moves on by itself on each broker: what both have is compared.
func TestLogsThatStartDifferently(t *testing.T) {
	nodes := three(t)
	nodes[1].start, nodes[1].batches = 4, nodes[1].batches[2:]
	for i := range nodes[1].batches {
		nodes[1].batches[i].Hash = ""
	}
	nodes[2].start = 1 // inside a batch, which still comes whole
	r := check(t, nodes, nil)
	if p := r.Partitions[0]; !r.Identical || p.Start != 4 || p.Batches != 2 {
		t.Fatalf("problems %q, partition %+v", r.Problems, p)
	}
	nodes[1].batches[1].CRC++
	if r = check(t, nodes, nil); r.Identical || r.Partitions[0].FirstDiff.Offset != 8 {
		t.Errorf("partition %+v", r.Partitions[0])
	}
}

// A log of which nothing is left holds no batch, and is the same as another.
func TestLogsWithEverythingDeleted(t *testing.T) {
	nodes := three(t)
	for _, n := range nodes {
		n.start, n.batches = n.end, nil
	}
	if r := check(t, nodes, nil); !r.Identical || r.Partitions[0].Start != 10 || r.Partitions[0].End != 10 {
		t.Errorf("problems %q, partition %+v", r.Problems, r.Partitions[0])
	}
	nodes[1].start = 3
	if r := check(t, nodes, nil); !r.Identical {
		t.Errorf("one log is left, and nothing to compare it with: %q", r.Problems)
	}
}

// withRecords names a batch's records: all, but those at the offsets left out.
func withRecords(b *admin.BatchDigest, without ...int64) {
	var raw []byte
	b.Count = 0
	for offset := b.Base; offset <= b.Last; offset++ {
		if slices.Contains(without, offset) {
			continue
		}
		raw = binary.AppendUvarint(raw, uint64(offset-b.Base))
		raw = binary.BigEndian.AppendUint64(raw, uint64(offset)*1_000_003)
		b.Count++
	}
	b.Records = base64.StdEncoding.EncodeToString(raw)
}

// The nodes have compacted at their own time, and the log of node 3 is a copy
// of a compacted one, with other batches and with fillers, which are batches
// without records here.
func TestCompactedTopic(t *testing.T) {
	compacted := func() []*fakeNode {
		nodes := three(t)
		for _, n := range nodes {
			n.info.Compacted = true
		}
		nodes[2].batches = logOf(1, 1, 1, 4, 1, 2)
		for _, n := range nodes {
			for i := range n.batches {
				withRecords(&n.batches[i])
			}
		}
		nodes[0].batches = slices.Delete(nodes[0].batches, 1, 2)
		withRecords(&nodes[1].batches[2], 5)
		nodes[1].batches[2].Horizon = true
		withRecords(&nodes[2].batches[3], 3, 4, 5, 6)
		return nodes
	}
	if r := check(t, compacted(), nil); !r.Identical || r.Partitions[0].Batches == 0 {
		t.Errorf("what compaction does counts as a difference: %q", r.Problems)
	}
	// A batch in two lines.
	nodes := compacted()
	whole := nodes[0].batches[0]
	a, b := whole, whole
	withRecords(&a, 1, 2)
	withRecords(&b, 0)
	a.More = true
	nodes[0].batches = slices.Concat([]admin.BatchDigest{a, b}, nodes[0].batches[1:])
	if r := check(t, nodes, nil); !r.Identical {
		t.Errorf("a batch in two lines: %q", r.Problems)
	}
	for offset := range int64(10) {
		nodes := compacted()
		for i := range nodes[1].batches {
			b := &nodes[1].batches[i]
			if b.Base <= offset && offset <= b.Last {
				raw, err := base64.StdEncoding.DecodeString(b.Records)
				if err != nil {
					t.Fatal(err)
				}
				at := 9 * int(offset-b.Base)
				if b.Horizon && offset > 5 {
					at -= 9
				}
				if offset != 5 {
					raw[at+4] ^= 1
				}
				b.Records = base64.StdEncoding.EncodeToString(raw)
			}
		}
		r := check(t, nodes, nil)
		if offset == 3 || offset == 5 { // no other log has it, or this one has not
			if !r.Identical {
				t.Errorf("%q", r.Problems)
			}
			continue
		}
		if d := r.Partitions[0].FirstDiff; r.Identical || d == nil || d.Offset != offset {
			t.Errorf("a survivor at offset %d that differs is not found: %+v", offset, r.Partitions[0])
		}
	}
	nodes = compacted()
	nodes[1].batches[2].Records = "AA=="
	if r := check(t, nodes, nil); r.Identical || r.Partitions[0].Result != Unreadable {
		t.Errorf("a list that cannot be read: %+v", r.Partitions[0])
	}
	nodes = compacted()
	nodes[2].batches[5].OK = false
	if r := check(t, nodes, nil); r.Identical {
		t.Error("a damaged batch was not found")
	}
}

// A node that is behind is asked again until it is not.
func TestWaitsForANodeThatCatchesUp(t *testing.T) {
	nodes := three(t)
	n := nodes[2]
	all := n.batches
	n.batches, n.end = all[:1], 3
	n.onAsk = func(n *fakeNode) {
		if n.asked == 3 {
			n.batches, n.end = all, 10
		}
	}
	r := check(t, nodes, func(c *Config) { c.Wait = time.Minute })
	if !r.Identical || r.Partitions[0].Batches != 4 {
		t.Errorf("problems %q, partition %+v", r.Problems, r.Partitions[0])
	}
}

// Records that arrive while the comparison runs make nobody behind.
func TestWhileRecordsArrive(t *testing.T) {
	nodes := three(t)
	grown := logOf(3, 1, 4, 2, 5)
	for _, n := range nodes {
		n.onAsk = func(n *fakeNode) {
			if n.asked > 1 {
				n.info.End, n.info.Hash = 15, grown[4].Hash
			}
		}
	}
	nodes[1].batches, nodes[1].end = grown, 15
	r := check(t, nodes, nil)
	if p := r.Partitions[0]; !r.Identical || p.End != 10 {
		t.Errorf("problems %q, partition %+v", r.Problems, p)
	}
}

// A copy that a node keeps out of service is shown as such, beside where it
// differs; what a node says of others does not count.
func TestQuarantinedPartitions(t *testing.T) {
	trouble := func(id int32, state apply.State) cluster.GroupStatus {
		return cluster.GroupStatus{Members: []cluster.MemberStatus{{Node: id, Troubled: []apply.PartitionStatus{
			{Topic: "t", TopicID: 7, State: string(state), Reason: "corrupt: offset 3: a flipped bit"}}}}}
	}
	nodes := three(t)
	nodes[1].st.Groups = []cluster.GroupStatus{trouble(2, apply.StateQuarantined)}
	r := check(t, nodes, nil)
	if p := r.Partitions[0]; r.Identical || p.Result != Quarantined || p.Quarantined[2] == "" || p.FirstDiff != nil ||
		!strings.Contains(strings.Join(r.Problems, "\n"), "t/0: node 2 quarantines its copy: corrupt: offset 3") {
		t.Errorf("problems %q, partition %+v", r.Problems, p)
	}
	nodes[1].batches[1].OK = false
	if p := check(t, nodes, nil).Partitions[0]; p.Result != Differs || p.FirstDiff.Offset != 3 || len(p.Quarantined) != 1 {
		t.Errorf("partition %+v", p)
	}
	for _, g := range []cluster.GroupStatus{trouble(3, apply.StateQuarantined), trouble(2, apply.StateAttaching)} {
		nodes = three(t)
		nodes[1].st.Groups = []cluster.GroupStatus{g}
		if r := check(t, nodes, nil); !r.Identical {
			t.Errorf("%+v: %q", g, r.Problems)
		}
	}
}

func TestMissingNodes(t *testing.T) {
	nodes := three(t)
	nodes[2].server.Close()
	r := check(t, nodes, nil)
	if r.Identical || r.Partitions[0].Result != Identical || !strings.Contains(r.Problems[0], "node 3 cannot be asked") {
		t.Errorf("report %+v", r)
	}
	if r = check(t, nodes, func(c *Config) { c.AllowMissing = true }); !r.Identical || !slices.Equal(r.Nodes, []int32{1, 2}) {
		t.Errorf("with --allow-missing: %+v", r)
	}
	nodes[1].st.Nodes[1].Broker.State = "down"
	if r = check(t, nodes, func(c *Config) { c.AllowMissing = true }); r.Identical || !strings.Contains(strings.Join(r.Problems, "\n"), "the broker of node 2 is down") {
		t.Errorf("one node left counts as identical: %+v", r)
	}
}

// An address that leads to another node is never taken for that node.
func TestRegisteredAddresses(t *testing.T) {
	nodes := three(t)
	nodes[0].st.Nodes[1].Admin = nodes[0].addr()
	r := check(t, nodes, nil)
	if r.Identical || !strings.Contains(r.Problems[0], "is answered by node 1") {
		t.Errorf("node 1 was taken for node 2: %q", r.Problems)
	}
	// Named by hand it is found all the same.
	if r = check(t, nodes, func(c *Config) { c.Addrs = append(c.Addrs, nodes[1].addr()) }); !r.Identical {
		t.Errorf("problems %q", r.Problems)
	}
	// A wildcard names no host: the Raft host is tried.
	_, port, _ := strings.Cut(nodes[1].addr(), ":")
	nodes[0].st.Nodes[1].Admin = "0.0.0.0:" + port
	if r = check(t, nodes, nil); !r.Identical {
		t.Errorf("problems %q", r.Problems)
	}
	nodes[0].st.Nodes[1].Raft = "127.0.0.2:1"
	if r = check(t, nodes, nil); r.Identical || !strings.Contains(r.Problems[0], "names no host") {
		t.Errorf("problems %q", r.Problems)
	}
}

func TestNothingToCompare(t *testing.T) {
	nodes := three(t)
	client := admin.NewClient()
	defer client.Close()
	_, err := Run(t.Context(), client, Config{Addrs: []string{nodes[0].addr()}, Topic: "other"})
	if !errors.Is(err, ErrNoTopic) {
		t.Errorf("unknown topic: %v", err)
	}
	nodes[1].st.ClusterID = "d"
	_, err = Run(t.Context(), client, Config{Addrs: []string{nodes[0].addr(), nodes[1].addr()}})
	if !errors.Is(err, ErrOtherCluster) {
		t.Errorf("two clusters: %v", err)
	}
	nodes[0].server.Close()
	_, err = Run(t.Context(), client, Config{Addrs: []string{nodes[0].addr()}})
	if !errors.Is(err, ErrNoNode) {
		t.Errorf("nobody there: %v", err)
	}
}

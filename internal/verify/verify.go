// Package verify compares what all nodes' brokers hold, batch by batch, with
// each other and with what the nodes' state machines say was committed. It
// asks the nodes' admin ports and holds no log in memory.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lockstep/internal/admin"
)

var (
	// ErrNoNode is returned when no address answers.
	ErrNoNode = errors.New("no node answers")
	// ErrNoTopic is returned when no node knows the topic asked for.
	ErrNoTopic = errors.New("no node knows the topic")
	// ErrOtherCluster is returned when the addresses belong to several clusters.
	ErrOtherCluster = errors.New("the addresses are of different clusters")
)

// DefaultWait is how long a node may take to reach what was committed when
// the comparison began.
const DefaultWait = 30 * time.Second

// askAgain is the pause between two looks at nodes that are behind.
const askAgain = 200 * time.Millisecond

// Config says what to compare.
type Config struct {
	// Addrs are admin addresses, host:port. One that answers is enough where
	// nodes register addresses that can be reached from here.
	Addrs []string
	// Topic limits the comparison. Empty: all.
	Topic string
	// AllowMissing lets nodes be away: those left are compared.
	AllowMissing bool
	// Wait bounds the time given to nodes that are behind. Zero: DefaultWait.
	Wait time.Duration
	// Progress is told how many offsets of how many were compared, and what is
	// being done; from Run's goroutine. May be nil.
	Progress func(done, total int64, what string)
}

// The results of a partition.
const (
	Identical  = "identical"
	Differs    = "differs"
	Behind     = "behind"     // the overlap is identical, but a broker lacks what is committed
	Unreadable = "unreadable" // a log could not be read to its end
	// Quarantined: a node keeps its copy out of service, though no difference
	// was found here.
	Quarantined = "quarantined"
)

// Report is the outcome.
type Report struct {
	Identical  bool         `json:"identical"`
	Nodes      []int32      `json:"nodes"` // that were compared
	Partitions []*Partition `json:"partitions"`
	Problems   []string     `json:"problems"`
}

// Partition is the outcome for one partition. Start and End bound the overlap
// of all logs, Digest is the chain hash over it, which is the state machine's
// if Start is 0.
type Partition struct {
	Topic     string      `json:"topic"`
	TopicID   uint64      `json:"topic_id"`
	Partition int32       `json:"partition"`
	Start     int64       `json:"start"`
	End       int64       `json:"end"`
	Batches   int64       `json:"batches"`
	Digest    string      `json:"digest"`
	Nodes     []int32     `json:"nodes"`
	Result    string      `json:"result"`
	FirstDiff *Difference `json:"first_difference,omitempty"`
	// Quarantined are the nodes that keep their copy out of service, and why.
	Quarantined map[int32]string `json:"quarantined,omitempty"`

	group       uint32
	compacted   bool
	committed   int64                // by any node's state machine when the comparison began
	marks       map[int64]mark       // state machines' hashes, by end offset
	met         map[int64]bool       // marks at which a batch of the brokers ends
	lateWhy     map[int32]string     // nodes that do not hold everything committed
	ends        map[int32]int64      // of the brokers' logs, as compared
	differences int                  // found so far; the first is FirstDiff
	problem     func(string, ...any) // notes a problem of the report
	reached     func(offset int64)   // tells the progress
}

// mark is a state machine's hash at an offset, and whose it is.
type mark struct {
	hash string
	node int32
}

// Difference is the first place where something is not as it should be.
type Difference struct {
	Offset int64  `json:"offset"`
	What   string `json:"what"`
}

// key names a topic's incarnation.
type key struct {
	topic     uint64
	partition int32
}

// run is one comparison. It belongs to one goroutine.
type run struct {
	cfg    Config
	client *admin.Client
	nodes  []target
	parts  map[key]*Partition
	placed map[uint32][]int32 // nodes that hold a group, of groups that not every node holds
	report Report

	passed, total int64 // offsets of partitions that were compared, and of all
}

// Run compares. An error means that nothing could be compared; what the
// comparison found is in the report.
func Run(ctx context.Context, client *admin.Client, cfg Config) (*Report, error) {
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	r := &run{cfg: cfg, client: client, parts: make(map[key]*Partition), placed: make(map[uint32][]int32),
		report: Report{Nodes: []int32{}, Partitions: []*Partition{}, Problems: []string{}}}
	missing, err := r.findNodes(ctx)
	if err != nil {
		return nil, err
	}
	fsms, err := r.readPartitions(ctx)
	if err != nil {
		return nil, err
	}
	r.begin(fsms)
	if len(r.parts) == 0 && cfg.Topic != "" {
		return nil, fmt.Errorf("%w %q", ErrNoTopic, cfg.Topic)
	}
	if err := r.settle(ctx, fsms); err != nil {
		return nil, err
	}
	r.countTotal()
	for _, p := range r.sorted() {
		if err := r.compare(ctx, p); err != nil {
			return nil, err
		}
		r.passed += p.committed
	}
	if fsms, err = r.readPartitions(ctx); err != nil {
		return nil, err
	}
	r.dropDeleted(fsms)
	r.checkCommitted(fsms)
	if err := r.noteQuarantines(ctx); err != nil {
		return nil, err
	}
	r.report.Partitions = append(r.report.Partitions, r.sorted()...)
	r.conclude(missing)
	return &r.report, nil
}

func (r *run) problem(format string, args ...any) {
	r.report.Problems = append(r.report.Problems, fmt.Sprintf(format, args...))
}

func (r *run) sorted() []*Partition {
	out := make([]*Partition, 0, len(r.parts))
	for _, p := range r.parts {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *Partition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.TopicID, b.TopicID), cmp.Compare(a.Partition, b.Partition))
	})
	return out
}

// state is what one node's state machines hold.
type state map[key]admin.PartitionInfo

func (r *run) readPartitions(ctx context.Context) (map[int32]state, error) {
	out := make(map[int32]state, len(r.nodes))
	for _, n := range r.nodes {
		infos, err := r.client.Partitions(ctx, n.addr)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", n.id, err)
		}
		out[n.id] = make(state, len(infos))
		for _, i := range infos {
			if (r.cfg.Topic == "" || i.Topic == r.cfg.Topic) && r.holds(n.id, i.Group) {
				out[n.id][key{i.TopicID, i.Partition}] = i
			}
		}
	}
	return out, nil
}

// begin lists the partitions and what is committed in them.
func (r *run) begin(fsms map[int32]state) {
	for _, n := range r.nodes {
		for k, i := range fsms[n.id] {
			p := r.parts[k]
			if p == nil {
				p = &Partition{Topic: i.Topic, TopicID: i.TopicID, Partition: i.Partition, group: i.Group, compacted: i.Compacted,
					Nodes: []int32{}, marks: make(map[int64]mark),
					met: make(map[int64]bool), lateWhy: make(map[int32]string), ends: make(map[int32]int64)}
				p.problem = func(format string, args ...any) {
					r.problem("%s/%d: %s", p.Topic, p.Partition, fmt.Sprintf(format, args...))
				}
				p.reached = func(offset int64) { r.progress(min(offset, p.committed), p) }
				r.parts[k] = p
			}
			p.committed = max(p.committed, i.End)
		}
	}
	r.mark(fsms)
}

// holds says whether a node holds a group.
func (r *run) holds(node int32, group uint32) bool {
	on := r.placed[group]
	return on == nil || slices.Contains(on, node)
}

// holders are the nodes that hold a partition.
func (r *run) holders(p *Partition) []target {
	return slices.DeleteFunc(slices.Clone(r.nodes), func(n target) bool { return !r.holds(n.id, p.group) })
}

// mark takes the state machines' hashes over. Two with the same end have the
// same hash.
func (r *run) mark(fsms map[int32]state) {
	for _, n := range r.nodes {
		for k, i := range fsms[n.id] {
			p := r.parts[k]
			if p == nil {
				continue // created since
			}
			m, ok := p.marks[i.End]
			if !ok {
				p.marks[i.End] = mark{hash: i.Hash, node: n.id}
			} else if m.hash != i.Hash {
				p.differ(i.End, "the state machines of nodes %d and %d have the hashes %s and %s below it", m.node, n.id, m.hash, i.Hash)
			}
		}
	}
}

// differ notes a difference.
func (p *Partition) differ(offset int64, format string, args ...any) {
	p.Result = Differs
	p.differences++
	d := &Difference{Offset: offset, What: fmt.Sprintf(format, args...)}
	if p.FirstDiff == nil || offset < p.FirstDiff.Offset {
		p.FirstDiff = d
	}
	p.problem("offset %d: %s", offset, d.What)
}

// settle waits until every node's state machine and broker hold what was
// committed when the comparison began. Those that do not in time are behind.
func (r *run) settle(ctx context.Context, fsms map[int32]state) error {
	deadline := time.NewTimer(r.cfg.Wait)
	defer deadline.Stop()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for _, p := range r.parts {
		for _, n := range r.holders(p) {
			p.lateWhy[n.id] = "not asked yet"
		}
	}
	for {
		late := false
		for k, p := range r.parts {
			for _, n := range r.holders(p) {
				if _, pending := p.lateWhy[n.id]; !pending {
					continue
				}
				if why := r.late(ctx, n, p, fsms[n.id][k]); why != "" {
					p.lateWhy[n.id], late = why, true
				} else {
					delete(p.lateWhy, n.id)
				}
			}
		}
		if !late {
			return nil
		}
		r.progressWaiting()
		select {
		case <-tick.C:
		case <-deadline.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		if fsms, err = r.readPartitions(ctx); err != nil {
			return err
		}
		r.dropDeleted(fsms)
		r.mark(fsms)
	}
}

// late says what a node lacks of a partition, nothing if it has everything.
func (r *run) late(ctx context.Context, n target, p *Partition, i admin.PartitionInfo) string {
	if i.Topic == "" && p.committed > 0 {
		return "its state machine does not have the partition yet"
	}
	if i.End < p.committed {
		return fmt.Sprintf("its state machine ends at %d of %d", i.End, p.committed)
	}
	ends, err := r.client.LogEnds(ctx, n.addr, p.Topic, p.Partition)
	switch {
	case err != nil:
		return err.Error()
	case ends.End < p.committed:
		return fmt.Sprintf("its broker's log ends at %d of %d", ends.End, p.committed)
	}
	return ""
}

// dropDeleted forgets partitions that no node knows any more.
func (r *run) dropDeleted(fsms map[int32]state) {
	for k := range r.parts {
		gone := true
		for _, st := range fsms {
			if _, ok := st[k]; ok {
				gone = false
			}
		}
		if gone {
			delete(r.parts, k)
		}
	}
}

// checkCommitted sees that no broker held more than what is committed by now.
func (r *run) checkCommitted(fsms map[int32]state) {
	for k, p := range r.parts {
		for _, n := range r.nodes {
			end, ok := p.ends[n.id]
			if i, known := fsms[n.id][k]; ok && known && end > i.End {
				p.differ(i.End, "the broker of node %d ends at %d, beyond all that its state machine says is committed", n.id, end)
			}
		}
	}
}

// conclude gives the verdict.
func (r *run) conclude(missing []string) {
	for _, n := range r.nodes {
		r.report.Nodes = append(r.report.Nodes, n.id)
	}
	ok := len(missing) == 0 || r.cfg.AllowMissing
	r.report.Problems = append(append([]string{}, missing...), r.report.Problems...)
	if len(r.nodes) < 2 && len(missing) > 0 {
		ok = false
		r.problem("fewer than two nodes could be asked: there is nothing to compare")
	}
	for _, p := range r.report.Partitions {
		ok = ok && p.Result == Identical
	}
	r.report.Identical = ok
}

// Package node is the life of the Raft groups on one node: their stores, the
// way into the cluster, leadership, and proposing in batches.
package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/fsm"
	"lockstep/transport"
)

// Node runs this node's instances of all Raft groups.
type Node struct {
	cfg       Config
	log       hclog.Logger
	groups    []*Group
	transport *transport.Transport

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	breakers breakers
	queued   prometheus.Histogram
	missed   []int32       // members that raft.peers leaves out; owned by learn
	changes  leaderChanges // written by the groups' watchers

	failed  chan struct{} // closed by fail
	failErr error         // set before failed is closed
	once    sync.Once

	// life is held while groups are started and while closed is set, so that
	// no group starts after Close has looked for those that run.
	life sync.Mutex
	gone chan struct{} // closed when Close is through

	mu        sync.Mutex // guards what follows; never held during input or output
	identity  *identity
	peers     map[int32]string             // raft address by node id, this one included; see members.go
	watched   map[int32]context.CancelFunc // peers that are watched
	met       map[int32]sighting           // who was heard of before the cluster began
	entering  bool                         // this node no longer says that it has no state
	strangers map[int32]stranger           // peers kept out
	problem   string                       // why this node is not a member
	misnamed  string                       // why this node, which is a member, cannot lead
	told      map[int32]string             // what peers say against this node that is one
	adopted   welcome                      // what the cluster says that lets this node in
	closed    bool                         // written under life, too
	closeErr  error
}

// stranger is a peer that is kept out.
type stranger struct {
	why  string
	seen time.Time
}

const (
	// strangerValid is how long a stranger that is not heard of again is
	// still named. One that runs asks, or is called, several times a second.
	strangerValid = 10 * time.Second
	// stopGrace bounds Close on a node whose disk hangs.
	stopGrace = 3 * time.Second
)

// New returns a node that does nothing until Open. Its groups exist already,
// so that others can watch them.
func New(cfg Config) *Node {
	if cfg.JoinGrace == 0 {
		cfg.JoinGrace = 2 * time.Second
	}
	cfg.Retention.defaults()
	n := &Node{cfg: cfg, log: cfg.Logger, queued: newQueued(), failed: make(chan struct{}), gone: make(chan struct{}),
		met: make(map[int32]sighting), strangers: make(map[int32]stranger), told: make(map[int32]string), problem: notYet,
		peers: maps.Clone(cfg.Peers), watched: make(map[int32]context.CancelFunc)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for id := range cfg.Groups {
		n.groups = append(n.groups, newGroup(n, id))
	}
	return n
}

// Groups returns the groups, by id.
func (n *Node) Groups() []*Group { return n.groups }

// Group returns one group, nil if there is none of that id.
func (n *Node) Group(id uint32) *Group {
	if int64(id) >= int64(len(n.groups)) {
		return nil
	}
	return n.groups[id]
}

// Catalog returns group 0.
func (n *Node) Catalog() *Group { return n.groups[fsm.CatalogGroup] }

// Init reads or makes the node's identity and builds the transport, so that
// handlers can be registered before Open.
func (n *Node) Init() error {
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data_dir: %w", err)
	}
	id, err := loadIdentity(n.cfg.DataDir, n.cfg.ClusterID, n.cfg.NodeID, n.cfg.Groups)
	if err != nil {
		return err
	}
	n.identity = id
	if id.Member {
		n.problem = ""
	}
	n.cfg.Self.ID, n.cfg.Self.Incarnation = n.cfg.NodeID, id.Incarnation
	for peer, addr := range id.Peers {
		if listed, ok := n.peers[peer]; !ok || id.Outdated[peer] == listed {
			n.peers[peer] = addr
		}
	}
	n.transport = transport.New(transport.Config{
		Self: transport.Hello{ClusterID: n.cfg.ClusterID, NodeID: n.cfg.NodeID, Incarnation: id.Incarnation,
			Groups: int(n.cfg.Groups), Version: n.cfg.Version, Recovery: id.Recovery},
		Listen: n.cfg.Listen, Peers: n.peers, TLS: n.cfg.TLS, Logger: n.log.Named("transport"),
	}, n)
	n.transport.Handle(methodJoin, n.heardJoin)
	n.transport.Handle(methodSubmit, n.heardSubmit)
	n.transport.Handle(methodNote, n.heardNote)
	n.transport.Handle(methodWatch, n.heardWatch)
	return nil
}

// Handle registers a handler of peer calls; between Init and Open. The handler
// hears from admitted members only.
func (n *Node) Handle(method uint8, h transport.Handler) {
	n.transport.Handle(method, func(ctx context.Context, from transport.Hello, payload []byte) ([]byte, error) {
		if err := n.Admit(from, true); err != nil {
			return nil, err
		}
		return h(ctx, from, payload)
	})
}

// Call calls a peer; see transport.Transport.Call for its errors.
func (n *Node) Call(ctx context.Context, node int32, method uint8, payload []byte) ([]byte, error) {
	return n.transport.Call(ctx, node, method, payload)
}

// Open starts the internode port and, if this node is a member, its groups.
// A node that is none tries to become one in the background.
func (n *Node) Open() error {
	if err := n.transport.Listen(); err != nil {
		return err
	}
	if err := n.transport.Serve(); err != nil {
		return err
	}
	if n.Member() {
		if err := n.startGroups(); err != nil {
			return err
		}
	}
	n.spawn(func() {
		if n.Member() || n.join(n.ctx) {
			n.meetPeers()
			n.spawn(func() { n.learn(n.ctx) })
			n.register(n.ctx)
		}
	})
	return nil
}

// spawn runs f in a goroutine that Close waits for; not after Close began.
func (n *Node) spawn(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.wg.Go(f)
}

// Close stops everything and returns when the goroutines are gone. Leadership
// is given up without ceremony: hand over first. On a node that failed it
// returns with an error soon, though a write to disk may hang. A second caller
// waits, too.
func (n *Node) Close() error {
	n.life.Lock()
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	n.mu.Unlock()
	n.life.Unlock()
	if !first {
		<-n.gone
		return n.closeErr
	}
	n.cancel()
	torn := make(chan error, 1)
	go func() { torn <- n.tearDown() }()
	n.closeErr = n.awaitEnd(torn)
	close(n.gone)
	return n.closeErr
}

func (n *Node) tearDown() error {
	var errs []error
	for _, g := range n.groups {
		errs = append(errs, g.stop())
	}
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	n.wg.Wait()
	return errors.Join(errs...)
}

// awaitEnd waits for the tear-down, but not for ever on a disk that hangs.
func (n *Node) awaitEnd(torn <-chan error) error {
	select {
	case err := <-torn:
		return err
	case <-n.failed:
	}
	late, stop := n.after(stopGrace)
	defer stop()
	select {
	case err := <-torn:
		return err
	case <-late:
		return fmt.Errorf("not everything was stopped within %s: a write to disk hangs", stopGrace)
	}
}

// Failed is closed when the node must stop at once; Err says why.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err returns why the node must stop, nil if it need not.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.failErr
	default:
		return nil
	}
}

func (n *Node) fail(err error) {
	n.once.Do(func() {
		n.log.Error("this node must stop", "error", err)
		n.failErr = err
		close(n.failed)
		for _, g := range n.groups {
			g.abdicate()
		}
	})
}

// diskFailed is told by the stores' guard. The peers are cut off at once, so
// that they elect: Raft itself would go on sending heartbeats.
func (n *Node) diskFailed(err error) {
	n.transport.CutRaft()
	n.fail(fmt.Errorf("the disk under data_dir failed: %w", err))
}

// CutRaft ends this node's Raft streams until the process ends, as a broken
// disk does: the others elect.
func (n *Node) CutRaft() { n.transport.CutRaft() }

// Member says whether this node takes part in the groups.
func (n *Node) Member() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity != nil && n.identity.Member
}

// Incarnation returns this node's incarnation.
func (n *Node) Incarnation() string { return n.cfg.Self.Incarnation }

// Problem says why this node is not a member, or what a peer says against one
// that is, empty if there is nothing.
func (n *Node) Problem() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if why := cmp.Or(n.problem, n.misnamed); why != "" || len(n.told) == 0 {
		return why
	}
	return n.told[slices.Min(slices.Collect(maps.Keys(n.told)))]
}

// Strangers returns the peers that are kept out of the groups, with the reason.
func (n *Node) Strangers() map[int32]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[int32]string, len(n.strangers))
	for id, s := range n.strangers {
		if time.Since(s.seen) < strangerValid {
			out[id] = s.why
		}
	}
	return out
}

// noteStranger names a peer as kept out, err being the reason, or takes that
// back if err is nil. Who is merely not on record yet is not named.
func (n *Node) noteStranger(id int32, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil:
		delete(n.strangers, id)
	case !errors.Is(err, errStranger):
		n.strangers[id] = stranger{err.Error(), time.Now()}
	}
}

// startGroups starts all groups side by side: each reads its log.
func (n *Node) startGroups() error {
	n.life.Lock()
	defer n.life.Unlock()
	if n.ctx.Err() != nil {
		return ErrStopped
	}
	errs := make([]error, len(n.groups))
	var wg sync.WaitGroup
	for i, g := range n.groups {
		wg.Go(func() { errs[i] = g.start(n.ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// after returns a channel that fires after d, and how to forget it.
func (n *Node) after(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// tellAll sends a notice to every other node and does not wait for answers:
// who misses it knows less, no more.
func (n *Node) tellAll(method uint8, notice any) {
	raw, err := json.Marshal(notice)
	if err != nil {
		n.log.Error("cannot encode a notice", "error", err)
		return
	}
	for _, id := range n.Peers() {
		if id == n.cfg.NodeID {
			continue
		}
		n.spawn(func() {
			ctx, cancel := context.WithTimeout(n.ctx, time.Second)
			defer cancel()
			if _, err := n.transport.Call(ctx, id, method, raw); err != nil {
				n.log.Debug("a notice did not get through", "node", id, "error", err)
			}
		})
	}
}

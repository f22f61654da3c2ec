package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/internal/node"
	"lockstep/transport"
)

const (
	methodAnnounce = node.FirstFreeMethod

	// announceEvery is the pause between two announcements when nothing
	// changes; a change is announced at once.
	announceEvery = 250 * time.Millisecond
	// lease is how long an announcement holds. Who has heard nothing of a
	// leader for longer says that there is none rather than repeat old news.
	lease = 1500 * time.Millisecond
	// After a look at all partitions comes a rest that is restTimes as long, at
	// most maxRest.
	restTimes = 4
	maxRest   = 200 * time.Millisecond
)

// BrokerReport is what a node says of its broker.
type BrokerReport struct {
	Up    bool      `json:"up"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
	Kind  string    `json:"kind,omitempty"`
	// APIs are the broker's api key, lowest and highest version.
	APIs [][3]int16 `json:"apis,omitempty"`
}

// GroupReport is what a node says of its instance of a group.
type GroupReport struct {
	Group uint32 `json:"group"`
	Role  string `json:"role"`
	Term  uint64 `json:"term"`
	// Leading: this node leads and has applied everything ever committed.
	Leading bool   `json:"leading"`
	Commit  uint64 `json:"commit"`
	Applied uint64 `json:"applied"` // last entry with commands
	Broker  uint64 `json:"broker"`  // its broker has everything up to here
	Trusted uint64 `json:"trusted"` // and holds everything up to here through a power cut
	LagReport
	// NotReady are the partitions that this leader cannot serve.
	NotReady    []fsm.TP `json:"not_ready,omitempty"`
	Quarantined []string `json:"quarantined,omitempty"` // "topic/partition: reason"
	// Unsound counts the partitions of which the node's broker has no sound
	// copy: quarantined, made anew, or not copied to the end.
	Unsound int `json:"unsound,omitempty"`
	// Settled: this leader saw no server to add, promote or remove when it had
	// read the catalog up to here.
	Settled uint64 `json:"settled,omitempty"`
	// Servers are the nodes in the group's configuration, as a leader knows
	// them: true for a voter.
	Servers map[int32]bool `json:"servers,omitempty"`
	// Troubled are partitions that are not ready, at most maxTroubled of them.
	Troubled []apply.PartitionStatus `json:"troubled,omitempty"`
}

// LagReport is how far a node's broker is behind what that node knows to be
// committed in a group.
type LagReport struct {
	// LagBytes are of entries that the broker lacks, as far as the log has them:
	// what must be copied counts there.
	LagBytes int64 `json:"lag_bytes"`
	// LagSeconds is for how long at least the node has known the oldest of them.
	LagSeconds float64 `json:"lag_seconds"`
	// Queued is what is in memory on its way to the broker.
	QueuedBytes   int64 `json:"queued_bytes"`
	QueuedBatches int64 `json:"queued_batches"`
}

// maxTroubled bounds what an announcement says of partitions in trouble: it
// travels four times a second.
const maxTroubled = 32

// maxRebuilds bounds what an announcement says of topics that are made anew.
const maxRebuilds = 8

// unsound says that a partition in that state has no sound copy on its broker,
// and will not have one soon. What is being attached will.
func unsound(s apply.State) bool {
	return s == apply.StateQuarantined || s == apply.StateRebuilding || s == apply.StateCopying
}

// Announcement is what every node tells every other, often.
type Announcement struct {
	Node int32 `json:"node"`
	// Boot names the process, Number counts its announcements: an older one
	// that comes late is no news.
	Boot        string           `json:"boot"`
	Number      uint64           `json:"number"`
	Incarnation string           `json:"incarnation"`
	Version     string           `json:"version"`
	Stopping    bool             `json:"stopping,omitempty"`
	Problem     string           `json:"problem,omitempty"`
	Strangers   map[int32]string `json:"strangers,omitempty"`
	Broker      BrokerReport     `json:"broker"`
	Groups      []GroupReport    `json:"groups"`
	Recovery    *RecoveryReport  `json:"recovery,omitempty"`
	Rebuilds    []RebuildStatus  `json:"rebuilds,omitempty"` // at most maxRebuilds
	// Hears are the nodes that this one has heard of within the lease, itself
	// always. A build of before does not say.
	Hears []int32 `json:"hears,omitempty"`

	heard time.Time // when it arrived; owned by the roster
	pace            // of another node; owned by the roster
}

// older says that a build from before Hears, and from before KindKeepNode, speaks.
func (a *Announcement) older() bool { return len(a.Hears) == 0 }

// roster is the newest announcement of every node, this one included.
type roster struct {
	mu   sync.Mutex
	news map[int32]*Announcement
}

// put notes an announcement unless a newer one of that process is known.
func (r *roster) put(a *Announcement) bool {
	a.heard = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.news[a.Node]
	if old != nil && old.Boot == a.Boot && old.Number >= a.Number {
		return false
	}
	a.measure(old)
	r.news[a.Node] = a
	return true
}

// check says whether an announcement is what the code that reads it expects.
func (a *Announcement) check(from int32, groups int) error {
	if a.Node != from {
		return fmt.Errorf("an announcement of node %d came from node %d", a.Node, from)
	}
	if len(a.Groups) != groups {
		return fmt.Errorf("an announcement of %d groups, there are %d", len(a.Groups), groups)
	}
	for i := range a.Groups {
		if a.Groups[i].Group != uint32(i) {
			return fmt.Errorf("an announcement has group %d in place %d", a.Groups[i].Group, i)
		}
	}
	return nil
}

// fresh returns the announcements that still hold, and when the first of them
// expires.
func (r *roster) fresh() (map[int32]*Announcement, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[int32]*Announcement, len(r.news))
	var next time.Time
	for id, a := range r.news {
		until := a.heard.Add(lease)
		if time.Until(until) <= 0 {
			continue
		}
		out[id] = a
		if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	return out, next
}

// last returns the newest word of every node, however old.
func (r *roster) last() map[int32]*Announcement {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[int32]*Announcement, len(r.news))
	for id, a := range r.news {
		out[id] = a
	}
	return out
}

// describe puts together what this node has to say.
func (c *Cluster) describe() *Announcement {
	a := &Announcement{Node: c.cfg.Self, Boot: c.boot, Number: c.announced.Add(1), Incarnation: c.node.Incarnation(), Version: c.cfg.Version,
		Stopping: c.stopping.Load(), Problem: c.node.Problem(), Strangers: c.node.Strangers(), Broker: c.cfg.Broker()}
	for _, g := range c.node.Groups() {
		a.Groups = append(a.Groups, c.describeGroup(g))
	}
	if c.cfg.Recovery != nil {
		r := c.cfg.Recovery()
		a.Recovery = &r
	}
	news, _ := c.roster.fresh()
	news[c.cfg.Self] = a // before its first word, and after a suspension
	a.Hears = slices.Sorted(maps.Keys(news))
	rebuilds := c.Rebuilds()
	a.Rebuilds = rebuilds[:min(maxRebuilds, len(rebuilds))]
	return a
}

func (c *Cluster) describeGroup(g *node.Group) GroupReport {
	rep := GroupReport{Group: g.ID, Role: "none", Applied: g.Log().Applied().Get()}
	r := g.Raft()
	if r == nil {
		return rep
	}
	if c.Away(g) {
		rep.Role = roleAway
		return rep
	}
	rep.Role, rep.Term, rep.Commit = roleName(r.State()), r.CurrentTerm(), r.CommitIndex()
	st := c.applier.Status(g.ID)
	rep.Broker, rep.Trusted = st.BrokerApplied, g.TailIndex()
	rep.LagReport = LagReport{g.LogBytes(rep.Broker, rep.Applied), c.lagOf(g.ID, rep.Broker, rep.Applied), st.QueuedBytes, st.QueuedBatches}
	rep.tellTrouble(st.Troubled)
	l := g.Leading.Get()
	if l == nil {
		return rep
	}
	rep.Leading, rep.Term = true, l.Term
	rep.NotReady = c.notReady(g, l)
	rep.Settled = c.settles.get(g.ID)
	rep.Servers = make(map[int32]bool)
	for _, s := range g.Servers() {
		rep.Servers[s.Node] = rep.Servers[s.Node] || s.Voter
	}
	return rep
}

// tellTrouble puts the partitions in trouble into a report, the worst first.
func (rep *GroupReport) tellTrouble(all []apply.PartitionStatus) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b apply.PartitionStatus) int {
		bad := func(s string) int {
			if unsound(apply.State(s)) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(bad(a.State), bad(b.State)), cmp.Compare(a.TopicID, b.TopicID), cmp.Compare(a.Partition, b.Partition))
	})
	for i := range all {
		p := &all[i]
		if unsound(apply.State(p.State)) {
			rep.Unsound++
		}
		if len(rep.Troubled) == maxTroubled {
			continue
		}
		rep.Troubled = append(rep.Troubled, *p)
		if apply.State(p.State) == apply.StateQuarantined {
			rep.Quarantined = append(rep.Quarantined, fmt.Sprintf("%s/%d: %s", p.Topic, p.Partition, p.Reason))
		}
	}
}

// announce tells the others, on change and regularly, until the context ends.
func (c *Cluster) announce(ctx context.Context) {
	t := time.NewTicker(announceEvery)
	defer t.Stop()
	for {
		begin := time.Now()
		c.publish()
		if !rest(ctx, begin) {
			return
		}
		select {
		case <-c.changed:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// rest waits restTimes as long as what began then took, so that looking at very
// many partitions, all of which are changing, leaves most of the time to what
// they wait for. A small cluster does not notice.
func rest(ctx context.Context, begin time.Time) bool {
	took := time.Since(begin)
	if took < time.Millisecond {
		return ctx.Err() == nil
	}
	t := time.NewTimer(min(restTimes*took, maxRest))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish notes this node's own announcement and hands it to the senders.
func (c *Cluster) publish() {
	a := c.describe()
	raw, err := json.Marshal(a)
	if err != nil {
		c.log.Error("cannot encode an announcement", "error", err)
		return
	}
	c.roster.put(a)
	c.conclude(a)
	for _, box := range c.mailboxes() {
		select {
		case <-box.mail: // an older one that was not sent yet
		default:
		}
		box.mail <- raw // capacity 1, and this goroutine alone fills it
	}
	c.poke()
}

// mailbox is what is to be sent to one peer.
type mailbox struct {
	mail chan []byte // capacity 1
	stop context.CancelFunc
}

// mailboxes returns one for every peer, with a sender behind it.
func (c *Cluster) mailboxes() map[int32]*mailbox {
	peers := c.node.Peers()
	for id, box := range c.mail {
		if !slices.Contains(peers, id) {
			box.stop()
			delete(c.mail, id)
		}
	}
	for _, id := range peers {
		if id == c.cfg.Self || c.mail[id] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(c.ctx)
		box := &mailbox{make(chan []byte, 1), cancel}
		c.mail[id] = box
		c.run(func() { c.send(ctx, id, box.mail) })
	}
	return c.mail
}

// send delivers announcements to one peer, the newest only.
func (c *Cluster) send(ctx context.Context, peer int32, mail <-chan []byte) {
	for {
		select {
		case raw := <-mail:
			call, cancel := context.WithTimeout(ctx, lease)
			if _, err := c.node.Call(call, peer, methodAnnounce, raw); err != nil {
				c.log.Trace("an announcement did not get through", "node", peer, "error", err)
			}
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// heard answers methodAnnounce.
func (c *Cluster) heard(_ context.Context, from transport.Hello, payload []byte) ([]byte, error) {
	a := new(Announcement)
	if err := json.Unmarshal(payload, a); err != nil {
		return nil, fmt.Errorf("read an announcement: %w", err)
	}
	if err := a.check(from.NodeID, len(c.node.Groups())); err != nil {
		return nil, err
	}
	a.applied = c.appliedHere()
	if c.roster.put(a) {
		c.conclude(a)
		c.poke()
	}
	return nil, nil
}

// conclude passes on what a leader in office has applied. A leader of an
// earlier term may have applied less than this node's broker rightly holds, so
// this node's own Raft must know it as the leader of the present term.
func (c *Cluster) conclude(a *Announcement) {
	for _, rep := range a.Groups {
		g := c.node.Group(rep.Group)
		r := g.Raft()
		if rep.Leading && r != nil && g.Leader.Get() == a.Node && r.CurrentTerm() == rep.Term {
			c.applier.Conclude(rep.Group, rep.Applied)
		}
	}
}

package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lockstep/fsm"
	"lockstep/internal/apply"
)

// A member that nobody has heard of for raft.reap_after is taken out by the
// catalog's leader, through the order that an operator would give.

const (
	// reapStep is the most that one look adds to a node's silence. A process
	// that was suspended has not listened meanwhile.
	reapStep = 4 * dutyEvery
	// reapPause is the pause before an order that was refused is given again.
	reapPause = 5 * time.Second
)

// reaper counts for how long members have been silent, since this node leads
// the catalog. Only the duties touch it.
type reaper struct {
	after  time.Duration
	looked time.Time
	silent map[int32]time.Duration
	tried  time.Time
	said   string // why the last order was not given

	marked int32             // whose marks these are, 0: nobody's
	marks  map[uint32]uint64 // by group: what was applied when it had been silent for too long
}

func newReaper(after time.Duration) *reaper {
	return &reaper{after: after, silent: make(map[int32]time.Duration)}
}

// forget begins anew: what was heard while another node led is not known.
func (r *reaper) forget() {
	r.recount()
	r.said = ""
}

// recount begins the counts anew.
func (r *reaper) recount() {
	clear(r.silent)
	r.looked, r.marked = time.Time{}, 0
}

// heard ends a member's silence.
func (r *reaper) heard(id int32) {
	delete(r.silent, id)
	if r.marked == id {
		r.marked = 0
	}
}

// count adds the time since the last look to the silence of every member that
// nobody hears, and returns the one that has been silent for longest and for
// too long, 0 if there is none.
func (r *reaper) count(now time.Time, nodes map[int32]*fsm.CatalogNode, heard map[int32]bool) (dead int32) {
	step := min(now.Sub(r.looked), reapStep)
	if r.looked.IsZero() {
		step = 0
	}
	r.looked = now
	for id := range r.silent {
		if n := nodes[id]; n == nil || n.State != fsm.NodeMember {
			r.heard(id)
		}
	}
	for id, n := range nodes {
		if n.State != fsm.NodeMember {
			continue
		}
		if heard[id] {
			r.heard(id)
			continue
		}
		r.silent[id] += step
		if s := r.silent[id]; s >= r.after && (dead == 0 || s > r.silent[dead] || s == r.silent[dead] && id < dead) {
			dead = id
		}
	}
	return dead
}

// heardBySome are the nodes that this one or another one has heard of: a link between
// two of them may be cut. What another one says of a node under its former
// incarnation is no matter: nobody admits that. Mute is one whose build does not
// say whom it hears, 0 if there is none.
func heardBySome(news map[int32]*Announcement) (heard map[int32]bool, mute int32) {
	heard = make(map[int32]bool)
	for id, a := range news {
		heard[id] = true
		if a.older() {
			mute = max(mute, id)
		}
		for _, other := range a.Hears {
			heard[other] = true
		}
	}
	return heard, mute
}

// reap takes the member out that has been silent for too long. Only the
// catalog's leader calls it.
func (c *Cluster) reap(ctx context.Context, r *reaper) {
	if r.after <= 0 {
		return
	}
	_, nodes := c.catalogNodes()
	now := time.Now()
	news, _ := c.roster.fresh()
	heard, mute := heardBySome(news)
	if mute != 0 {
		r.recount() // it may hear who is silent here
		if why := "node " + itoa(mute) + " does not say whom it hears: upgrade it"; why != r.said {
			r.said = why
			c.log.Info("raft.reap_after waits", "reason", why)
		}
		return
	}
	dead := r.count(now, nodes, heard)
	if dead == 0 || now.Sub(r.tried) < reapPause && !r.tried.IsZero() {
		return
	}
	r.tried = now
	if changes := underWay(nodes); len(changes) > 0 {
		r.wait(c, dead, "another change of the membership is under way: "+changes[0])
		return
	}
	if why := c.onlyCopy(r, dead, nodes, news); why != "" {
		r.wait(c, dead, "it may have the only copy of something: "+why,
			"next", "start node "+itoa(dead)+" again, or look at its broker, and when what that has may be lost: lockstep members remove "+itoa(dead))
		return
	}
	silent := r.silent[dead].Round(time.Second)
	if _, err := c.RemoveNode(ctx, dead, false); err != nil {
		if ctx.Err() == nil {
			r.wait(c, dead, err.Error())
		}
		return
	}
	r.said = ""
	c.log.Warn("a member that nobody has heard of is taken out of the cluster", "node", dead, "silent", silent.String(),
		"raft.reap_after", r.after.String(), "incarnation", nodes[dead].Incarnation, "raft", nodes[dead].Raft,
		"next", "to let it in again: empty its data_dir and its broker, then lockstep members add "+itoa(dead)+" --address "+nodes[dead].Raft)
}

// wait says, once for each reason, why a dead member is not taken out.
func (r *reaper) wait(c *Cluster, dead int32, why string, more ...any) {
	if why == r.said {
		return
	}
	r.said = why
	c.log.Warn("a member that nobody has heard of cannot be taken out yet", append([]any{"node", dead,
		"silent", r.silent[dead].Round(time.Second).String(), "raft.reap_after", r.after.String(), "reason", why}, more...)...)
}

// onlyCopy says why a dead member's broker may be the only one that has something,
// empty if it is not: each broker that stays and is heard of has taken all that
// was applied when the member had been silent for too long. Whoever is out is
// not asked any more before a batch that the others refuse is cut, and what a
// leader's broker alone took was acknowledged. An operator may know better.
func (c *Cluster) onlyCopy(r *reaper, dead int32, nodes map[int32]*fsm.CatalogNode, news map[int32]*Announcement) string {
	if refused := c.applier.Refusals(); len(refused) > 0 {
		return partitionIs(refused[0].Topic, refused[0].TP.Partition, string(apply.StateRefused), c.cfg.Self)
	}
	groups := c.node.Groups()
	if r.marked != dead {
		r.marks = make(map[uint32]uint64)
		for _, g := range groups {
			// Its leader has applied whatever was committed under another one.
			_, lead := announcedLeader(g.ID, news)
			if lead == nil {
				return fmt.Sprintf("nobody is heard to lead group %d", g.ID)
			}
			r.marks[g.ID] = lead.Applied
		}
		r.marked = dead
	}
	for _, id := range slices.Sorted(maps.Keys(news)) {
		if n := nodes[id]; id == dead || n == nil || !n.Takes() {
			continue
		}
		for _, g := range groups {
			rep := &news[id].Groups[g.ID]
			switch {
			case rep.Role == roleAway:
			case len(rep.Troubled) > 0:
				p := &rep.Troubled[0]
				return partitionIs(p.Topic, p.Partition, p.State, id)
			case rep.Broker < r.marks[g.ID]:
				return fmt.Sprintf("the broker of node %d does not have everything of group %d yet", id, g.ID)
			}
		}
	}
	return ""
}

func partitionIs(topic string, partition int32, state string, node int32) string {
	return fmt.Sprintf("partition %s/%d is %s on node %d", topic, partition, state, node)
}

// underWay are the changes of the membership that are not through.
func underWay(nodes map[int32]*fsm.CatalogNode) []string {
	var out []string
	for _, n := range nodes {
		if n.State == fsm.NodeJoining || n.State == fsm.NodeLeaving {
			out = append(out, "node "+itoa(n.ID)+" is "+string(n.State))
		}
	}
	slices.Sort(out)
	return out
}

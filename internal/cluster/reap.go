package cluster

import (
	"context"
	"slices"
	"time"

	"lockstep/fsm"
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
}

func newReaper(after time.Duration) *reaper {
	return &reaper{after: after, silent: make(map[int32]time.Duration)}
}

// forget begins anew: what was heard while another node led is not known.
func (r *reaper) forget() {
	clear(r.silent)
	r.looked, r.said = time.Time{}, ""
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
			delete(r.silent, id)
		}
	}
	for id, n := range nodes {
		if n.State != fsm.NodeMember {
			continue
		}
		if heard[id] {
			delete(r.silent, id)
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
// incarnation is no matter: nobody admits that.
func (c *Cluster) heardBySome() map[int32]bool {
	news, _ := c.roster.fresh()
	heard := make(map[int32]bool)
	for id, a := range news {
		heard[id] = true
		for _, other := range a.Hears {
			heard[other] = true
		}
	}
	return heard
}

// reap takes the member out that has been silent for too long. Only the
// catalog's leader calls it.
func (c *Cluster) reap(ctx context.Context, r *reaper) {
	if r.after <= 0 {
		return
	}
	_, nodes := c.catalogNodes()
	now := time.Now()
	dead := r.count(now, nodes, c.heardBySome())
	if dead == 0 || now.Sub(r.tried) < reapPause && !r.tried.IsZero() {
		return
	}
	r.tried = now
	if changes := underWay(nodes); len(changes) > 0 {
		r.wait(c, dead, "another change of the membership is under way: "+changes[0])
		return
	}
	silent := r.silent[dead].Round(time.Second)
	if err := c.RemoveNode(ctx, dead, false); err != nil {
		if ctx.Err() == nil {
			r.wait(c, dead, err.Error())
		}
		return
	}
	r.said = ""
	c.log.Warn("a member that nobody has heard of is taken out of the cluster", "node", dead, "silent", silent.String(),
		"raft.reap_after", r.after.String(), "incarnation", nodes[dead].Incarnation, "raft", nodes[dead].Raft,
		"next", "to let it in again: empty its data_dir, then lockstep members add "+itoa(dead))
}

// wait says, once for each reason, why a dead member is not taken out.
func (r *reaper) wait(c *Cluster, dead int32, why string) {
	if why == r.said {
		return
	}
	r.said = why
	c.log.Warn("a member that nobody has heard of cannot be taken out yet", "node", dead, "silent", r.silent[dead].Round(time.Second).String(),
		"raft.reap_after", r.after.String(), "reason", why)
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

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lockstep/e2e/check"
)

// running is a fault that lasts.
type running struct {
	step
	kind   *chaosKind
	number int
	nodes  []*node
	undo   []func()
	landed []func() bool
}

// busy says whether another fault has what this one needs of a node. Links are
// shared; but of what a fault does to them nothing is to be seen unless the
// proxies of both ends run, and a fault of one link takes the next node's.
func (x *chaos) busy(n *node, u uses) bool {
	next := x.c.nodes[n.id%len(x.c.nodes)]
	return slices.ContainsFunc(x.active, func(r *running) bool {
		if u == usesLinks {
			return r.kind.uses&usesProxy != 0 && (slices.Contains(r.nodes, n) || slices.Contains(r.nodes, next))
		}
		return r.kind.uses&u&^usesLinks != 0 && slices.Contains(r.nodes, n)
	})
}

// begin makes the fault of a step, on the node that it names if that is free,
// else on another.
func (x *chaos) begin(number int, s step) {
	k := chaosKindOf(s.Kind)
	if k == nil {
		x.t.Fatalf("schedule: there is no fault %q", s.Kind)
	}
	r := &running{step: s, kind: k, number: number}
	for _, n := range x.targets(s.Target) {
		if !x.busy(n, k.uses) && (k.everyNode || len(r.nodes) == 0) {
			x.fatalIfEnded(n)
			x.revive(n)
			r.nodes = append(r.nodes, n)
		}
	}
	if len(r.nodes) == 0 { // all are busy, some perhaps until the schedule's end
		if time.Since(x.began) < x.lasts {
			x.after(time.Second, func() { x.begin(number, s) })
		} else {
			x.t.Logf("%6.1f s: left out, no node is free for it: %s", time.Since(x.began).Seconds(), s.Kind)
		}
		return
	}
	if s.Lasts > 0 {
		x.after(s.Lasts, func() { x.end(number) })
	}
	e := check.Event{Kind: check.Fault, Seq: number, Text: s.Kind, Lasts: s.Lasts}
	for _, n := range r.nodes {
		if e.Node = n.id; k.deposes > 0 && s.Lasts >= k.deposes && len(x.l.leads(n.id)) > 0 {
			e.Leading = true
		}
	}
	x.log.Add(e)
	x.t.Logf("%6.1f s: %s on %s (%s)", time.Since(x.began).Seconds(), s.Kind, nodeNames(r.nodes), s.Target)
	for _, n := range r.nodes {
		undo, landed := k.begin(x, n)
		r.undo, r.landed = append(r.undo, undo), append(r.landed, landed)
	}
	x.active = append(x.active, r)
}

func nodeNames(nodes []*node) string {
	var ids []string
	for _, n := range nodes {
		ids = append(ids, fmt.Sprint(n.id))
	}
	return "node " + strings.Join(ids, ",")
}

// end undoes a fault and starts what it left dead.
func (x *chaos) end(number int) {
	i := slices.IndexFunc(x.active, func(r *running) bool { return r.number == number })
	if i < 0 {
		return
	}
	r := x.active[i]
	if slices.ContainsFunc(r.landed, func(landed func() bool) bool { return landed() }) {
		x.log.Add(check.Event{Kind: check.Landed, Seq: number})
	}
	for _, f := range r.undo {
		f()
	}
	x.active = slices.Delete(x.active, i, i+1)
	for _, n := range r.nodes {
		x.revive(n)
	}
}

// revive starts what is dead of a node, and of which no other fault keeps it so.
func (x *chaos) revive(n *node) {
	if n.broker.proc.exited() && !x.busy(n, usesBroker) {
		if err := n.broker.spawn(); err != nil {
			x.t.Fatal(err)
		}
	}
	if !n.running() && !x.busy(n, usesProxy) {
		n.startProxy(x.t)
	}
}

// fatalIfEnded notes that a process ended which no fault ended.
func (x *chaos) fatalIfEnded(n *node) {
	if n.proc.exited() && !x.busy(n, usesProxy) {
		x.l.fatal("lockstep of node %d ended by itself: %v: %s", n.id, n.proc.err, tail(n.logFile(), 1))
	}
	if n.broker.proc.exited() && !x.busy(n, usesBroker) {
		x.l.fatal("the broker of node %d ended by itself: %v: %s", n.id, n.broker.proc.err, tail(n.broker.outFile(), 3))
	}
}

// targets returns all nodes, the one that is meant in front.
func (x *chaos) targets(target string) []*node {
	kind, rest, _ := strings.Cut(target, ":")
	var number int
	if _, err := fmt.Sscanf(rest, "%d", &number); err != nil {
		x.t.Fatalf("schedule: target %q: %v", target, err)
	}
	nodes := slices.Clone(x.c.nodes)
	i := slices.IndexFunc(nodes, func(n *node) bool {
		if kind == "leader" {
			return slices.Contains(x.l.leads(n.id), number)
		}
		return n.id == number
	})
	if i > 0 {
		nodes = append(append([]*node{}, nodes[i:]...), nodes[:i]...)
	}
	return nodes
}

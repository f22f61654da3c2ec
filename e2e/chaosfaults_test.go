//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"lockstep/e2e/check"
)

// step is one fault of a schedule.
type step struct {
	At     time.Duration `json:"at"` // since the schedule began
	Kind   string        `json:"kind"`
	Target string        `json:"target"` // "leader:GROUP" or "node:ID", as it is when the step begins
	Lasts  time.Duration `json:"lasts"`  // 0: until the schedule's end
}

// uses says what of its node a fault has for itself while it lasts.
type uses uint8

const (
	usesProxy uses = 1 << iota
	usesBroker
	usesLinks // shared: links count their faults
)

// chaosKind is a kind of fault. begin makes it, and returns how it is undone
// and how one sees that it had an effect.
type chaosKind struct {
	name      string
	kafkaOnly bool // kills a broker, which the embedded one does not survive whole
	everyNode bool
	once      bool // a second time could take the last good copy
	uses      uses
	// deposes is how long it must last for a leader that it hits to be
	// replaced, 0 if it need not be.
	deposes time.Duration
	begin   func(x *chaos, n *node) (undo func(), landed func() bool)
}

// certainly is how long a leader that hears nobody, or does not run, may stay
// the leader in the eyes of all.
const certainly = 2500 * time.Millisecond

var chaosKinds = []chaosKind{
	{name: "kill-proxy", uses: usesProxy, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGKILL, n.proc), n.proc.exited
	}},
	{name: "stop-proxy", uses: usesProxy, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGTERM, n.proc), n.proc.exited
	}},
	{name: "pause-proxy", uses: usesProxy, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) { return x.pause(n.proc) }},
	{name: "pause-broker", uses: usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) { return x.pause(n.broker.proc) }},
	{name: "pause-node", uses: usesProxy | usesBroker, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		undoProxy, landed := x.pause(n.proc)
		undoBroker, _ := x.pause(n.broker.proc)
		return func() { undoProxy(); undoBroker() }, landed
	}},
	{name: "restart-broker", uses: usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGTERM, n.broker.proc), n.broker.proc.exited
	}},
	{name: "late-appends", uses: usesProxy | usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) {
		// What the dead proxy sent is executed beside what the next one sends.
		undo, landed := x.pause(n.broker.proc)
		dead := n.proc
		x.after(300*time.Millisecond, func() {
			x.kill(dead)
			n.startProxy(x.t)
		})
		return undo, func() bool { return landed() || dead.exited() }
	}},
	{name: "wipe-broker", once: true, uses: usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) {
		undo := x.down(syscall.SIGTERM, n.broker.proc)
		return func() {
			undo()
			x.wipe(n.broker)
		}, n.broker.proc.exited
	}},
	{name: "fill-disk", uses: usesProxy, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) { return x.fillDisk(n) }},
	{name: "kill-proxies", everyNode: true, uses: usesProxy, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGKILL, n.proc), n.proc.exited
	}},
	{name: "kill-broker", kafkaOnly: true, uses: usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGKILL, n.broker.proc), n.broker.proc.exited
	}},
	{name: "kill-node", kafkaOnly: true, uses: usesProxy | usesBroker, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGKILL, n.proc, n.broker.proc), n.proc.exited
	}},
	{name: "kill-everything", kafkaOnly: true, everyNode: true, uses: usesProxy | usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.down(syscall.SIGKILL, n.proc, n.broker.proc), n.proc.exited
	}},
	{name: "isolate", uses: usesLinks, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() { return []func(){x.net.oneWay(n.id, o.id), x.net.oneWay(o.id, n.id)} })
	}},
	{name: "isolate-reset", uses: usesLinks, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() { return []func(){x.net.reset(n.id, o.id)} })
	}},
	{name: "mute", uses: usesLinks, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() { return []func(){x.net.oneWay(n.id, o.id)} })
	}},
	{name: "deaf", uses: usesLinks, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() { return []func(){x.net.oneWay(o.id, n.id)} })
	}},
	{name: "cut-link", uses: usesLinks, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() {
			if o.id != n.id%3+1 {
				return nil
			}
			return []func(){x.net.oneWay(n.id, o.id), x.net.oneWay(o.id, n.id)}
		})
	}},
	{name: "cut-one-way", uses: usesLinks, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() {
			if o.id != n.id%3+1 {
				return nil
			}
			return []func(){x.net.oneWay(n.id, o.id)}
		})
	}},
	{name: "slow-links", uses: usesLinks, begin: func(x *chaos, n *node) (func(), func() bool) {
		return x.links(n, func(o *node) []func() { return []func(){x.net.slow(n.id, o.id, 60*time.Millisecond)} })
	}},
}

func chaosKindOf(name string) *chaosKind {
	for i := range chaosKinds {
		if chaosKinds[i].name == name {
			return &chaosKinds[i]
		}
	}
	return nil
}

// down ends processes; undo starts what runs no more.
func (x *chaos) down(sig syscall.Signal, procs ...*process) (undo func()) {
	for _, p := range procs {
		if err := p.signal(sig); err != nil {
			x.t.Fatal(err)
		}
	}
	return func() {
		for _, p := range procs {
			select {
			case <-p.done:
			case <-time.After(40 * time.Second): // a proxy may take twice 15 s
				x.t.Errorf("%s ignores %s", p.name, sig)
				x.kill(p)
			}
		}
	}
}

func (x *chaos) kill(p *process) {
	if err := p.kill9(); err != nil {
		x.t.Fatal(err)
	}
}

// pause stops a process with SIGSTOP.
func (x *chaos) pause(p *process) (undo func(), landed func() bool) {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		x.t.Fatal(err)
	}
	stopped := func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		i := strings.LastIndexByte(string(b), ')')
		return err == nil && i > 0 && strings.HasPrefix(string(b[i:]), ") T")
	}
	return func() {
		if err := p.signal(syscall.SIGCONT); err != nil {
			x.t.Fatal(err)
		}
	}, stopped
}

// wipe gives a broker that was stopped an empty disk.
func (x *chaos) wipe(b *broker) {
	ctx, cancel := context.WithTimeout(x.t.Context(), brokerReady)
	defer cancel()
	if err := errors.Join(os.RemoveAll(b.dataDir()), b.format(ctx)); err != nil {
		x.t.Fatal(err)
	}
}

// raftDiskBytes is the size of the disk on which a node has its data_dir.
const raftDiskBytes = 256 << 20

// smallDisk gives a node a disk of its own for its data_dir. That takes a
// mount; who may not mount goes without full disks.
func (x *chaos) smallDisk(n *node) {
	if err := os.MkdirAll(n.dataDir(), 0o700); err != nil {
		x.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", n.dataDir(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", raftDiskBytes)); err != nil {
		x.t.Logf("node %d gets no disk of its own, and no fault fills it: mount: %v", n.id, err)
		return
	}
	x.disks[n.id] = true
	x.t.Cleanup(func() {
		if err := syscall.Unmount(n.dataDir(), 2 /* MNT_DETACH: the processes end later */); err != nil {
			x.t.Error(err)
		}
	})
}

// fillDisk leaves no room on the disk of a node's data_dir. The node must stop
// by itself; it is started again when there is room.
func (x *chaos) fillDisk(n *node) (undo func(), landed func() bool) {
	if !x.disks[n.id] {
		return func() {}, func() bool { return true } // said so at the start
	}
	filler := filepath.Join(n.dataDir(), "filler")
	f, err := os.Create(filler)
	if err == nil {
		piece := make([]byte, 1<<20)
		for ; err == nil && len(piece) > 0; piece = piece[:len(piece)/2] {
			for err == nil {
				_, err = f.Write(piece)
			}
			if errors.Is(err, syscall.ENOSPC) {
				err = nil
			}
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		x.t.Fatal(err)
	}
	p := n.proc
	return func() {
		if err := os.Remove(filler); err != nil {
			x.t.Fatal(err)
		}
		if !p.exited() { // nothing was written meanwhile, or it hangs
			x.kill(p)
		}
	}, p.exited
}

// links makes a fault of the links between a node and others. It landed if
// something came to a link while it lasted.
func (x *chaos) links(n *node, fault func(o *node) []func()) (undo func(), landed func() bool) {
	before := x.net.felt()
	var undos []func()
	for _, o := range x.c.others(n.id) {
		undos = append(undos, fault(o)...)
	}
	return func() {
		for _, f := range undos {
			f()
		}
	}, func() bool { return x.net.felt() > before }
}

// running is a fault that lasts.
type running struct {
	step
	kind   *chaosKind
	number int
	nodes  []*node
	undo   []func()
	landed []func() bool
}

// busy says whether another fault has what this one needs of a node.
func (x *chaos) busy(n *node, u uses) bool {
	return slices.ContainsFunc(x.active, func(r *running) bool {
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
	if len(r.nodes) == 0 { // all are busy
		x.after(time.Second, func() { x.begin(number, s) })
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
	x.t.Logf("%6.1f s: %s on %s (%s)", time.Since(x.began).Seconds(), s.Kind, names2(r.nodes), s.Target)
	for _, n := range r.nodes {
		undo, landed := k.begin(x, n)
		r.undo, r.landed = append(r.undo, undo), append(r.landed, landed)
	}
	x.active = append(x.active, r)
}

func names2(nodes []*node) string {
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

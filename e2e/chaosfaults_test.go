//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	{name: "pause-proxy", uses: usesProxy, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) { return x.pauseProxy(n) }},
	{name: "pause-broker", uses: usesBroker, begin: func(x *chaos, n *node) (func(), func() bool) { return x.pause(n.broker.proc) }},
	{name: "pause-node", uses: usesProxy | usesBroker, deposes: certainly, begin: func(x *chaos, n *node) (func(), func() bool) {
		undoProxy, landed := x.pauseProxy(n)
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
	{name: "fill-disk", uses: usesProxy, begin: func(x *chaos, n *node) (func(), func() bool) { return x.fillDisk(n) }},
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
			if !p.exited() { // nothing new was written meanwhile, or it hangs
				x.kill(p)
			}
		}, func() bool {
			var fs syscall.Statfs_t
			return p.exited() || syscall.Statfs(n.dataDir(), &fs) == nil && fs.Bavail == 0
		}
}

// pauseProxy is pause for a proxy, with a row at the moment when it goes on.
func (x *chaos) pauseProxy(n *node) (undo func(), landed func() bool) {
	goOn, landed := x.pause(n.proc)
	return func() {
		x.log.Add(check.Event{Kind: check.Resume, By: endsReader(n)})
		goOn()
	}, landed
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

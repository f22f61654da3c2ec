package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// peerBroker is a peer's broker that holds everything, as the source of copies.
type peerBroker struct {
	w    *world
	mu   sync.Mutex
	gate chan struct{} // each pushed batch takes a token; nil: no gate
	fail int           // calls of fill that fail after a batch
	got  []string      // ranges that were asked for
}

func (p *peerBroker) fill(ctx context.Context, l *lane, from int64, last kafkawire.Batch, want *fsm.Partition, push func(item) error) error {
	p.mu.Lock()
	p.got = append(p.got, fmt.Sprintf("%s [%d,%d)", l.tp, from, want.NextOffset))
	gate := p.gate
	fail := p.fail > 0
	p.fail--
	p.mu.Unlock()
	p.w.mu.Lock()
	all := slices.Clone(p.w.want[l.tp])
	p.w.mu.Unlock()
	for _, it := range all {
		if it.end() == from && last != nil {
			if diff := it.compare(l.tp.Topic, last, false); diff != "" {
				return distrustf("the broker's last batch %s", diff)
			}
		}
		if it.base < from || it.end() > want.NextOffset {
			continue
		}
		if gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		raw := kafkawire.Batch(it.stampedCopy(l.tp.Topic))
		raw[7], raw[6] = byte(it.base), byte(it.base>>8) // as a broker gives it, below 65536
		copied := *it.trace()
		copied.raw = raw
		if err := push(copied); err != nil {
			return err
		}
		if fail {
			return errors.New("the peer went away")
		}
	}
	return nil
}

func (p *peerBroker) ranges() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// trusting has a world whose base follows at once what the broker holds.
func trusting(c *Config) {
	c.CandidateBytes, c.TrustAfter = 1, time.Millisecond
}

// quickly makes an applier wait for nothing that only saves work.
func quickly(a *Applier) {
	a.idleAfter, a.flusher.gap = 10*time.Millisecond, time.Millisecond
}

func newTrustingWorld(t *testing.T, groups uint32, edit func(*Config)) *world {
	t.Helper()
	w := &world{}
	w.edit = quickly
	w.setUp(t, groups, func(c *Config) {
		trusting(c)
		if edit != nil {
			edit(c)
		}
	})
	w.peer = &peerBroker{w: w}
	w.restart()
	return w
}

// based waits until a group's base is its newest entry.
func (w *world) based(group uint32) {
	w.t.Helper()
	w.await("the base follows", func() bool {
		s := w.applier.Status(group)
		return s.Base == w.heads[group].Index && s.Trusted == s.Base
	})
}

// paths checks how often paths were taken since the applier was opened.
func (w *world) paths(want map[Path]uint64) {
	w.t.Helper()
	got := w.applier.Metrics().Recoveries
	for p, n := range want {
		if got[p] != n {
			w.t.Errorf("path %s was taken %d times, want %d", p, got[p], n)
		}
	}
}

func TestStartsFromTheBase(t *testing.T) {
	t.Parallel()
	w := newTrustingWorld(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.send(tpA, 5)
	w.send(tpC, 4)
	w.settled()
	w.based(1)
	w.based(2)
	w.logs[1].mu.Lock()
	if w.logs[1].first != w.heads[1].Index+1 {
		t.Fatalf("the log still begins at %d", w.logs[1].first)
	}
	w.logs[1].mu.Unlock()
	w.restart()
	w.settled()
	w.paths(map[Path]uint64{PathReplay: 3, PathCopy: 0, PathShorter: 0, PathQuarantine: 0})
	w.send(tpA, 3)
	w.send(tpB, 3)
	w.send(tpC, 3)
	w.settled()
	w.stop()
	w.send(tpA, 3) // while it is down: the broker ends at the base, below the log
	w.start()
	w.settled()
	w.open(1, 2, "b", 0)
	w.send(newA, 3)
	w.settled()
	w.paths(map[Path]uint64{PathReplay: 3}) // a new topic recovers from nothing
	w.based(1)
	w.restart()
	w.settled()
}

// The tables of docs/recovery.md: where the broker's log ends, against the base.
func TestBrokerAgainstTheBase(t *testing.T) {
	t.Parallel()
	wiped := func(w *world, _ func()) { w.broker.wipe() }
	old := func(_ *world, restore func()) { restore() }
	for name, c := range map[string]struct {
		lose    func(w *world, restore func())
		running bool // the applier lives on
		path    Path
		times   uint64
	}{
		"ends at the base":                 {func(*world, func()) {}, false, PathReplay, 2},
		"ends below the base":              {old, false, PathCopy, 1},
		"has nothing":                      {wiped, false, PathWiped, 2},
		"ends below the base, still known": {old, true, PathCopy, 1},
		"has nothing, still known":         {wiped, true, PathWiped, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTrustingWorld(t, 1, nil)
			w.open(1, 1, "a", 0, 1)
			w.send(tpA, 5)
			w.send(tpB, 3)
			w.settled()
			restore := w.broker.saved()
			w.send(tpA, 20)
			w.settled()
			w.based(1)
			if !c.running {
				w.stop()
			}
			w.broker.stop()
			c.lose(w, restore)
			w.broker.start()
			if !c.running {
				w.start()
			}
			w.send(tpA, 2)
			w.send(tpB, 2)
			w.settled()
			w.paths(map[Path]uint64{c.path: c.times, PathQuarantine: 0})
			w.based(1)
		})
	}
}

// A broker that lost only what is above the base is filled from the log alone.
func TestShorterButNotBelowTheBase(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint("restarted ", restarted), func(t *testing.T) {
			w := newTrustingWorld(t, 1, nil)
			w.open(1, 1, "a", 0)
			w.send(tpA, 5)
			w.settled()
			w.based(1)
			restore := w.broker.saved()
			w.stop()
			w.cfg.TrustAfter = time.Hour
			w.start()
			w.send(tpA, 9)
			w.settled()
			if restarted {
				w.stop()
			}
			w.broker.stop()
			restore()
			w.broker.start()
			if restarted {
				w.start()
			}
			w.send(tpA, 1)
			w.settled()
			if restarted {
				w.paths(map[Path]uint64{PathReplay: 1, PathCopy: 0})
			} else {
				w.paths(map[Path]uint64{PathShorter: 1, PathCopy: 0})
			}
			if got := w.peer.(*peerBroker).ranges(); len(got) > 0 {
				t.Errorf("copied %v though the log had it", got)
			}
		})
	}
}

// A broker whose last batch is not the one that the base ends with is found out
// even if the log has nothing to compare it with.
func TestOtherBatchAtTheBase(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string]bool{"at its end": false, "below its end": true} {
		t.Run(name, func(t *testing.T) {
			w := newTrustingWorld(t, 1, nil)
			w.open(1, 1, "a", 0)
			w.send(tpA, 1)
			w.settled()
			restore := w.broker.saved()
			w.commit(1, w.appendCmd(tpA, 1, 30))
			if behind {
				w.send(tpA, 3)
			}
			w.settled()
			w.based(1)
			w.stop()
			w.broker.stop()
			restore()
			w.broker.start()
			w.local.rawAppend(t, "a", 0, kafkawire.Stamp(nil, makeBatch(1, 9, 200), fsm.ApplierProducerID(1), 0, 1))
			w.start()
			w.wantQuarantine(tpA, "has CRC")
			w.paths(map[Path]uint64{PathQuarantine: 1})
		})
	}
}

// A copy that is interrupted, by whatever, goes on from the broker's end, and
// nothing is served before it is complete.
func TestCopyIsInterrupted(t *testing.T) {
	t.Parallel()
	const batches = 12
	begin := func(t *testing.T) (*world, *peerBroker) {
		w := newTrustingWorld(t, 1, nil)
		w.open(1, 1, "a", 0)
		w.send(tpA, batches)
		w.settled()
		w.based(1)
		w.stop()
		w.broker.stop()
		w.broker.wipe()
		w.broker.start()
		p := w.peer.(*peerBroker)
		p.gate = make(chan struct{})
		w.start()
		return w, p
	}
	holds := func(w *world, n int) {
		w.await("the broker holds what was copied", func() bool {
			_, end, err := w.local.Reader.LogEnd(t.Context(), "a", 0)
			return err == nil && end == w.want[tpA][n-1].end()
		})
		if w.applier.Ready(tpA, 0) {
			t.Error("an incomplete partition is served")
		}
		w.await("it says that it copies", func() bool {
			tr := w.applier.Status(1).Troubled
			return len(tr) == 1 && tr[0].State == string(StateCopying)
		})
	}
	for name, interrupt := range map[string]func(w *world, p *peerBroker){
		"by a restart of the proxy":  func(w *world, _ *peerBroker) { w.restart() },
		"by a restart of the broker": func(w *world, _ *peerBroker) { w.broker.stop(); w.broker.start() },
		"by a lost connection":       func(w *world, _ *peerBroker) { w.local.current.lose() },
		"by the peer": func(_ *world, p *peerBroker) {
			p.mu.Lock()
			p.fail = 2
			p.mu.Unlock()
		},
		"by another wipe": func(w *world, _ *peerBroker) {
			w.broker.stop()
			w.broker.wipe()
			w.broker.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p := begin(t)
			for n := 1; n <= 3; n++ {
				p.gate <- struct{}{}
				if name != "by another wipe" {
					holds(w, n)
				}
				interrupt(w, p)
			}
			close(p.gate)
			w.send(tpA, 2)
			w.settled()
			w.based(1)
		})
	}
}

// Without anybody to copy from, the lane says so, and waits.
func TestNobodyToCopyFrom(t *testing.T) {
	t.Parallel()
	w := newTrustingWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.based(1)
	w.stop()
	w.peer = nil
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	w.start()
	w.await("it says so", func() bool {
		tr := w.applier.Status(1).Troubled
		return len(tr) == 1 && tr[0].State == string(StateCopying) && strings.Contains(tr[0].Reason, "nobody to copy it from") ||
			len(tr) == 1 && strings.Contains(tr[0].Reason, "no peer's broker to copy it from")
	})
	if w.applier.Ready(tpA, 0) || w.applier.Status(1).Trusted != 0 {
		t.Error("a partition that lacks all is served, or trusted")
	}
}

// While a lane copies, the base moves on and the log is cut behind it.
func TestBaseMovesDuringACopy(t *testing.T) {
	t.Parallel()
	w := newTrustingWorld(t, 1, func(c *Config) {
		c.OthersTrusted = func(uint32, uint64) bool { return true }
	})
	w.open(1, 1, "a", 0, 1)
	w.send(tpA, 6)
	w.settled()
	w.based(1)
	w.stop()
	w.broker.stop()
	w.broker.wipe()
	w.broker.start()
	p := w.peer.(*peerBroker)
	p.gate = make(chan struct{})
	w.logs[1].limit = 1
	w.start()
	p.gate <- struct{}{} // it copies
	for range 3 {
		w.send(tpA, 4)
		w.send(tpB, 2)
		w.await("the log is cut", func() bool { return w.applier.Status(1).Base == w.heads[1].Index })
	}
	w.logs[1].mu.Lock()
	w.logs[1].limit = 0
	w.logs[1].mu.Unlock()
	if w.applier.Status(1).Trusted != 0 {
		t.Error("a broker that lacks half of the base is trusted")
	}
	close(p.gate)
	w.settled()
	w.based(1)
	if got := p.ranges(); len(got) < 2 {
		t.Errorf("copied %v, and the base moved", got)
	}
}

// The others are always some way behind what was dealt out here. While the
// broker is down, the base follows all the same: no more of the log stays than
// what they are behind, and what some candidates lie apart.
func TestDeclareFollowsPeersThatLag(t *testing.T) {
	t.Parallel()
	const behind, sends = 40, 400
	var head atomic.Uint64
	w := newTrustingWorld(t, 1, func(c *Config) {
		c.OthersTrusted = func(_ uint32, index uint64) bool { return index+behind <= head.Load() }
	})
	w.open(1, 1, "a", 0)
	w.send(tpA, 1)
	w.settled()
	w.based(1)
	w.broker.stop()
	w.logs[1].mu.Lock()
	w.logs[1].limit = 1
	w.logs[1].mu.Unlock()
	for range sends {
		w.send(tpA, 1)
		head.Store(w.heads[1].Index)
		w.dealt(1)
		w.applier.flusher.nudge()
	}
	w.await("the base follows", func() bool { return w.applier.Status(1).Base+4*behind >= w.heads[1].Index })
}

// Entries that the broker lacks are given up only if the log is over its
// limit, the broker does not get on, and the others have them.
func TestDeclareOnlyWithPermission(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	allowed := false
	w := newTrustingWorld(t, 1, func(c *Config) {
		c.OthersTrusted = func(group uint32, index uint64) bool {
			mu.Lock()
			defer mu.Unlock()
			return allowed && group == 1 && index > 0
		}
	})
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	w.based(1)
	w.stop()
	w.cfg.TrustAfter = time.Hour
	w.start()
	w.settled()
	before := w.logs[1].trusts()
	same := func(when string) {
		t.Helper()
		w.dealt(1)
		for range 20 {
			w.applier.flusher.nudge()
			<-time.After(2 * time.Millisecond)
		}
		if got := w.logs[1].trusts(); len(got) != len(before) {
			t.Fatalf("the base moved to %v %s", got[len(before):], when)
		}
	}
	w.local.setFate(func(broker.Append) fate { return held })
	allowed = true
	w.logs[1].mu.Lock()
	w.logs[1].limit = 1
	w.logs[1].mu.Unlock()
	w.send(tpA, 3)
	same("though the broker is only slow")
	mu.Lock()
	allowed = false
	mu.Unlock()
	w.local.setFate(nil)
	w.broker.stop()
	w.step()
	w.send(tpA, 3)
	same("though the others are not trusted")
	mu.Lock()
	allowed = true
	mu.Unlock()
	w.await("the base moves", func() bool { return w.applier.Status(1).Base == w.heads[1].Index })
	w.paths(map[Path]uint64{PathDeclare: 1})
	if w.applier.Status(1).Trusted != 0 {
		t.Error("what was given up is called trusted")
	}
	w.stop()
	w.start()
	w.broker.start()
	w.settled()
	w.paths(map[Path]uint64{PathCopy: 1})
}

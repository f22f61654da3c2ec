package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lockstep/fsm"
)

func bothStores(t *testing.T, f func(*testing.T, string)) {
	for _, kind := range []string{StoreWAL, StoreBoltDB} {
		t.Run(kind, func(t *testing.T) { t.Parallel(); f(t, kind) })
	}
}

func encoded(g *Group) (raw []byte) {
	g.Read(func(s *fsm.Group) { raw = s.Encode() })
	return raw
}

// The log is cut as far as the broker is trusted, and no further; a restart
// from a snapshot and what is left gives the same state.
func TestLogIsCutOnlyToTheTail(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		c := newTestCluster(t, 1, smallLogs(kind))
		c.start(1)
		c.settled()
		c.openLoad()
		g := c.nodes[1].Group(1)
		early := newTailer(t, g)
		c.load(2<<20, 8<<10)
		c.eventually("a snapshot is taken", func() (bool, string) { return g.LogStatus().SnapshotIndex > 0, "none" })
		if st := g.LogStatus(); st.FirstIndex != 1 || st.HeldBytes < 2<<20 || st.TailIndex != 0 {
			t.Fatalf("the broker is trusted with nothing, and the log is %+v", st)
		}
		half := g.Log().Applied().Get() / 2
		early.follow(half)
		early.trust()
		c.load(2<<20, 8<<10)
		c.eventually("the log is cut", func() (bool, string) {
			st := g.LogStatus()
			return st.FirstIndex == half+1, fmt.Sprintf("%+v", st)
		})
		c.load(1<<20, 8<<10) // snapshots go on
		if st := g.LogStatus(); st.FirstIndex != half+1 || st.TailIndex != half {
			t.Fatalf("the broker is trusted up to %d, and the log is cut: %+v", half, st)
		}
		want := encoded(g)
		c.stop(1)
		c.start(1)
		g = c.nodes[1].Group(1)
		c.leader(1)
		if got := encoded(g); !bytes.Equal(withIndex(t, got), withIndex(t, want)) {
			t.Error("the state after the restart is another one")
		}
		late := newTailer(t, g)
		if late.at != half {
			t.Fatalf("the base is at %d, want %d", late.at, half)
		}
		late.sameAsHead()
		if late.bases != 1 {
			t.Errorf("the log does not reach from the base to the head")
		}
	})
}

// withIndex drops the index, which grows with entries that hold nothing.
func withIndex(t *testing.T, raw []byte) []byte {
	t.Helper()
	g, err := fsm.DecodeGroup(raw)
	if err != nil {
		t.Fatal(err)
	}
	g.Index, g.ClockMs = 0, 0
	return g.Encode()
}

// A follower that was away for longer than the log is kept gets the leader's
// snapshot: its base is the head, and it says so. It can restart at once, and
// goes on.
func TestFollowerBeyondTheLog(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		c := newTestCluster(t, 3, smallLogs(kind))
		c.start(1, 2, 3)
		c.settled()
		c.openLoad()
		c.load(128<<10, 8<<10)
		stale, err := c.nodes[3].Group(1).Log().Applied().Wait(c.ctx(), 10)
		if err != nil {
			t.Fatal(err)
		}
		c.stop(3)
		stop := c.trustAll(1, 2)
		defer stop()
		c.load(4<<20, 8<<10)
		lead := c.leader(1).Group(1)
		c.eventually("the log is cut", func() (bool, string) {
			st := lead.LogStatus()
			return st.FirstIndex > stale+1, fmt.Sprintf("%+v", st)
		})

		c.start(3)
		g := c.nodes[3].Group(1)
		ctx := c.ctx()
		if _, err := g.Log().Rebased().Wait(ctx, 1); err != nil {
			t.Fatal("no snapshot was installed")
		}
		base, err := g.Log().Base()
		if err != nil || base.Index <= stale {
			t.Fatalf("the base is at %d, %v; the snapshot is beyond %d", base.Index, err, stale)
		}
		c.eventually("the old log is removed", func() (bool, string) {
			st := g.LogStatus()
			return st.TailIndex >= base.Index && (st.FirstIndex == 0 || st.FirstIndex > base.Index), fmt.Sprintf("%+v", st)
		})
		never := func(g *Group) {
			t.Helper()
			for index, want := range map[uint64]bool{1: false, stale: false, base.Index - 1: true, base.Index: true, base.Index + 1: false} {
				if got := g.Log().Never(index); got != want {
					t.Errorf("entry %d was never here: %t; node 3 had %d and got a snapshot at %d", index, got, stale, base.Index)
				}
			}
			if g.Log().Missing() != base.Index {
				t.Errorf("the newest that is missing is %d, not %d", g.Log().Missing(), base.Index)
			}
		}
		never(g)
		c.load(64<<10, 8<<10)
		want := lead.Log().Applied().Get()
		if _, err := g.Log().Applied().Wait(ctx, want); err != nil {
			t.Fatal("node 3 does not follow")
		}
		newTailer(t, g).sameAsHead()

		c.stop(3)
		c.start(3)
		g = c.nodes[3].Group(1)
		never(g)
		c.load(2<<20, 8<<10)
		if _, err := g.Log().Applied().Wait(ctx, lead.Log().Applied().Get()); err != nil {
			t.Fatal("node 3 does not follow after its restart")
		}
		newTailer(t, g).sameAsHead()
	})
}

// With the newest snapshot damaged the node starts from the one before: the
// log still reaches.
func TestDamagedSnapshot(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		c := newTestCluster(t, 1, smallLogs(kind))
		c.start(1)
		c.settled()
		c.openLoad()
		stop := c.trustAll(1)
		c.load(3<<20, 8<<10)
		g := c.nodes[1].Group(1)
		c.eventually("the log is cut", func() (bool, string) {
			st := g.LogStatus()
			return st.FirstIndex > 20, fmt.Sprintf("%+v", st)
		})
		stop()
		want := encoded(g)
		c.stop(1)
		newest := g.stores.snaps.last()
		flip(t, filepath.Join(groupDir(c.dataDir(1), 1), snapshotsDir, newest.id, "state.bin"), 60)
		c.start(1)
		c.leader(1)
		g = c.nodes[1].Group(1)
		if now := g.stores.snaps.last(); now.index >= newest.index {
			t.Fatalf("the damaged snapshot at %d counts: %+v", newest.index, now)
		}
		if !bytes.Equal(withIndex(t, encoded(g)), withIndex(t, want)) {
			t.Error("the state from the older snapshot is another one")
		}
		f := newTailer(t, g)
		if f.sameAsHead(); f.bases != 1 {
			t.Error("the log does not reach from the older snapshot's tail")
		}
		c.stop(1)

		// Without any snapshot the log alone is not enough.
		snaps, err := filepath.Glob(filepath.Join(groupDir(c.dataDir(1), 1), snapshotsDir, "*", "state.bin"))
		if err != nil || len(snaps) == 0 {
			t.Fatal(snaps, err)
		}
		for _, s := range snaps {
			flip(t, s, 60)
		}
		if _, err := c.open(1); !errors.Is(err, errDamaged) {
			t.Fatalf("a node whose snapshots are all damaged starts: %v", err)
		}
	})
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		b[0] ^= 0x40
		_, err = f.WriteAt(b[:], at)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// What a group takes on disk does not grow with what it has committed.
func TestDiskIsBounded(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		c := newTestCluster(t, 1, func(cfg *Config) {
			smallLogs(kind)(cfg)
			cfg.Retention.LogRetainBytes = 1 << 20 // half of it for each group
		})
		c.start(1)
		c.settled()
		c.openLoad()
		defer c.trustAll(1)()
		g := c.nodes[1].Group(1)
		var sizes []int64
		for range 5 {
			c.load(2<<20, 16<<10)
			c.eventually("the log is cut", func() (bool, string) {
				st := g.LogStatus()
				return st.LogBytes < 2<<20, fmt.Sprintf("%+v", st)
			})
			if st := g.LogStatus(); st.LogBytes < 512<<10 {
				t.Errorf("less is kept for followers than is asked for: %+v", st)
			}
			g.disk.mu.Lock()
			g.disk.at = time.Time{}
			g.disk.mu.Unlock()
			sizes = append(sizes, g.LogStatus().DiskBytes)
		}
		t.Logf("%s: bytes on disk after every 2 MiB: %d", kind, sizes)
		if last := sizes[len(sizes)-1]; last > 5<<20 {
			t.Errorf("%d bytes on disk for 10 MiB committed", last)
		}
	})
}

// A log over its limit lets nothing new in until the broker has flushed.
func TestRoom(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 1, func(cfg *Config) {
		smallLogs(StoreWAL)(cfg)
		cfg.Retention.LogLimitBytes = 1 << 20 // half of it for each group
	})
	c.start(1)
	c.settled()
	c.openLoad()
	g := c.nodes[1].Group(1)
	if err := g.Room(c.ctx()); err != nil {
		t.Fatal(err)
	}
	f := newTailer(t, g)
	c.load(400<<10, 8<<10)
	const more = 40 // of which some find no room
	stored := make(chan error, more+1)
	propose := func(n int) {
		for range n {
			g.Propose(fsm.AppendCommand(loadTP, loadBatch(8<<10)), func(_ fsm.Result, err error) { stored <- err })
		}
	}
	propose(more)
	c.eventually("the log is full", func() (bool, string) { full, _ := g.RoomChanged(); return full, "not full" })
	if held, limit := g.Log().Bytes(); held <= limit || limit != 512<<10 {
		t.Fatalf("%d bytes are held, the limit is %d", held, limit)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	gaveUp := errors.New("the client gave up")
	cancel(gaveUp)
	if err := g.Room(ctx); !errors.Is(err, gaveUp) {
		t.Fatalf("a full log has room: %v", err)
	}
	free := make(chan error, 1)
	go func() { free <- g.Room(c.ctx()) }()
	// A record waits, what controls the group does not.
	propose(1)
	c.openLoad()
	if len(stored) >= more {
		t.Fatalf("%d records were let in", len(stored))
	}
	f.follow(g.Log().Applied().Get())
	f.trust()
	if err := <-free; err != nil {
		t.Fatal(err)
	}
	for range more + 1 {
		if err := <-stored; err != nil {
			t.Fatalf("a record that waited: %v", err)
		}
	}
	f.follow(g.Log().Applied().Get())
	f.trust()
	if held, _ := g.Log().Bytes(); held > sizeBlockBytes {
		t.Errorf("%d bytes are held after everything was trusted", held)
	}
}

// Nodes come and go while their brokers are trusted with more or less: every
// node's log always reaches from its base to its head, and all end alike.
func TestNodesComeAndGo(t *testing.T) {
	bothStores(t, func(t *testing.T, kind string) {
		rng := rand.New(rand.NewPCG(3, uint64(len(kind))))
		c := newTestCluster(t, 3, smallLogs(kind))
		c.start(1, 2, 3)
		c.settled()
		c.openLoad()
		tails := make(map[int32]*tailer)
		for id := range c.peers {
			tails[id] = newTailer(t, c.nodes[id].Group(1))
		}
		rebased := uint64(0)
		for range 6 {
			away := 1 + rng.Int32N(3)
			rebased += c.nodes[away].Group(1).Log().Rebased().Get()
			c.stop(away)
			delete(tails, away)
			for range 1 + rng.IntN(6) {
				c.load(256<<10, 8<<10)
				for _, f := range tails {
					applied := f.log.Applied().Get()
					f.follow(applied - min(applied, rng.Uint64N(60)))
					f.trust()
				}
			}
			c.start(away)
			log := c.nodes[away].Group(1).Log()
			want := c.leader(1).Group(1).Log().Applied().Get()
			if _, err := log.Applied().Wait(c.ctx(), want); err != nil {
				t.Fatalf("node %d does not follow", away)
			}
			tails[away] = newTailer(t, c.nodes[away].Group(1))
		}
		c.load(8<<10, 8<<10)
		lead := c.leader(1).Group(1)
		var want []byte
		for id, f := range tails {
			if _, err := f.log.Applied().Wait(c.ctx(), lead.Log().Applied().Get()); err != nil {
				t.Fatal(err)
			}
			f.sameAsHead()
			rebased += f.log.Rebased().Get()
			got := withIndex(t, encoded(c.nodes[id].Group(1)))
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("node %d has another state", id)
			}
		}
		t.Logf("%d snapshots of leaders were installed", rebased)
		if rebased == 0 {
			t.Error("no node was ever beyond the log")
		}
	})
}

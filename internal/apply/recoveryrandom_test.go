package apply

import (
	"fmt"
	"math/rand"
	"testing"
)

// Whatever happens to broker and proxy between any two steps, the broker ends
// up with what was committed, from a base that is as old as the last snapshot.
func TestRandomRecoveries(t *testing.T) {
	t.Parallel()
	for seed := range int64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			randomRecoveries(t, seed)
		})
	}
}

func randomRecoveries(t *testing.T, seed int64) {
	rnd := rand.New(rand.NewSource(seed))
	w := newTrustingWorld(t, 2, func(c *Config) {
		c.OthersTrusted = func(uint32, uint64) bool { return true }
		if seed%2 == 1 {
			c.LaneBytes, c.GroupBytes = 500, 1500
		}
	})
	for _, l := range w.logs {
		l.keep = true
		l.mu.Lock()
		if seed%4 < 2 {
			l.limit = 3000
		}
		l.mu.Unlock()
	}
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	w.open(2, 2, "b", 0)
	tps := w.partitions()
	w.settled()
	backup := w.broker.saved()
	for range 14 {
		for range 15 {
			tp := tps[rnd.Intn(len(tps))]
			w.commit(w.groups[tp], w.appendCmd(tp, int32(1+rnd.Intn(4)), rnd.Intn(300)))
			if rnd.Intn(4) == 0 {
				w.logs[uint32(1+rnd.Intn(2))].snapshot(t)
			}
		}
		event := rnd.Intn(7)
		if event >= 4 && rnd.Intn(2) == 0 {
			w.settled() // so that there is something to lose
		}
		down := rnd.Intn(2) == 0
		if down || event == 0 {
			w.stop()
			for _, l := range w.logs {
				l.reboot()
			}
		}
		switch event {
		case 1:
			w.local.mu.Lock()
			s := w.local.current
			w.local.mu.Unlock()
			if s != nil {
				s.lose()
			}
		case 2, 3:
			w.broker.stop()
			w.send(tps[rnd.Intn(len(tps))], 3)
			w.broker.start()
		case 4:
			w.broker.stop()
			w.broker.wipe()
			w.broker.start()
			backup = nil // of a topic that is not ours any more
		case 5:
			if backup != nil {
				w.broker.stop()
				backup()
				w.broker.start()
			}
		case 6:
			backup = w.broker.saved()
		}
		if down || event == 0 {
			w.start()
		}
	}
	for _, l := range w.logs {
		l.mu.Lock()
		l.limit = 0
		l.mu.Unlock()
	}
	for _, tp := range tps {
		w.send(tp, 1)
	}
	w.settled()
	w.paths(map[Path]uint64{PathQuarantine: 0})
}

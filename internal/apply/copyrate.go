package apply

import (
	"context"
	"sync"
	"time"
)

// bucket bounds bytes per second. Whoever took more than is there waits until
// it has filled up again. The zero rate is no bound.
type bucket struct {
	rate int64
	now  func() time.Time

	mu   sync.Mutex // guards what follows
	have float64    // bytes, below zero after a large one
	at   time.Time
}

func newBucket(rate int64) *bucket {
	return &bucket{rate: rate, now: time.Now, have: float64(rate)}
}

// take takes n bytes and waits for them.
func (b *bucket) take(ctx context.Context, n int64) error {
	if wait := b.owe(n); wait > 0 && !pause(ctx, wait) {
		return context.Cause(ctx)
	}
	return nil
}

// owe takes n bytes and says how long the taker must wait: its turn has come
// once all is paid for that was taken before, and by it.
func (b *bucket) owe(n int64) time.Duration {
	if b.rate <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now, rate := b.now(), float64(b.rate)
	if !b.at.IsZero() {
		b.have = min(rate, b.have+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	b.have -= float64(n)
	if b.have >= 0 {
		return 0
	}
	return time.Duration(-b.have / rate * float64(time.Second))
}

// meterSeconds is how far back a meter looks.
const meterSeconds = 10

// meter measures a rate over the last seconds. Its owner serialises.
type meter struct {
	counts [meterSeconds + 1]int64 // by second, the current one too
	last   int64                   // the second that was counted last
	first  int64                   // the second that counting began at
}

func (m *meter) add(now time.Time, n int64) {
	m.roll(now.Unix())
	m.counts[now.Unix()%int64(len(m.counts))] += n
}

// roll clears the seconds that have come since the last one.
func (m *meter) roll(second int64) {
	if second-m.last > meterSeconds {
		m.first = second // nothing was going on: the time before does not count
	}
	for s := max(m.last+1, second-meterSeconds); s <= second; s++ {
		m.counts[s%int64(len(m.counts))] = 0
	}
	m.last = max(m.last, second)
}

// perSecond is the rate over the last seconds, those alone in which counting
// was under way.
func (m *meter) perSecond(now time.Time) float64 {
	if now.Unix()-m.last > meterSeconds {
		return 0
	}
	m.roll(now.Unix())
	var sum int64
	for _, n := range m.counts {
		sum += n
	}
	since := now.Sub(time.Unix(max(m.first, now.Unix()-meterSeconds), 0)).Seconds()
	return float64(sum) / max(since, 1)
}

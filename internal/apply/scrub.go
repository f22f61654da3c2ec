package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/internal/broker"
)

// The scrub reads the local broker's logs in the background and compares them
// with what was committed. It must never cry wolf, while appends go on, logs
// are deleted from the front, topics come and go and the broker restarts. What
// it believes rests on the order in which it looks:
//
//  1. The lane's view: it serves, since when, and how many cuts it has seen.
//  2. The state machine (the feeder's): what is committed up to its log end N,
//     and the hashes below it.
//  3. The lane's acked offset A. Below T = min(N, A) everything was
//     acknowledged by this broker and compared, while the lane served as in 1.
//  4. The broker's log start and log end E. A log only grows while a lane is
//     attached to it, so E < T means that the broker lost what it acknowledged.
//     That is the lane's business: it attaches again and fills the log up.
//  5. The state machine once more, its log end N'. An append is sent after the
//     feeder's state machine took its entry up, so nothing that this process
//     sent lies above N'. E > N' is somebody else's write, if it does not carry
//     the applier's producer id. If it does, it may be the append of this
//     node's dead predecessor, committed and not read here yet: what a leader
//     says of its commit index decides (see pipe.tooLong).
//  6. The batches below T. They stand still: nothing is appended below T, and
//     the state of 2 speaks of them for good, but for a cut.
//  7. The view again. If it is not that of 1, the lane lost its connection, its
//     topic was made anew, or something was cut: nothing that was found counts.
//  8. A log that starts above what is to be read next was shortened by its
//     retention: reading begins anew at its start.
//
// Whatever is found is read once more before it counts.

// ScrubBroker is the local broker, as the scrub needs it besides what the
// applier does with it.
type ScrubBroker interface {
	Range(ctx context.Context, topic string, partition int32, from, to int64, maxBytes int32) (batches []byte, start int64, err error)
}

// ScrubConfig says how much the scrub reads.
type ScrubConfig struct {
	Broker         ScrubBroker
	Interval       time.Duration // in which every log is read once; 0: none is, but on demand
	BytesPerSecond int64         // no limit if 0
}

const (
	scrubBytes = 1 << 20 // read at once
	glanceRest = 50      // times as long as a glance takes, at least, until the next

	// A proof holds for a moment where it takes no more than cheapRead to read
	// again, else for proofHolds or two intervals: a topic may take hours, and
	// all of its partitions must be proved at once.
	momentHolds = time.Minute
	cheapRead   = 30 * time.Second
	proofHolds  = 6 * time.Hour
	// unreadable errors in a row make a finding.
	unreadable = 5
)

// scrubber checks the local broker's logs. Its goroutine does so in the
// background; Verified does it in its caller's.
type scrubber struct {
	a      *Applier
	cfg    ScrubConfig
	log    hclog.Logger
	bucket *bucket

	mu       sync.Mutex // guards what follows
	subjects map[*lane]*subject
	stats    ScrubStatus
}

// subject is one lane's log, as far as it was checked. Whoever has put a token
// into turn owns it, all but proof.
type subject struct {
	l    *lane
	turn chan struct{} // capacity 1

	view   laneView
	read   *reading // nil: begin anew
	saved  reading  // where read was proved last
	whole  bool     // read has been through the log, and goes on with what is new
	strike *finding
	made   int // how often strike was found in a row
	excess excess
	begun  time.Time // of the newest read
	pause  time.Time // not before

	proof proof // guarded by the scrubber's mu
}

// proof is what a read through the whole log showed.
type proof struct {
	to   int64
	at   time.Time // when it got through
	size int64     // bytes
}

// holds says whether a proof is new enough to let another node destroy its
// copy.
func (p *proof) holds(cfg *ScrubConfig) bool {
	if cfg.BytesPerSecond <= 0 || p.size < cfg.BytesPerSecond*int64(cheapRead/time.Second) {
		return time.Since(p.at) < momentHolds
	}
	return time.Since(p.at) < max(proofHolds, 2*cfg.Interval)
}

// excess is a log end above everything committed.
type excess struct {
	end   int64
	since time.Time
	fresh uint64 // number of the leader's last mark before
}

// laneView is what must not change while a lane's log is read.
type laneView struct {
	since time.Time
	cuts  int
}

// view returns the lane's view, and the offset up to which its broker's log
// was compared, if it serves.
func (l *lane) view() (v laneView, acked int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ok = l.state == StateReady && l.doom == "" && l.refused == nil && l.acked >= l.high
	return laneView{l.since, len(l.cuts)}, l.acked, ok
}

// attachAgain makes the lane look at its broker anew.
func (l *lane) attachAgain(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.order(fmt.Errorf("%s: %w", why, errAgain))
}

// ScrubWith sets up the scrub. It is called before Open, at most once.
func (a *Applier) ScrubWith(cfg ScrubConfig) {
	a.scrubber = &scrubber{a: a, cfg: cfg, log: a.log.Named("scrub"), bucket: newBucket(cfg.BytesPerSecond),
		subjects: make(map[*lane]*subject)}
}

// run scrubs until the context ends. A log is read through once per interval,
// the one that waits longest first; in between all are glanced at, which finds
// what was appended since and what nobody should have written. Glancing at very
// many logs takes long, so the rest in between is as many times longer.
func (s *scrubber) run(ctx context.Context) {
	if s.cfg.Interval <= 0 {
		return
	}
	pace := min(max(s.cfg.Interval/20, 10*time.Millisecond), 10*time.Second)
	for ctx.Err() == nil {
		begin := time.Now()
		all := s.all()
		s.glance(ctx, all)
		next := time.Now().Add(max(pace-time.Since(begin), glanceRest*time.Since(begin)))
		for queue := s.due(all); len(queue) > 0 && time.Now().Before(next); {
			u := queue[0]
			s.turn(ctx, u, scrubBytes)
			if !u.under(ctx) {
				queue = queue[1:]
			}
		}
		if !pause(ctx, time.Until(next)) {
			return
		}
	}
}

// turn does a piece of work on a log, if nobody else does.
func (s *scrubber) turn(ctx context.Context, u *subject, budget int64) {
	select {
	case u.turn <- struct{}{}:
	default:
		return
	}
	defer func() { <-u.turn }()
	if budget > 0 && u.read != nil && u.whole && time.Since(u.begun) >= s.cfg.Interval {
		u.read = nil
	}
	if _, err := s.step(ctx, u, budget); err != nil {
		u.pause = time.Now().Add(time.Second)
		s.log.Trace("cannot go on with a partition now", "topic", u.l.name, "partition", u.l.tp.Partition, "reason", err)
	}
}

// all returns the subjects of the lanes there are, in a fixed order.
func (s *scrubber) all() []*subject {
	s.a.mu.RLock()
	lanes := make(map[*lane]bool, len(s.a.lanes))
	for _, l := range s.a.lanes {
		lanes[l] = true
	}
	s.a.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.subjects {
		if !lanes[l] {
			delete(s.subjects, l)
		}
	}
	out := make([]*subject, 0, len(lanes))
	for l := range lanes {
		out = append(out, s.subjectLocked(l))
	}
	slices.SortFunc(out, func(a, b *subject) int {
		return cmp.Or(cmp.Compare(a.l.tp.Topic, b.l.tp.Topic), cmp.Compare(a.l.tp.Partition, b.l.tp.Partition))
	})
	return out
}

func (s *scrubber) subjectLocked(l *lane) *subject {
	u := s.subjects[l]
	if u == nil {
		u = &subject{l: l, turn: make(chan struct{}, 1)}
		s.subjects[l] = u
	}
	return u
}

func (s *scrubber) subject(l *lane) *subject {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subjectLocked(l)
}

// due returns the logs that are to be read: those that are being read, or were
// found wanting, then those that wait longest.
func (s *scrubber) due(all []*subject) []*subject {
	var out []*subject
	began := make(map[*subject]time.Time, len(all))
	for _, u := range all {
		if _, _, ok := u.l.view(); !ok {
			continue
		}
		select {
		case u.turn <- struct{}{}:
		default:
			continue // Verified reads it
		}
		at, waits, under := u.begun, time.Now().Before(u.pause), u.unfinished()
		<-u.turn
		switch {
		case waits:
		case under:
			began[u] = time.Time{}
			out = append(out, u)
		case time.Since(at) >= s.cfg.Interval:
			began[u] = at.Add(1) // after those that are being read
			out = append(out, u)
		}
	}
	slices.SortStableFunc(out, func(a, b *subject) int { return began[a].Compare(began[b]) })
	return out
}

// unfinished says that a log is being read, or that what was found is looked at
// again at once. The caller owns u.
func (u *subject) unfinished() bool { return u.read != nil && !u.whole || u.strike != nil }

// under says, to the background goroutine, whether a log is to be read on at once.
func (u *subject) under(ctx context.Context) bool {
	if _, _, ok := u.l.view(); !ok || ctx.Err() != nil {
		return false
	}
	select {
	case u.turn <- struct{}{}:
	default:
		return false // Verified reads it
	}
	defer func() { <-u.turn }()
	return !time.Now().Before(u.pause) && u.unfinished()
}

// glance looks at the ends of all logs, at what was appended to those that were
// read through, and at whose the topics are.
func (s *scrubber) glance(ctx context.Context, all []*subject) {
	looked := make(map[uint64]bool)
	fresh, ready := 0, 0
	for _, u := range all {
		if ctx.Err() != nil {
			return
		}
		if _, _, ok := u.l.view(); !ok {
			continue
		}
		ready++
		if !looked[u.l.tp.Topic] {
			looked[u.l.tp.Topic] = true
			s.whose(ctx, u.l)
		}
		s.turn(ctx, u, 0)
		if p := s.proofOf(u); !p.at.IsZero() && time.Since(p.at) < 2*s.cfg.Interval {
			fresh++
		}
	}
	q := s.a.quarantines
	if err := q.forget(func(topic uint64) bool { b, bound, _ := s.a.topics.look(topic); return bound && b.Gone }); err != nil {
		s.log.Warn("cannot forget the quarantines of a topic that is gone", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Partitions, s.stats.Verified = ready, fresh
}

// whose looks whether the broker's topic is still the one that is bound. If not
// its lanes attach again, and say what is wrong.
func (s *scrubber) whose(ctx context.Context, l *lane) {
	v, _, ok := l.view()
	b, bound, _ := s.a.topics.look(l.tp.Topic)
	info, err := s.a.cfg.Broker.Topic(ctx, l.name)
	if err != nil && !errors.Is(err, broker.ErrNoTopic) || err == nil && bound && info.UUID == b.UUID {
		return
	}
	if now, _, still := l.view(); !ok || !still || now != v {
		return
	}
	s.log.Warn("the broker's topic is not the one that this node made: its partitions attach again", "topic", l.name)
	for _, o := range s.a.lanesOf(l.tp.Topic) {
		o.attachAgain("the broker's topic is another one")
	}
}

// lanesOf returns the lanes of a topic, by partition.
func (a *Applier) lanesOf(topic uint64) []*lane {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []*lane
	for tp, l := range a.lanes {
		if tp.Topic == topic {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *lane) int { return cmp.Compare(a.tp.Partition, b.tp.Partition) })
	return out
}

// ScrubStatus is how far the scrub is.
type ScrubStatus struct {
	Partitions int    `json:"partitions"` // that this node serves
	Verified   int    `json:"verified"`   // of those, read through of late
	Bytes      uint64 `json:"bytes"`      // read since the start
	Findings   uint64 `json:"findings"`   // since the start
	// LastFinding is empty if there was none since the start.
	LastFinding   string    `json:"last_finding,omitempty"`
	LastFindingAt time.Time `json:"last_finding_at"`
}

// Scrub reports on the scrub. Any goroutine.
func (a *Applier) Scrub() ScrubStatus {
	if a.scrubber == nil {
		return ScrubStatus{}
	}
	a.scrubber.mu.Lock()
	defer a.scrubber.mu.Unlock()
	return a.scrubber.stats
}

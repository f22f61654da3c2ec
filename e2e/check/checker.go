package check

import (
	"maps"
	"slices"
	"time"
)

// Findings by kind, with the invariant's usual number:
//
//	lost           an acknowledged record is not at its offset on a broker (S1)
//	different      two brokers hold different records, starts or ends (S2)
//	inconsistent   an offset was seen with two values, by whomever (S3)
//	duplicate      a record stands at more offsets than it was sent (S4)
//	failed-visible a record that was refused for sure is there (S5)
//	foreign        a value that no producer of this run sent there (S5)
//	order          an idempotent producer's records stand in another order (S6)
//	real-time      an offset below one acknowledged before the record was sent (S7)
//	skipped        a consumer passed over a record that is there (S8)
//	backwards      a consumer was given an offset again, or a lower one (S8)
//	unseen         a consumer did not get to the end (S8)
//	watermark      a high watermark went down in one life of a node (S9)
//	gap            a broker's offsets do not count up one by one
//	stale          an end offset below one acknowledged before it was asked for (S11)
//	reported       what the harness itself found, as a quarantined partition

type tp struct {
	topic     string
	partition int32
}

// ref names a record.
type ref struct {
	producer string
	seq      int
}

type outcome uint8

const (
	open outcome = iota
	acked
	refused
)

type op struct {
	tp     tp
	state  outcome
	sends  int
	offset int64
	floor  int64 // highest offset of the partition acknowledged before it was first sent, -1 if none
}

type producer struct {
	idempotent bool
	ops        map[int]*op
}

// part is one partition, over all nodes.
type part struct {
	at       map[int64]ref // the first value seen at each offset
	maxAcked int64         // -1 if none
	held     map[int]*held // by node, read at the end
}

// held is what one broker holds of a partition.
type held struct {
	offsets []int64
	refs    []ref
	end     int64 // -1: not read to the end
}

// session is one consumer's reading of one partition.
type session struct {
	last  int64 // the last offset it was given, -1 if none
	skips []span
}

type span struct{ from, to int64 } // to is exclusive

type fault struct {
	at, lasts time.Duration
	kind      string
	leading   bool
	landed    bool
}

// Need is what a run must have seen to prove something; zero asks for nothing.
type Need struct {
	Acked int // acknowledged records
	Info  int // records whose outcome the producer did not learn
}

// Checker takes the rows of a history, one by one. It is used by one goroutine
// at a time.
type Checker struct {
	need      Need
	r         Report
	producers map[string]*producer
	parts     map[tp]*part
	sessions  map[string]map[tp]*session
	asked     map[string]map[tp]int64 // by reader: what was acknowledged when it asked
	marks     map[string]map[tp]int64 // by life of a node: the highest watermark
	expects   []Event
	faults    map[int]*fault
	leaders   []time.Duration // when a leader changed
	infos     int
}

// New returns a checker that has seen nothing.
func New(need Need) *Checker {
	return &Checker{need: need, producers: make(map[string]*producer), parts: make(map[tp]*part),
		sessions: make(map[string]map[tp]*session), asked: make(map[string]map[tp]int64),
		marks: make(map[string]map[tp]int64), faults: make(map[int]*fault)}
}

func (c *Checker) part(k tp) *part {
	p := c.parts[k]
	if p == nil {
		p = &part{at: make(map[int64]ref), maxAcked: -1, held: make(map[int]*held)}
		c.parts[k] = p
	}
	return p
}

// Reported adds a finding of the harness itself.
func (c *Checker) Reported(format string, args ...any) { c.r.add("reported", format, args...) }

// Doubt adds a reason not to believe in a pass.
func (c *Checker) Doubt(format string, args ...any) { c.r.doubt(format, args...) }

// Add takes the next row.
func (c *Checker) Add(e Event) {
	k := tp{e.Topic, e.Partition}
	switch e.Kind {
	case Send:
		c.send(k, e)
	case OK, Fail, Info:
		c.outcome(k, e)
	case Assign:
		c.session(e.By, k).last = e.Offset - 1
		if e.Offset < 0 {
			c.session(e.By, k).last = -1
		}
	case Poll:
		c.poll(k, e)
	case Ask:
		nested(c.asked, e.By)[k] = c.part(k).maxAcked
	case Resume:
		// For who reads the history. What is said after it is held to the
		// same as everything else.
	case End:
		seen, ok := c.asked[e.By][k]
		if ok && e.Offset <= seen {
			c.r.add("stale", "%s was told that %s/%d ends at %d, when %d had been acknowledged before it asked", e.By, k.topic, k.partition, e.Offset, seen)
		}
	case Watch:
		m := nested(c.marks, e.By)
		if e.Offset < m[k] {
			c.r.add("watermark", "%s shows high watermark %d of %s/%d, and showed %d before", e.By, e.Offset, k.topic, k.partition, m[k])
		}
		m[k] = max(m[k], e.Offset)
	case Stored:
		c.stored(k, e)
	case Read:
		c.holding(k, e.Node).end = e.Offset
	case Expect:
		c.expects = append(c.expects, e)
	case Fault:
		c.faults[e.Seq] = &fault{at: e.At, lasts: e.Lasts, kind: e.Text, leading: e.Leading}
	case Landed:
		if f := c.faults[e.Seq]; f != nil {
			f.landed = true
		}
	case Leader:
		c.leaders = append(c.leaders, e.At)
	default:
		c.r.doubt("a row of kind %q is not understood", e.Kind)
	}
}

func nested[V any](m map[string]map[tp]V, by string) map[tp]V {
	if m[by] == nil {
		m[by] = make(map[tp]V)
	}
	return m[by]
}

func (c *Checker) send(k tp, e Event) {
	p := c.producers[e.Producer]
	if p == nil {
		p = &producer{idempotent: e.Idem, ops: make(map[int]*op)}
		c.producers[e.Producer] = p
	}
	o := p.ops[e.Seq]
	if o == nil {
		o = &op{tp: k, floor: c.part(k).maxAcked}
		p.ops[e.Seq] = o
	}
	o.sends++
}

func (c *Checker) outcome(k tp, e Event) {
	var o *op
	if p := c.producers[e.Producer]; p != nil {
		o = p.ops[e.Seq]
	}
	switch {
	case o == nil:
		c.r.doubt("%s record %d has an outcome and was never sent", e.Producer, e.Seq)
	case e.Kind == Info:
		c.infos++
	case e.Kind == Fail:
		if o.state == open && o.sends == 1 {
			o.state = refused
		}
	default:
		o.state, o.offset = acked, e.Offset
		if e.Offset <= o.floor {
			c.r.add("real-time", "%s record %d got offset %d of %s/%d, when %d had been acknowledged before it was sent", e.Producer, e.Seq, e.Offset, k.topic, k.partition, o.floor)
		}
		p := c.part(k)
		p.maxAcked = max(p.maxAcked, e.Offset)
		c.see(k, e.Offset, ref{e.Producer, e.Seq}, "the acknowledgement")
	}
}

// see notes the value at an offset, and complains if it was another before.
func (c *Checker) see(k tp, offset int64, r ref, who string) {
	p := c.part(k)
	before, ok := p.at[offset]
	if !ok {
		p.at[offset] = r
	} else if before != r {
		c.r.add("inconsistent", "at %d of %s/%d %s has %s record %d, before it was %s record %d", offset, k.topic, k.partition, who, r.producer, r.seq, before.producer, before.seq)
	}
}

// known complains of a value that nobody sent there.
func (c *Checker) known(k tp, e Event, who string) bool {
	if e.Broken {
		c.r.add("foreign", "%s has %s at %d of %s/%d", who, e.Text, e.Offset, k.topic, k.partition)
		return false
	}
	if p := c.producers[e.Producer]; p == nil || p.ops[e.Seq] == nil || p.ops[e.Seq].tp != k {
		c.r.add("foreign", "%s has %s record %d at %d of %s/%d, which was not sent there", who, e.Producer, e.Seq, e.Offset, k.topic, k.partition)
		return false
	}
	return true
}

func (c *Checker) session(by string, k tp) *session {
	m := nested(c.sessions, by)
	if m[k] == nil {
		m[k] = &session{last: -1}
	}
	return m[k]
}

func (c *Checker) poll(k tp, e Event) {
	c.r.Counts.Polled++
	if c.known(k, e, e.By) {
		c.see(k, e.Offset, ref{e.Producer, e.Seq}, e.By)
	}
	s := c.session(e.By, k)
	switch {
	case e.Offset <= s.last:
		c.r.add("backwards", "%s was given offset %d of %s/%d after %d", e.By, e.Offset, k.topic, k.partition, s.last)
		return
	case s.last >= 0 && e.Offset > s.last+1:
		s.skips = append(s.skips, span{s.last + 1, e.Offset})
	}
	s.last = e.Offset
}

func (c *Checker) holding(k tp, node int) *held {
	p := c.part(k)
	if p.held[node] == nil {
		p.held[node] = &held{end: -1}
	}
	return p.held[node]
}

func (c *Checker) stored(k tp, e Event) {
	c.r.Counts.Stored++
	h := c.holding(k, e.Node)
	h.offsets = append(h.offsets, e.Offset)
	r := ref{e.Producer, e.Seq}
	if c.known(k, e, nodeName(e.Node)) {
		c.see(k, e.Offset, r, nodeName(e.Node))
	} else {
		r = ref{"?" + e.Text, e.Seq}
	}
	h.refs = append(h.refs, r)
}

// Finish checks what can only be known at the end, and reports. It is called
// once, after the last row.
func (c *Checker) Finish() Report {
	keys := slices.SortedFunc(maps.Keys(c.parts), compareTP)
	for _, k := range keys {
		c.finishPart(k, c.parts[k])
	}
	c.finishAcks()
	for _, by := range slices.Sorted(maps.Keys(c.sessions)) {
		for _, k := range keys {
			if s := c.sessions[by][k]; s != nil {
				c.finishSession(by, k, s)
			}
		}
	}
	for _, e := range c.expects {
		k := tp{e.Topic, e.Partition}
		if s, p := c.session(e.By, k), c.part(k); s.last < p.maxAcked {
			c.r.add("unseen", "%s got to offset %d of %s/%d, acknowledged was %d", e.By, s.last, k.topic, k.partition, p.maxAcked)
		}
	}
	c.finishFaults()
	return c.r
}

// Package drill shows what a death costs: it writes numbered records through
// the proxies without a pause, has the node of a leader killed and started
// again, reads everything back from every broker itself, and counts.
package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// DefaultRate is how many records a second are written, over all partitions.
	DefaultRate = 600
	// MaxRate keeps what is counted in memory small.
	MaxRate = 20_000

	partitions = 3
)

// phases are how long is written while all nodes live, at least while one is
// dead, and after it came back.
type phases struct{ before, down, after time.Duration }

// ErrSlow is returned when something did not happen within Config.Timeout; what
// follows it says what.
var ErrSlow = errors.New("not in time")

// Node is where a node and its broker are reached.
type Node struct {
	ID            int32
	Kafka, Broker string // host:port
}

// Nodes is what the drill does to the nodes. Its methods are called from one
// goroutine.
type Nodes interface {
	// Kill ends a node and its broker as kill -9 does and returns when both are gone.
	Kill(ctx context.Context, id int32) error
	// Start starts both again; it need not wait until they serve.
	Start(ctx context.Context, id int32) error
	// Recovered returns when all nodes serve and lag behind nobody.
	Recovered(ctx context.Context) error
}

// Config is one drill.
type Config struct {
	Nodes []Node
	// Topic is made with three partitions where it does not exist.
	Topic string
	// Rate is in records a second. Zero: DefaultRate.
	Rate int
	// Timeout bounds each wait for the cluster: for leaders, for the first
	// acknowledgement after the death, for the recovery, for what a broker lacks.
	Timeout time.Duration
	// Say gets a line for each step.
	Say func(format string, args ...any)
	// Progress is told of each step that begins, from 1 to Steps. May be nil.
	Progress func(step int, what string)
}

// Steps is how many there are.
const Steps = 6

// Result is what was measured. Times are of this process's monotonic clock.
type Result struct {
	Topic     string `json:"topic"`
	Killed    int32  `json:"killed_node"`
	Partition int32  `json:"partition"` // which the killed node led
	NewLeader int32  `json:"new_leader"`

	Written        int `json:"written"`
	Acknowledged   int `json:"acknowledged"`
	Unacknowledged int `json:"unacknowledged"` // their fate is unknown: they may be there or not
	Lost           int `json:"lost"`           // acknowledged and missing on a broker
	Duplicated     int `json:"duplicated"`     // more than once on a broker
	OutOfOrder     int `json:"out_of_order"`   // after a later one of the same partition

	// The longest time between two acknowledgements of one partition: before
	// the death, and from the death on in the partitions that the killed node
	// led, and in the others.
	PauseBefore time.Duration `json:"pause_before_ns"`
	Pause       time.Duration `json:"pause_ns"`
	PauseOthers time.Duration `json:"pause_others_ns"`
	// Recovery is from the restart until all nodes serve again.
	Recovery time.Duration `json:"recovery_ns"`

	Brokers []BrokerCount `json:"brokers"`
}

// BrokerCount is what one broker holds of the records that were written.
type BrokerCount struct {
	Node       int32 `json:"node"`
	Records    int   `json:"records"` // different ones
	Lost       int   `json:"lost"`
	Duplicated int   `json:"duplicated"`
	OutOfOrder int   `json:"out_of_order"`
}

// OK says whether nothing was lost, repeated or put out of order.
func (r *Result) OK() bool {
	return r.Acknowledged > 0 && r.Lost == 0 && r.Duplicated == 0 && r.OutOfOrder == 0
}

// Run carries the drill out. An error means that it could not be finished:
// then nothing is said about what was lost. What it leaves behind is its topic,
// and, on an error or when ctx ends, a node that is dead.
func Run(ctx context.Context, cfg Config, nodes Nodes) (*Result, error) {
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	d := &drill{cfg: cfg, nodes: nodes, phases: phases{before: 2 * time.Second, down: 3 * time.Second, after: 2 * time.Second}}
	return d.run(ctx)
}

// drill is one run. It belongs to one goroutine.
type drill struct {
	cfg    Config
	nodes  Nodes
	phases phases
	w      *writer
	led    []int32 // partitions that the killed node led
	result Result
	begun  int // steps
}

func (d *drill) step(what string) {
	d.begun++
	if d.cfg.Progress != nil {
		d.cfg.Progress(d.begun, what)
	}
}

func (d *drill) run(ctx context.Context) (*Result, error) {
	d.step("leaders")
	var addrs []string
	for _, n := range d.cfg.Nodes {
		addrs = append(addrs, n.Kafka)
	}
	w, err := newWriter(addrs, d.cfg.Topic, d.cfg.Rate)
	if err != nil {
		return nil, err
	}
	defer w.close()
	d.w = w
	if err := d.within(ctx, "the topic has leaders", w.prepare); err != nil {
		return nil, err
	}
	if err := d.within(ctx, "all nodes serve", d.nodes.Recovered); err != nil {
		return nil, err
	}
	d.cfg.Say("writing numbered records to topic %s, %d a second over %d partitions", d.cfg.Topic, d.cfg.Rate, partitions)
	d.step("writing")
	w.start()
	if err := d.written(ctx, d.phases.before, w.now()); err != nil {
		return nil, err
	}
	killed, err := d.kill(ctx)
	if err != nil {
		return nil, err
	}
	d.step("writing on")
	if err := d.written(ctx, d.phases.after, w.now()); err != nil {
		return nil, err
	}
	if err := d.within(ctx, "what was written is acknowledged", w.finish); err != nil {
		return nil, err
	}
	d.count(killed)
	d.step("reading everything back from each broker")
	return &d.result, d.readBack(ctx)
}

// kill has the node of a leader killed and started again, and returns when
// both happened. The time is that of the kill.
func (d *drill) kill(ctx context.Context) (killed time.Duration, err error) {
	leaders, err := d.leaders(ctx)
	if err != nil {
		return 0, err
	}
	victim := leaders[0]
	r := &d.result
	r.Topic, r.Killed, r.Partition = d.cfg.Topic, victim, 0
	for p, l := range leaders {
		if l == victim {
			d.led = append(d.led, int32(p))
		}
	}
	d.step(fmt.Sprintf("killing node %d", victim))
	d.cfg.Say("node %d leads partition %d: kill -9 of the node and its broker", victim, r.Partition)
	killed = d.w.now()
	if err := d.nodes.Kill(ctx, victim); err != nil {
		return 0, fmt.Errorf("kill node %d: %w", victim, err)
	}
	dead := d.w.now()
	if err := d.written(ctx, d.phases.down, dead); err != nil {
		return 0, err
	}
	if leaders, err = d.leaders(ctx); err != nil {
		return 0, err
	}
	r.NewLeader = leaders[r.Partition]
	d.cfg.Say("node %d leads it now, and records are acknowledged again; starting node %d", r.NewLeader, victim)
	d.step(fmt.Sprintf("node %d comes back", victim))
	back := d.w.now()
	if err := d.nodes.Start(ctx, victim); err != nil {
		return 0, fmt.Errorf("start node %d again: %w", victim, err)
	}
	if err := d.within(ctx, fmt.Sprintf("node %d serves again", victim), d.nodes.Recovered); err != nil {
		return 0, err
	}
	r.Recovery = d.w.now() - back
	d.cfg.Say("node %d serves again after %.1f s", victim, r.Recovery.Seconds())
	return killed, nil
}

func (d *drill) leaders(ctx context.Context) (leaders []int32, err error) {
	err = d.within(ctx, "every partition has a leader", func(ctx context.Context) error {
		leaders, err = d.w.awaitLeaders(ctx)
		return err
	})
	return leaders, err
}

// written returns when it was written for so long, and a record that was
// written after since is acknowledged in each partition.
func (d *drill) written(ctx context.Context, long, since time.Duration) error {
	timer := time.NewTimer(long)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return d.within(ctx, "records are acknowledged", func(ctx context.Context) error {
		return d.w.acknowledged(ctx, since)
	})
}

// within gives something the drill's timeout.
func (d *drill) within(ctx context.Context, what string, do func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	err := do(limited)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case limited.Err() != nil:
		return fmt.Errorf("%w: after %s it is not so that %s: %w", ErrSlow, d.cfg.Timeout, what, err)
	}
	return err
}

// count fills in what the writer measured.
func (d *drill) count(killed time.Duration) {
	r := &d.result
	r.Written = len(d.w.records)
	for _, rec := range d.w.records {
		if rec.acked {
			r.Acknowledged++
		} else {
			r.Unacknowledged++
		}
	}
	for p := range int32(partitions) {
		acks := d.w.acks(p)
		r.PauseBefore = max(r.PauseBefore, longestPause(acks, 0, killed))
		// A pause that the death fell into counts as one of it.
		pause := longestPause(acks, killed, 1<<62)
		if slices.Contains(d.led, p) {
			r.Pause = max(r.Pause, pause)
		} else {
			r.PauseOthers = max(r.PauseOthers, pause)
		}
	}
}

// longestPause returns the longest time between two following acknowledgements
// of which the second came after from and not after to.
func longestPause(acks []time.Duration, from, to time.Duration) time.Duration {
	var longest time.Duration
	for i := 1; i < len(acks); i++ {
		if acks[i] > from && acks[i] <= to {
			longest = max(longest, acks[i]-acks[i-1])
		}
	}
	return longest
}

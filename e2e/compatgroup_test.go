//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const compatGroupPartitions = 6

// joinWait bounds one step of a group. A session lasts six seconds here, but a
// client that lost its coordinator may first wait out a request.
const joinWait = 90 * time.Second

func (r *compatRun) member(topic, group string) (*clientProcess, error) {
	return r.cl.start("group", r.bootstrap(), "topic="+topic, "group="+group)
}

// assignedTo returns the partitions a member was given last.
func assignedTo(all []string) []int32 {
	for _, line := range slices.Backward(all) {
		if e, ok := parseEvent(line); ok && e.Event == "assigned" {
			var ps []int32
			if json.Unmarshal(e.Partitions, &ps) == nil {
				return ps
			}
		}
	}
	return nil
}

// recordsOf counts the different records of one prefix that a member saw.
func recordsOf(all []string, prefix string) int {
	seen := map[string]bool{}
	for _, line := range all {
		if !strings.Contains(line, prefix+"-") {
			continue
		}
		if e, ok := parseEvent(line); ok && e.Event == "record" {
			seen[e.Value] = true
		}
	}
	return len(seen)
}

// groupFeature: one member has everything, two share it, one is left with
// everything, and a later one goes on where the group had stopped.
func groupFeature(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "grouped", compatGroupPartitions)
	if err != nil {
		return err
	}
	g := &groupRun{r: r, topic: topic, group: r.topic("group")}
	defer g.killAll()
	return g.run(ctx)
}

type groupRun struct {
	r            *compatRun
	topic, group string
	members      []*clientProcess
}

const groupBatch = 120 // records a step

func (g *groupRun) run(ctx context.Context) error {
	a, err := g.join()
	if err != nil {
		return err
	}
	if err := g.sees(ctx, a, "one"); err != nil {
		return fmt.Errorf("one member: %w", err)
	}
	b, err := g.join()
	if err != nil {
		return err
	}
	if err := g.share(ctx, a, b); err != nil {
		return err
	}
	if err := produceTo(ctx, g.r.c, g.topic, compatGroupPartitions, "two", groupBatch); err != nil {
		return err
	}
	err = b.waitFor(ctx, joinWait, "the second member's share", func(all []string) bool {
		mine := recordsOf(all, "two")
		return mine > 0 && mine+recordsOf(a.stdout.snapshot(), "two") >= groupBatch
	})
	if err != nil {
		return err
	}
	if err := a.stop(ctx); err != nil {
		return err
	}
	if err := g.sees(ctx, b, "three"); err != nil {
		return fmt.Errorf("the member that is left: %w", err)
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	// The broker that is asked for the ends may be behind its leader.
	if err := soon(ctx, 15*time.Second, g.committedAll); err != nil {
		return err
	}
	c, err := g.join()
	if err != nil {
		return err
	}
	if err := g.sees(ctx, c, "four"); err != nil {
		return fmt.Errorf("a later member: %w", err)
	}
	for _, old := range []string{"one", "two", "three"} {
		if n := recordsOf(c.stdout.snapshot(), old); n > 0 {
			return fmt.Errorf("a later member is given %d records again that were committed", n)
		}
	}
	return c.stop(ctx)
}

func (g *groupRun) join() (*clientProcess, error) {
	m, err := g.r.member(g.topic, g.group)
	if err == nil {
		g.members = append(g.members, m)
	}
	return m, err
}

func (g *groupRun) killAll() {
	for _, m := range g.members {
		_ = m.proc.kill9() // its error is about a process that is gone
	}
}

// sees returns when a member holds all partitions and has read the records that
// are produced now.
func (g *groupRun) sees(ctx context.Context, m *clientProcess, prefix string) error {
	err := m.waitFor(ctx, joinWait, "all partitions", func(all []string) bool { return len(assignedTo(all)) == compatGroupPartitions })
	if err != nil {
		return err
	}
	if err := produceTo(ctx, g.r.c, g.topic, compatGroupPartitions, prefix, groupBatch); err != nil {
		return err
	}
	return m.waitFor(ctx, joinWait, "the records "+prefix, func(all []string) bool { return recordsOf(all, prefix) == groupBatch })
}

// share returns when two members hold all partitions, none twice.
func (g *groupRun) share(ctx context.Context, a, b *clientProcess) error {
	return soon(ctx, joinWait, func(context.Context) error {
		mine, theirs := assignedTo(a.stdout.snapshot()), assignedTo(b.stdout.snapshot())
		both := slices.Compact(slices.Sorted(slices.Values(slices.Concat(mine, theirs))))
		if len(mine) == 0 || len(theirs) == 0 || len(both) != compatGroupPartitions || len(mine)+len(theirs) != compatGroupPartitions {
			return fmt.Errorf("the two members hold %v and %v", mine, theirs)
		}
		return nil
	})
}

// committedAll requires the committed offsets to be the ends of the log.
func (g *groupRun) committedAll(ctx context.Context) error {
	ends, _, err := endOffsets(ctx, g.r.c.node(1).broker.addr(), g.topic, compatGroupPartitions)
	if err != nil {
		return err
	}
	got, err := compatCommittedOffsets(ctx, g.r.c, g.group, g.topic, compatGroupPartitions)
	if err == nil && !maps.Equal(got, ends) {
		err = fmt.Errorf("the group committed %v, the log ends at %v", got, ends)
	}
	return err
}

// compatCommittedOffsets asks the group's coordinator, wherever it is.
func compatCommittedOffsets(ctx context.Context, c *cluster, group, topic string, partitions int32) (map[int32]int64, error) {
	cl, err := kgo.NewClient(clientOpts(c.running())...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	tp := kmsg.NewOffsetFetchRequestTopic()
	tp.Topic = topic
	gt := kmsg.NewOffsetFetchRequestGroupTopic()
	gt.Topic = topic
	for p := range partitions {
		tp.Partitions, gt.Partitions = append(tp.Partitions, p), append(gt.Partitions, p)
	}
	gr := kmsg.NewOffsetFetchRequestGroup()
	gr.Group, gr.Topics = group, append(gr.Topics, gt)
	req.Topics, req.Groups = append(req.Topics, tp), append(req.Groups, gr)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for _, t := range resp.Topics { // before version 8
		for _, p := range t.Partitions {
			out[p.Partition] = p.Offset
		}
	}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, err
		}
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				out[p.Partition] = p.Offset
			}
		}
	}
	return out, nil
}

// running lists the addresses of the proxies that run.
func (c *cluster) running() []string {
	var out []string
	for _, n := range c.nodes {
		if n.running() {
			out = append(out, n.kafkaAddr())
		}
	}
	return out
}

// groupsFeature: a group with one member, made by other means, is listed,
// described, and deleted when it is empty.
func groupsFeature(ctx context.Context, r *compatRun) error {
	group := r.topic("listed")
	cl, err := kgo.NewClient(append(clientOpts(r.c.bootstrap()), kgo.ConsumerGroup(group), kgo.ConsumeTopics(sharedTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	if fs := cl.PollFetches(ctx); fs.Err() != nil {
		return fs.Err()
	}
	if err := cl.CommitUncommittedOffsets(ctx); err != nil {
		return err
	}
	events, err := r.s.do(ctx, featureTime, "list-groups", r.bootstrap())
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	got, err := result(events)
	if err != nil {
		return err
	}
	times := 0
	for _, name := range got.Groups {
		if name == group {
			times++
		}
	}
	if times != 1 {
		return fmt.Errorf("the client lists the group %d times, want once", times)
	}
	events, err = r.s.do(ctx, featureTime, "describe-group", r.bootstrap(), "group="+group)
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	if got, err = result(events); err != nil {
		return err
	}
	if got.Members != 1 {
		return fmt.Errorf("the client sees %d members, want 1", got.Members)
	}
	cl.Close()
	if _, err := r.s.do(ctx, featureTime, "delete-group", r.bootstrap(), "group="+group); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	left, err := compatCommittedOffsets(ctx, r.c, group, sharedTopic, 3)
	if err != nil {
		return err
	}
	for p, offset := range left {
		if offset >= 0 {
			return fmt.Errorf("the deleted group still has offset %d for partition %d", offset, p)
		}
	}
	return nil
}

// coordinatorOf returns the node that coordinates a group.
func coordinatorOf(ctx context.Context, c *cluster, group string) (int, error) {
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.SetVersion(2)
	req.CoordinatorKey = group
	resp, err := rawCall[*kmsg.FindCoordinatorResponse](ctx, c.running()[0], req)
	if err != nil {
		return 0, err
	}
	return int(resp.NodeID), kerr.ErrorForCode(resp.ErrorCode)
}

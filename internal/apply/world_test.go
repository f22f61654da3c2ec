package apply

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/watch"
)

// memLog is a committed log in memory, with a base. It cuts itself behind the
// base as early as it may.
type memLog struct {
	group   uint32
	applied watch.Index
	rebased watch.Index

	mu      sync.Mutex
	entries [][]byte // of index 1 on; nil is one of Raft's own
	first   uint64   // entries before it were deleted
	keep    bool     // do not cut behind the base
	base    []byte   // nil: of index 0
	tail    uint64   // index of the base
	trusted []uint64 // indexes of Trust
	limit   int64
	durable []byte      // the base that a restart finds, if that is not the newest
	gaps    [][2]uint64 // entries after the first up to the second came as a leader's snapshot
}

var errGoneHere = errors.New("entry was deleted")

func (l *memLog) Applied() *watch.Index { return &l.applied }

func (l *memLog) Rebased() *watch.Index { return &l.rebased }

func (l *memLog) Never(index uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.gaps, func(g [2]uint64) bool { return g[0] < index && index <= g[1] })
}

func (l *memLog) Missing() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.gaps) == 0 {
		return 0
	}
	return l.gaps[len(l.gaps)-1][1]
}

func (l *memLog) Base() (*fsm.Group, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.base == nil {
		return fsm.NewGroup(l.group), nil
	}
	return fsm.DecodeGroup(l.base)
}

func (l *memLog) Trust(index uint64, state []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tail >= index {
		return // a leader's snapshot went past it
	}
	l.base, l.tail = state, index
	l.trusted = append(l.trusted, index)
	if !l.keep {
		l.first = index + 1
	}
}

func (l *memLog) Gone(err error) bool { return errors.Is(err, errGoneHere) }

func (l *memLog) Bytes() (held, limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := max(l.first, 1) - 1; i < uint64(len(l.entries)); i++ {
		held += int64(len(l.entries[i]))
	}
	return held, l.limit
}

func (l *memLog) Entry(index uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case index == 0 || index > l.applied.Get():
		return nil, fmt.Errorf("entry %d is not applied", index)
	case index < l.first:
		return nil, errGoneHere
	}
	return l.entries[index-1], nil
}

func (l *memLog) add(data []byte) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, data)
	return uint64(len(l.entries))
}

// install is a leader's snapshot: the head's state takes the place of the log.
func (l *memLog) install(head *fsm.Group) {
	l.mu.Lock()
	l.gaps = append(l.gaps, [2]uint64{l.applied.Get(), head.Index})
	l.base, l.tail, l.first = head.Encode(), head.Index, uint64(len(l.entries))+1
	l.mu.Unlock()
	l.rebased.Set(l.rebased.Get() + 1)
	l.applied.Set(head.Index)
}

// snapshot makes the base durable, and cuts the log behind it.
func (l *memLog) snapshot(t *testing.T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.base == nil {
		return
	}
	g, err := fsm.DecodeGroup(l.base)
	if err != nil {
		t.Fatal(err)
	}
	l.durable, l.first = l.base, g.Index+1
}

// reboot sets the base back to what is durable.
func (l *memLog) reboot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base, l.tail = l.durable, max(l.first, 1)-1
}

func (l *memLog) trusts() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.trusted)
}

// world is one node: logs, the state machines that Raft would apply to, a
// broker and the applier between them.
type world struct {
	t       *testing.T
	cfg     Config
	broker  *testBroker
	local   *local
	applier *Applier
	logs    map[uint32]*memLog
	heads   map[uint32]*fsm.Group

	peer source         // where copies come from, nil if from nowhere
	edit func(*Applier) // of every applier before it is opened

	names  map[uint64]string
	groups map[fsm.TP]uint32
	mu     sync.Mutex
	want   map[fsm.TP][]item // everything that was appended; guarded by mu
	level  uint64
	fill   byte
}

// newWorld has groups numbered from 1 and a running applier.
func newWorld(t *testing.T, groups uint32, edit func(*Config)) *world {
	w := &world{}
	w.setUp(t, groups, edit)
	return w
}

func (w *world) setUp(t *testing.T, groups uint32, edit func(*Config)) {
	w.t, w.broker, w.logs, w.heads = t, newTestBroker(t), make(map[uint32]*memLog), make(map[uint32]*fsm.Group)
	w.names, w.groups, w.want = make(map[uint64]string), make(map[fsm.TP]uint32), make(map[fsm.TP][]item)
	w.local = newLocal(t, w.broker.addr)
	for id := uint32(1); id <= groups; id++ {
		w.group(id)
	}
	w.cfg = Config{Broker: w.local, DataDir: t.TempDir(), Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &testLog{t: t}})}
	if edit != nil {
		edit(&w.cfg)
	}
	w.start()
	t.Cleanup(w.stop)
}

func (w *world) group(id uint32) { w.logs[id], w.heads[id] = &memLog{group: id}, fsm.NewGroup(id) }

// testLog writes log lines to the test that they belong to, while it runs.
type testLog struct{ t *testing.T }

func (l *testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (w *world) start() {
	w.t.Helper()
	w.applier = New(w.cfg)
	if w.peer != nil {
		w.applier.copier = w.peer
	}
	if w.edit != nil {
		w.edit(w.applier)
	}
	logs := make(map[uint32]Log)
	for id, l := range w.logs {
		logs[id] = l
	}
	if err := w.applier.Open(logs); err != nil {
		w.t.Fatal(err)
	}
}

// stop closes the applier, which must end whatever it does.
func (w *world) stop() {
	w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- w.applier.Close() }()
	select {
	case err := <-done:
		if err != nil {
			w.t.Error(err)
		}
	case <-time.After(testWait):
		w.t.Fatal("the applier does not close")
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// commit puts commands in a group's log and applies them to its head.
func (w *world) commit(group uint32, cmds ...fsm.Command) []fsm.Result {
	w.t.Helper()
	results := w.commitSilently(group, cmds...)
	w.logs[group].applied.Set(w.heads[group].Index)
	return results
}

// commitSilently does not tell the applier yet.
func (w *world) commitSilently(group uint32, cmds ...fsm.Command) []fsm.Result {
	w.t.Helper()
	data := fsm.EncodeEntry(1, cmds)
	index := w.logs[group].add(data)
	results, err := w.heads[group].Apply(index, data)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range results {
		r := &results[i]
		switch {
		case r.Verdict == fsm.Appended:
			w.want[r.TP] = append(w.want[r.TP], newItem(index, r))
		case r.Kind == fsm.KindCut && r.Verdict == fsm.Done:
			w.want[r.TP] = slices.DeleteFunc(w.want[r.TP], func(it item) bool { return it.base >= r.BaseOffset })
		}
	}
	return results
}

// open opens partitions of a topic in a group.
func (w *world) open(group uint32, topic uint64, name string, parts ...int32) {
	w.t.Helper()
	w.level++
	w.names[topic] = name
	total := int32(0)
	for tp := range w.groups {
		if tp.Topic == topic {
			total = max(total, tp.Partition+1)
		}
	}
	for _, n := range parts {
		w.groups[fsm.TP{Topic: topic, Partition: n}] = group
		total = max(total, n+1)
	}
	w.commit(group, fsm.Control(fsm.KindOpen, fsm.Open{Level: w.level, Topic: topic, Name: name, Total: total, Partitions: parts}))
}

// closeTopic closes a topic in one group.
func (w *world) closeTopic(group uint32, topic uint64) {
	w.t.Helper()
	w.level++
	w.commit(group, fsm.Control(fsm.KindClose, fsm.Close{Level: w.level, Topic: topic, Name: w.names[topic]}))
	for tp, g := range w.groups {
		if tp.Topic == topic && g == group {
			delete(w.groups, tp)
			delete(w.want, tp)
		}
	}
}

// appendCmd is the append of a batch unlike all others.
func (w *world) appendCmd(tp fsm.TP, count int32, size int) fsm.Command {
	w.fill++
	return fsm.AppendCommand(tp, makeBatch(count, size, w.fill))
}

// send commits n batches of a partition, one entry each.
func (w *world) send(tp fsm.TP, n int) {
	w.t.Helper()
	for range n {
		w.commit(w.groups[tp], w.appendCmd(tp, int32(1+len(w.want[tp])%3), 20+len(w.want[tp])%50))
	}
}

func (w *world) end(tp fsm.TP) int64 { return w.heads[w.groups[tp]].Partitions[tp].NextOffset }

// visible waits until the broker has everything below end.
func (w *world) visible(tp fsm.TP, end int64) error {
	w.t.Helper()
	w.dealt(w.groups[tp])
	ch := make(chan error, 2)
	w.applier.WhenVisible(tp, end, func(err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-time.After(testWait):
		w.t.Fatalf("%s %s is not visible up to %d: %+v", w.names[tp.Topic], tp, end, w.applier.Status(w.groups[tp]))
		return nil
	}
}

// dealt waits until the feeder has dealt out everything of a group.
func (w *world) dealt(group uint32) {
	w.t.Helper()
	w.await("the feeder follows", func() bool {
		f := w.applier.feeders[group]
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.cursor >= w.logs[group].applied.Get()
	})
}

// await asks again after every change that the applier announces, and now and
// then, because not everything that a test looks at is announced.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	timeout := time.After(testWait)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		_, changed := w.applier.Changes().Changed()
		select {
		case <-changed:
		case <-tick.C:
		case <-timeout:
			w.t.Fatalf("never came: %s", what)
		}
	}
}

// settled waits until everything is on the broker, then compares its logs with
// what the state machines say.
func (w *world) settled() {
	w.t.Helper()
	for _, tp := range w.partitions() {
		if err := w.visible(tp, w.end(tp)); err != nil {
			w.t.Fatalf("%s: %v: %+v", tp, err, w.applier.Status(w.groups[tp]).Troubled)
		}
	}
	for _, tp := range w.partitions() {
		w.await(tp.String()+" is ready", func() bool { return w.applier.Ready(tp, w.end(tp)) })
		w.compare(tp)
	}
	for id := range w.logs {
		w.await("nothing is held any more", func() bool {
			s := w.applier.Status(id)
			return s.QueuedBytes == 0 && s.QueuedBatches == 0 && len(s.Troubled) == 0 && s.BrokerApplied == w.logs[id].applied.Get()
		})
	}
}

func (w *world) partitions() []fsm.TP {
	var tps []fsm.TP
	for tp := range w.groups {
		tps = append(tps, tp)
	}
	slices.SortFunc(tps, func(a, b fsm.TP) int { return strings.Compare(a.String(), b.String()) })
	return tps
}

// compare reads a partition from the broker and holds it against the state
// machine: offsets, every byte but what the broker writes, and the hash.
func (w *world) compare(tp fsm.TP) {
	w.t.Helper()
	got := w.local.brokerLog(w.t, w.names[tp.Topic], tp.Partition)
	if len(got) != len(w.want[tp]) {
		w.t.Fatalf("%s: the broker has %d batches, %d were committed", tp, len(got), len(w.want[tp]))
	}
	var hash uint64
	for i, b := range got {
		it := w.want[tp][i]
		want := it.stampedCopy(tp.Topic)
		if b.BaseOffset() != it.base || b.CRC() != it.crc || !bytes.Equal(b[8:12], want[8:12]) || !bytes.Equal(b[16:], want[16:]) {
			w.t.Fatalf("%s: batch %d at offset %d is not what was committed at %d", tp, i, b.BaseOffset(), it.base)
		}
		hash = fsm.ChainHash(hash, b.BaseOffset(), len(b), b.CRC())
	}
	if p := w.heads[w.groups[tp]].Partitions[tp]; p.Hash != hash {
		w.t.Fatalf("%s: the broker's hash is %x, the state machine's %x", tp, hash, p.Hash)
	}
}

// quarantined waits until a partition is, and returns the reason.
func (w *world) quarantined(tp fsm.TP) string {
	w.t.Helper()
	var reason string
	w.await(tp.String()+" is quarantined", func() bool {
		for _, p := range w.applier.Status(w.groups[tp]).Troubled {
			if p.TopicID == tp.Topic && p.Partition == tp.Partition && p.State == string(StateQuarantined) {
				reason = p.Reason
				return true
			}
		}
		return false
	})
	if w.applier.Ready(tp, 0) {
		w.t.Errorf("%s is quarantined and ready", tp)
	}
	return reason
}

// refusedAt waits until the broker's refusal of the batch at an offset is told.
func (w *world) refusedAt(tp fsm.TP, offset int64) (r Refusal) {
	w.t.Helper()
	w.await(tp.String()+" is refused", func() bool {
		w.applier.Conclude(w.groups[tp], w.logs[w.groups[tp]].applied.Get())
		for _, r = range w.applier.Refusals() {
			if r.TP == tp {
				return true
			}
		}
		return false
	})
	if at, code, ok := w.applier.Refused(tp); !ok || at != offset || r.Offset != offset || code != r.Code {
		w.t.Errorf("refused at %d with code %d (%t), want offset %d: %+v", at, code, ok, offset, r)
	}
	if w.applier.Ready(tp, 0) {
		w.t.Errorf("%s is refused and ready", tp)
	}
	return r
}

func (w *world) wantQuarantine(tp fsm.TP, words string) {
	w.t.Helper()
	if reason := w.quarantined(tp); !strings.Contains(reason, words) {
		w.t.Errorf("%s is quarantined because %q, want %q", tp, reason, words)
	}
	if err := w.visible(tp, 1<<40); !errors.Is(err, ErrQuarantined) {
		w.t.Errorf("a waiter for %s got %v", tp, err)
	}
}

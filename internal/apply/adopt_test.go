package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

var adoptedTP = fsm.TP{Topic: 1, Partition: 0}

// foreignTopic makes a topic on the broker that others wrote.
func (w *world) foreignTopic(name string, records int) {
	w.t.Helper()
	ctx := w.t.Context()
	if _, err := w.local.CreateTopic(ctx, name, 1, nil); err != nil {
		w.t.Fatal(err)
	}
	w.foreignRecords(name, records)
}

func (w *world) foreignRecords(name string, records int) {
	w.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.broker.addr), kgo.DefaultProduceTopic(name))
	if err != nil {
		w.t.Fatal(err)
	}
	defer cl.Close()
	for i := range records {
		if err := cl.ProduceSync(w.t.Context(), kgo.StringRecord(fmt.Sprintf("%s %d", name, i))).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// survey reads a foreign topic as topic 1.
func (w *world) survey(name string) *Survey {
	w.t.Helper()
	s, err := NewSurveyor(w.applier, w.local).Survey(w.t.Context(), name, adoptedTP.Topic)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// openAdopted opens topic 1 with what a survey found.
func (w *world) openAdopted(name string, a *fsm.Adopted) {
	w.t.Helper()
	w.level++
	w.names[1], w.groups[adoptedTP] = name, 1
	w.commit(1, fsm.Control(fsm.KindOpenAdopted, fsm.Open{Level: w.level, Topic: 1, Name: name, Total: 1,
		Partitions: []int32{0}, Revision: 1, Adopted: a}))
}

// chained is the hash of a broker's log as everybody compares it.
func (w *world) chained(name string, end int64) uint64 {
	w.t.Helper()
	hash := uint64(0)
	for _, b := range w.local.brokerLog(w.t, name, 0) {
		c, _, err := kafkawire.ParseBatch(fsm.AsCommitted(1, end, b))
		if err != nil {
			w.t.Fatal(err)
		}
		hash = fsm.ChainHash(hash, c.BaseOffset(), len(c), c.CRC())
	}
	return hash
}

func TestAHeldTopicIsBoundAsItIs(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.foreignTopic("old", 7)
	before := w.local.brokerLog(t, "old", 0)
	s := w.survey("old")
	if s.Problem != "" || len(s.Partitions) != 1 || s.Partitions[0].End != 7 || s.Partitions[0].Last.Base != 6 {
		t.Fatalf("the survey says %+v", s)
	}
	surveyor := NewSurveyor(w.applier, w.local)
	if f, err := surveyor.Foreign(t.Context()); err != nil || len(f) != 1 || f[0].Name != "old" || f[0].UUID != s.UUID || f[0].Empty() {
		t.Errorf("foreign topics: %+v, %v", f, err)
	}
	w.openAdopted("old", &fsm.Adopted{Holders: []string{s.UUID}, Partitions: s.Partitions})
	if err := w.visible(adoptedTP, 7); err != nil {
		t.Fatal(err)
	}
	w.send(adoptedTP, 5)
	for range 2 {
		if err := w.visible(adoptedTP, w.end(adoptedTP)); err != nil {
			t.Fatal(err)
		}
		after := w.local.brokerLog(t, "old", 0)
		for i, b := range before {
			if !slices.Equal(b, after[i]) {
				t.Fatalf("the batch at offset %d was changed", b.BaseOffset())
			}
		}
		if got, want := w.chained("old", 7), w.heads[1].Partitions[adoptedTP].Hash; got != want {
			t.Errorf("the broker's hash is %016x, the state machine's %016x", got, want)
		}
		w.restart()
	}
	if f, err := NewSurveyor(w.applier, w.local).Foreign(t.Context()); err != nil || len(f) != 0 {
		t.Errorf("an adopted topic is still foreign: %+v, %v", f, err)
	}
	// The topic grows by a partition that nobody wrote to before.
	second := fsm.TP{Topic: 1, Partition: 1}
	w.level++
	w.groups[second] = 1
	w.commit(1, fsm.Control(fsm.KindOpenAdopted, fsm.Open{Level: w.level, Topic: 1, Name: "old", Total: 2,
		Partitions: []int32{1}, Revision: 1, Adopted: &fsm.Adopted{Holders: []string{s.UUID}, Partitions: s.Partitions}}))
	w.send(second, 2)
	if err := w.visible(second, w.end(second)); err != nil {
		t.Fatal(err)
	}
	w.broker.stop()
	w.broker.start()
	w.send(adoptedTP, 3)
	if err := w.visible(adoptedTP, w.end(adoptedTP)); err != nil {
		t.Fatal(err)
	}
}

func TestAHeldTopicThatSomebodyWroteToIsQuarantined(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.foreignTopic("old", 3)
	s := w.survey("old")
	w.foreignRecords("old", 1)
	w.openAdopted("old", &fsm.Adopted{Holders: []string{s.UUID}, Partitions: s.Partitions})
	w.wantQuarantine(adoptedTP, "past lockstep while it was adopted")
	// Deleting the topic leaves the broker's own alone; it can be adopted again.
	w.closeTopic(1, 1)
	w.dealt(1)
	w.await("the topic is closed here", func() bool {
		b, _, _ := w.applier.topics.look(1)
		return b.Gone
	})
	if n := len(w.local.brokerLog(t, "old", 0)); n != 4 {
		t.Errorf("the broker holds %d batches, had 4", n)
	}
	if f, err := NewSurveyor(w.applier, w.local).Foreign(t.Context()); err != nil || len(f) != 1 {
		t.Errorf("foreign topics: %+v, %v", f, err)
	}
}

func TestAnotherCopyIsKeptAsideUntilItIsGivenUp(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.foreignTopic("old", 4)
	s := w.survey("old")
	w.openAdopted("old", &fsm.Adopted{Holders: []string{strings.Repeat("ab", 16)}, Partitions: s.Partitions})
	w.wantQuarantine(adoptedTP, "lockstep rebuild old --force")
	if err := w.applier.Rebuild(t.Context(), 1, false); err == nil {
		t.Error("a copy kept aside was given up without force")
	}
	w.restart()
	w.quarantined(adoptedTP)
	if n := len(w.local.brokerLog(t, "old", 0)); n != 4 {
		t.Fatalf("the broker holds %d batches, had 4", n)
	}
	if err := w.applier.Rebuild(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	w.awaitCopying()
}

func TestACopyThatWasGivenUpIsMadeAnew(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.foreignTopic("old", 4)
	s := w.survey("old")
	w.openAdopted("old", &fsm.Adopted{Holders: []string{"another"}, Discard: []string{s.UUID}, Partitions: s.Partitions})
	w.awaitCopying()
	if n := len(w.local.brokerLog(t, "old", 0)); n != 0 {
		t.Errorf("the broker holds %d batches of what was given up", n)
	}
	w.send(adoptedTP, 2)
	if w.applier.Ready(adoptedTP, 0) {
		t.Error("a partition whose beginning is not there is served")
	}
	w.restart()
	w.awaitCopying()
}

// awaitCopying waits until the adopted partition's lane lacks all that was
// adopted, and so keeps the log.
func (w *world) awaitCopying() {
	w.t.Helper()
	w.await("the partition copies", func() bool {
		for _, p := range w.applier.Status(1).Troubled {
			if p.State == string(StateCopying) {
				return true
			}
		}
		return false
	})
	if trusted := w.logs[1].trusts(); len(trusted) > 0 {
		w.t.Errorf("the log may be cut at %v, though the broker lacks what was adopted", trusted)
	}
}

func TestASurveySaysWhyATopicCannotBeAdopted(t *testing.T) {
	w := newWorld(t, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.broker.addr), kgo.DefaultProduceTopic("tx"), kgo.TransactionalID("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := w.local.CreateTopic(ctx, "tx", 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if s := w.survey("tx"); !strings.Contains(s.Problem, "transaction") {
		t.Errorf("records of a transaction: %q", s.Problem)
	}
}

func TestCheckpointsOfASurveyAreFewAndCoverTheLog(t *testing.T) {
	r := survey{topic: 1, p: fsm.AdoptedPartition{Start: 10, End: 10 + 400*3}, pos: 10}
	for r.pos < r.p.End {
		b := makeBatch(3, 256<<10, byte(r.pos))
		for i := range 8 {
			b[i] = byte(r.pos >> (56 - 8*i))
		}
		if why := r.take(b); why != "" {
			t.Fatal(why)
		}
	}
	r.mark()
	cps := r.p.Checkpoints
	if len(cps) > fsm.MaxAdoptedCheckpoints || len(cps) < fsm.MaxAdoptedCheckpoints/3 {
		t.Errorf("%d checkpoints", len(cps))
	}
	if last := cps[len(cps)-1]; last.Offset != r.p.End || last.Hash != r.p.Hash {
		t.Errorf("the last checkpoint is %+v, the log ends at %d with hash %016x", last, r.p.End, r.p.Hash)
	}
	m := fsm.NewGroup(1)
	o := fsm.Open{Level: 1, Topic: 1, Name: "t", Total: 1, Partitions: []int32{0}, Adopted: &fsm.Adopted{Partitions: []fsm.AdoptedPartition{r.p}}}
	results, err := m.Apply(1, fsm.EncodeEntry(0, []fsm.Command{fsm.Control(fsm.KindOpenAdopted, o)}))
	if err != nil || results[0].Verdict != fsm.Done {
		t.Errorf("the state machine does not take it: %+v, %v", results, err)
	}
}

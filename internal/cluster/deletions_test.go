package cluster

import (
	"errors"
	"testing"

	"lockstep/proxy"
)

// TestDeletionSparesWhatWasCommittedMeanwhile: between the broker's yes to a
// deletion and its proposal a member may join and commit. What it was
// acknowledged is not forgotten; the client asks again.
func TestDeletionSparesWhatWasCommittedMeanwhile(t *testing.T) {
	r := running(t, nil)
	topic := r.create(r.members[1], "orders", 2)
	m, epoch := r.coordinatorOf("g", 0)
	commit := func(group string, offset int64) {
		t.Helper()
		if code := r.commit(m, commitOf(group, epoch, topic, offset)); code != 0 {
			t.Fatalf("commit: code %d", code)
		}
	}
	refused := func(err error) bool {
		var e *proxy.KafkaError
		return errors.As(err, &e) && e.Code == 16
	}
	partition := func(n int32) []proxy.TopicPartition { return []proxy.TopicPartition{{Topic: topic.ID, Partition: n}} }

	commit("g", 1)
	done := m.cluster.NoteCommits("g")
	again := m.cluster.NoteCommits("g")
	commit("g", 2)
	if err := m.cluster.DeleteGroup(r.ctx(), "g", epoch); !refused(err) {
		t.Errorf("the group: %v", err)
	}
	if err := m.cluster.DeleteOffsets(r.ctx(), "g", epoch, partition(0)); !refused(err) {
		t.Errorf("its offset: %v", err)
	}
	if got := r.committed(m, "g"); got != "[{orders 0 2 m}]" {
		t.Errorf("committed %s", got)
	}
	if err := m.cluster.DeleteOffsets(r.ctx(), "g", epoch, partition(1)); err != nil {
		t.Errorf("the offset of another partition: %v", err)
	}
	done()
	if err := m.cluster.DeleteGroup(r.ctx(), "g", epoch); !refused(err) {
		t.Errorf("the group, as long as somebody notes: %v", err)
	}
	again()
	done = m.cluster.NoteCommits("g")
	if err := m.cluster.DeleteGroup(r.ctx(), "g", epoch); err != nil {
		t.Errorf("what was committed before is deleted: %v", err)
	}
	done()
	if got := r.committed(m, "g"); got != "[]" {
		t.Errorf("after the deletion: %s", got)
	}
	if n := len(m.cluster.commits.noted); n != 0 {
		t.Errorf("%d groups are noted for nobody", n)
	}
}

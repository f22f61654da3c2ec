package apply

import "testing"

// A lane that is to begin anew at a leader's snapshot says that it is not well
// before it has looked at its broker: what that lacks is not known yet.
func TestANewBaseIsTroubleUntilItIsCompared(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, nil)
	w.open(1, 1, "a", 0)
	w.send(tpA, 3)
	w.settled()
	if s := w.applier.Status(1); len(s.Troubled) > 0 {
		t.Fatalf("at rest: %+v", s)
	}
	looks, release := make(chan struct{}, 10), make(chan struct{})
	w.local.mu.Lock()
	w.local.logEnd = func(string, int32) {
		looks <- struct{}{}
		<-release
	}
	w.local.mu.Unlock()
	w.commitSilently(1, w.appendCmd(tpA, 1, 30))
	w.logs[1].install(w.heads[1])
	<-looks
	s := w.applier.Status(1)
	if len(s.Troubled) != 1 || s.Troubled[0].State != string(StateAttaching) {
		t.Errorf("while it looks: %+v", s)
	}
	close(release)
}

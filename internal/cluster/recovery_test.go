package cluster

import "testing"

// A flush that failed is a problem until one goes well, not for as long as the
// process runs.
func TestFailedFlushIsAProblemForAsLongAsItLasts(t *testing.T) {
	t.Parallel()
	var s Status
	s.addRecovery(1, &RecoveryReport{FlushErrors: 3})
	if len(s.Problems) != 0 {
		t.Errorf("flushes go well again, and the problems are %q", s.Problems)
	}
	s.addRecovery(1, &RecoveryReport{FlushErrors: 3, Unflushed: true})
	if len(s.Problems) != 1 {
		t.Errorf("the newest flush failed, and the problems are %q", s.Problems)
	}
}

package node

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Snapshots of one term and index that come together, this node's own and a
// leader's, are both kept: the file store would give them one name.
func TestSnapshotsOfOneIndexTogether(t *testing.T) {
	g := &guard{limit: time.Minute, fatal: func(err error) { t.Errorf("taken for a broken disk: %v", err) }}
	s, err := openSnapshots(t.TempDir(), "me", g, hclog.NewNullLogger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	snap := snapshot{snapshotHead{7, 3, "me"}, []byte("head"), []byte("tail")}
	content := snap.encode()
	ended := make(chan error, 20)
	for range cap(ended) {
		go func() {
			sink, err := s.Create(raft.SnapshotVersionMax, 7, 1, raft.Configuration{}, 0, nil)
			if err == nil {
				_, err = sink.Write(content)
			}
			if err == nil {
				err = sink.Close()
			}
			ended <- err
		}()
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got, err := s.List(); err != nil || len(got) == 0 || got[0].Index != 7 {
		t.Errorf("kept %v: %v", got, err)
	}
}

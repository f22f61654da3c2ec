package node

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"lockstep/fsm"
	"lockstep/internal/testaddr"
)

// Data directories as older builds left them are in testdata/olddata, one
// archive per build and log store, with what must be in them beside it. A build
// adds its own with OLD_DATA=name go test -run '^TestWriteOldData$' ./internal/node
// before a change of a format, and never replaces one.
const oldData = "testdata/olddata"

// oldState is what a data directory holds, in terms that no format changes.
type oldState struct {
	Next            int64
	Hash            uint64
	Topics          []string
	Incarnation     string
	Offset          int64 // committed by group "g" for topic 1, partition 0
	ACLs, Snapshots int
}

func stateOf(n *Node) oldState {
	s := oldState{Incarnation: n.Incarnation()}
	n.Catalog().Read(func(g *fsm.Group) {
		for id := uint64(1); g.Catalog.Topics[id] != nil; id++ {
			s.Topics = append(s.Topics, g.Catalog.Topics[id].Name)
		}
		if c := g.Catalog.Consumers["g"]; c != nil {
			for _, o := range c.Offsets {
				s.Offset += o.Offset
			}
		}
		s.ACLs = len(g.Catalog.Access.ACLs)
	})
	n.Group(1).Read(func(g *fsm.Group) {
		p := g.Partitions[loadTP]
		s.Next, s.Hash = p.NextOffset, p.Hash
	})
	if n.Group(1).LogStatus().SnapshotIndex > 0 {
		s.Snapshots = 1
	}
	return s
}

// TestWriteOldData adds this build's data directories to the fixtures.
func TestWriteOldData(t *testing.T) {
	name := os.Getenv("OLD_DATA")
	if name == "" {
		t.Skip("it writes fixtures, and OLD_DATA names no build to write them for")
	}
	for _, kind := range []string{StoreWAL, StoreBoltDB} {
		c := newTestCluster(t, 1, smallLogs(kind))
		c.peers[1] = testaddr.Local().Free(t)
		c.start(1)
		c.settled()
		c.createTopic(c.nodes[1], "t")
		c.createTopic(c.nodes[1], "u")
		n := c.nodes[1]
		for _, cmd := range []fsm.Command{
			fsm.Control(fsm.KindAssignCoordinators, fsm.AssignCoordinators{Slots: []fsm.SlotAssignment{{Slot: 3, Node: 1}}}),
			fsm.CommitCommand([]fsm.OffsetCommit{{Group: "g", Slot: 3, Epoch: 1, Turn: 1, RetentionMs: -1,
				Offsets: []fsm.OffsetToCommit{{TP: fsm.TP{Topic: 1}, Offset: 41}}}}),
			fsm.Control(fsm.KindCreateACLs, fsm.CreateACLs{ACLs: []fsm.ACL{{Resource: 2, Name: "t", Pattern: 3, Principal: "User:a", Host: "*", Operation: 4, Permission: 3}}}),
		} {
			if r, err := n.Submit(c.ctx(), fsm.CatalogGroup, cmd); err != nil || r.Verdict != fsm.Done {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		c.openLoad()
		g := n.Group(1)
		c.load(512<<10, 8<<10)
		c.eventually("a snapshot is taken", func() (bool, string) { return g.LogStatus().SnapshotIndex > 0, "none" })
		c.load(64<<10, 8<<10)
		want := stateOf(n)
		c.stop(1)
		raw, err := json.MarshalIndent(want, "", " ")
		if err == nil {
			err = os.MkdirAll(oldData, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(oldData, name+"-"+kind+".json"), append(raw, '\n'), 0o644)
		}
		if err == nil {
			err = pack(c.dataDir(1), filepath.Join(oldData, name+"-"+kind+".tar.gz"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestOldDataDirectories opens what older builds left: everything is there, and
// the node goes on from it.
func TestOldDataDirectories(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join(oldData, "*.tar.gz"))
	if err != nil || len(archives) < 2 {
		t.Fatalf("%d archives, %v", len(archives), err)
	}
	for _, archive := range archives {
		name := strings.TrimSuffix(filepath.Base(archive), ".tar.gz")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind := name[strings.LastIndex(name, "-")+1:]
			c := newTestCluster(t, 1, smallLogs(kind))
			if err := unpack(archive, c.dataDir(1)); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(oldData, name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var want oldState
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			if want.Next == 0 || want.Offset != 41 || len(want.Topics) != 2 || want.ACLs != 1 || want.Snapshots != 1 {
				t.Fatalf("the fixture proves too little: %+v", want)
			}
			c.start(1)
			c.leader(0)
			c.leader(1)
			if got := stateOf(c.nodes[1]); !reflect.DeepEqual(got, want) {
				t.Fatalf("it holds %+v, want %+v", got, want)
			}
			c.load(16<<10, 8<<10)
			c.createTopic(c.nodes[1], "v")
			if got := stateOf(c.nodes[1]); got.Next != want.Next+2 || len(got.Topics) != 3 {
				t.Errorf("it goes on to %+v", got)
			}
		})
	}
}

func pack(dir, file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	err = w.AddFS(os.DirFS(dir))
	return errors.Join(err, w.Close(), z.Close(), f.Close())
}

func unpack(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			err = unpackFile(r, path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func unpackFile(r io.Reader, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

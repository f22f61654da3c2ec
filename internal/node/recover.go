package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"

	"lockstep/fsm"
)

// Recovered is what Recover found and did.
type Recovered struct {
	Number int16            `json:"number"` // the new recovery number
	Groups []RecoveredGroup `json:"groups"`
}

// RecoveredGroup is one group of a recovered node.
type RecoveredGroup struct {
	Group         uint32 `json:"group"`
	FirstIndex    uint64 `json:"first_index"` // of the log, 0 if it is empty
	LastIndex     uint64 `json:"last_index"`  // of the log or the snapshot
	LastTerm      uint64 `json:"last_term"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	Servers       int    `json:"servers"`  // voters of the configuration that is given up, 0 if it is not in the log
	NewTerm       uint64 `json:"new_term"` // the term of the two entries that were appended
}

// Recover makes a cluster of this one node, which must be stopped, after the
// majority was lost for good. It gives up what the other nodes hold: entries
// that were committed on them and never reached this node are gone, and
// entries of this node that were never committed will be. How far this node's
// log was committed, nobody can tell.
//
// Every group's log gets two entries at its end, in a new term: a
// configuration of this node alone, and the new recovery number, which is the
// epoch of everything that appliers write from there on. raft.RecoverCluster
// would throw away the log that the broker may still need. The number is
// written first: from then on nodes of the old cluster are strangers, and stop
// when they hear of it. What was done may be done again after a crash.
func Recover(cfg Config) (*Recovered, error) {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, identityFile)); err != nil {
		return nil, fmt.Errorf("recover from %s: this node has never been a member of the cluster: %w", cfg.DataDir, err)
	}
	id, err := loadIdentity(cfg.DataDir, cfg.ClusterID, cfg.NodeID, cfg.Groups)
	if err != nil {
		return nil, err
	}
	if !id.Member {
		return nil, fmt.Errorf("recover from %s: this node has never been a member of the cluster", cfg.DataDir)
	}
	n := New(cfg)
	n.identity = id
	var whole error // before anything is changed
	for _, g := range n.groups {
		_, err := g.recover(0)
		whole = errors.Join(whole, err)
	}
	if whole != nil {
		return nil, whole
	}
	next := *id
	next.Recovery++
	if err := next.save(cfg.DataDir); err != nil {
		return nil, err
	}
	out := &Recovered{Number: next.Recovery}
	for _, g := range n.groups {
		r, err := g.recover(next.Recovery)
		if err != nil {
			return nil, err
		}
		out.Groups = append(out.Groups, r)
	}
	return out, nil
}

// recover appends what makes this node the group's only one. Number 0 only
// looks whether it could.
func (g *Group) recover(number int16) (RecoveredGroup, error) {
	var disk error
	s, err := g.openStoresWith(func(err error) { disk = err })
	if err != nil {
		return RecoveredGroup{}, err
	}
	r, err := g.recoverStores(s, number)
	if err != nil {
		err = fmt.Errorf("recover group %d: %w", g.ID, err)
	}
	dir := groupDir(g.n.cfg.DataDir, g.ID)
	return r, errors.Join(err, disk, s.close(), syncDir(dir), syncDir(filepath.Dir(dir)))
}

func (g *Group) recoverStores(s *stores, number int16) (RecoveredGroup, error) {
	r := RecoveredGroup{Group: g.ID}
	if err := g.openWhole(s); err != nil {
		return r, err
	}
	in := true // nothing says otherwise
	metas, err := s.snaps.List()
	if err != nil {
		return r, fmt.Errorf("list the snapshots: %w", err)
	}
	for _, m := range metas {
		if m.Index == s.snaps.last().index {
			r.SnapshotIndex, r.LastIndex, r.LastTerm = m.Index, m.Index, m.Term
			r.Servers, in = len(m.Configuration.Servers), g.among(m.Configuration)
		}
	}
	first, last := s.disk.sizes.span()
	r.FirstIndex, r.LastIndex = first, max(last, r.LastIndex)
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		if err := s.disk.read(i, &l); err != nil {
			return r, err
		}
		r.LastTerm = max(r.LastTerm, l.Term)
		if l.Type == raft.LogConfiguration {
			conf := raft.DecodeConfiguration(l.Data)
			r.Servers, in = len(conf.Servers), g.among(conf)
		}
	}
	if r.LastIndex == 0 {
		return r, errors.New("there is nothing: neither log nor snapshot")
	}
	if !in {
		return r, errNotHeld
	}
	if number == 0 {
		return r, nil
	}
	return r, g.appendRecovery(s, &r, number)
}

// errNotHeld is returned for a node that does not hold one of the groups.
var errNotHeld = errors.New("this node does not hold the group any more: what it has of it is from former times; recover on a node that holds every group, or bring back nodes that hold this one")

// among says whether this node is in a configuration.
func (g *Group) among(conf raft.Configuration) bool {
	return len(conf.Servers) == 0 || slices.ContainsFunc(conf.Servers, func(s raft.Server) bool { return nodeID(s.ID) == g.n.cfg.NodeID })
}

func (g *Group) appendRecovery(s *stores, r *RecoveredGroup, number int16) error {
	term, err := s.stable.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return fmt.Errorf("read the term: %w", err)
	}
	r.NewTerm = max(term, r.LastTerm) + 1
	if err := s.disk.marks.stable.SetUint64([]byte("CurrentTerm"), r.NewTerm); err != nil {
		return fmt.Errorf("write the term: %w", err)
	}
	self := g.n.cfg.NodeID
	alone := raft.Configuration{Servers: []raft.Server{{ID: g.n.server(), Address: raft.ServerAddress(g.n.ownAddress())}}}
	return s.logs.StoreLogs([]*raft.Log{
		{Index: r.LastIndex + 1, Term: r.NewTerm, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)},
		{Index: r.LastIndex + 2, Term: r.NewTerm, Type: raft.LogCommand,
			Data: fsm.EncodeEntry(0, []fsm.Command{fsm.Control(fsm.KindRecover, fsm.Recover{Number: number, Survivor: self})})},
	})
}

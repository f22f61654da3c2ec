package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// identity is what makes a node the same node after a restart. It lives in
// data_dir/identity.json and is written before the node says a word to anyone:
// who lost that file is a stranger, whatever its configuration says.
type identity struct {
	ClusterID   string `json:"cluster_id"`
	NodeID      int32  `json:"node_id"`
	Incarnation string `json:"incarnation"`
	Groups      uint32 `json:"groups"`

	// Member is set once the groups' stores are there. Before that this
	// node has never voted and may start over.
	Member bool `json:"member"`

	// Recovery counts the recoveries from a lost quorum that this node has
	// been through. Peers with a lower number hold what may have been given
	// up: they are strangers.
	Recovery int16 `json:"recovery,omitempty"`

	// Known holds the incarnations of the other members, as agreed on when
	// the cluster began or as the catalog registered them since. It is read
	// before the catalog is.
	Known map[int32]string `json:"known"`

	// Catalog is the version of the catalog that Known and Peers are from. A
	// snapshot may hold an older one: until what is replayed has come as far,
	// the identity says who belongs.
	Catalog uint64 `json:"catalog,omitempty"`

	// Former holds the incarnations that were put out, by node, the newest
	// last and at most maxFormer of each: the catalog remembers one.
	Former map[int32][]string `json:"former,omitempty"`

	// Server is this node's id in the groups' configurations, empty for a
	// founder: see fsm.CatalogNode.RaftServer.
	Server string `json:"server,omitempty"`

	// Peers holds the raft addresses that the catalog had last. Nodes that
	// know each other from there alone must meet before it can be read.
	Peers map[int32]string `json:"peers,omitempty"`

	// Outdated holds the addresses of raft.peers that the catalog's news
	// replaced: as long as raft.peers says the same, the catalog's is dialed.
	Outdated map[int32]string `json:"outdated,omitempty"`
}

const identityFile = "identity.json"

// maxFormer bounds how many incarnations of one node are remembered.
const maxFormer = 16

// wasPutOut says whether an incarnation was put out of the cluster.
func (id *identity) wasPutOut(node int32, incarnation string) bool {
	return slices.Contains(id.Former[node], incarnation)
}

// putOut notes an incarnation that was put out.
func (id *identity) putOut(node int32, incarnation string) {
	if incarnation == "" || id.wasPutOut(node, incarnation) {
		return
	}
	list := append(slices.Clone(id.Former[node]), incarnation)
	id.Former = maps.Clone(id.Former) // others may read the old one
	if id.Former == nil {
		id.Former = make(map[int32][]string)
	}
	id.Former[node] = list[max(0, len(list)-maxFormer):]
}

// adviceIdentity goes with an identity that cannot be read.
const adviceIdentity = "restore the file, or empty data_dir and readmit the node"

// loadIdentity reads the identity, or makes a new one for an empty data_dir.
func loadIdentity(dir, clusterID string, nodeID int32, groups uint32) (*identity, error) {
	raw, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, os.ErrNotExist) {
		return newIdentity(dir, clusterID, nodeID, groups)
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	id := new(identity)
	if err := json.Unmarshal(raw, id); err != nil {
		return nil, fmt.Errorf("the identity in %s is damaged: %w; %s", filepath.Join(dir, identityFile), err, adviceIdentity)
	}
	switch {
	case id.NodeID != nodeID:
		return nil, fmt.Errorf("data_dir %s belongs to node %d, but node.id is %d: set data_dir or node.id right", dir, id.NodeID, nodeID)
	case id.ClusterID != clusterID:
		return nil, fmt.Errorf("data_dir %s belongs to cluster %q, but cluster.id is %q: set data_dir or cluster.id right", dir, id.ClusterID, clusterID)
	case id.Groups != groups:
		return nil, fmt.Errorf("data_dir %s has %d raft groups, but raft.groups is %d: the number of groups cannot be changed", dir, id.Groups, groups)
	case id.Incarnation == "":
		return nil, fmt.Errorf("the identity in %s is damaged: it has no incarnation; %s", filepath.Join(dir, identityFile), adviceIdentity)
	}
	if id.Known == nil {
		id.Known = make(map[int32]string)
	}
	if id.Outdated == nil {
		id.Outdated = make(map[int32]string)
	}
	return id, nil
}

func newIdentity(dir, clusterID string, nodeID int32, groups uint32) (*identity, error) {
	if _, err := os.Stat(filepath.Join(dir, raftDir)); err == nil {
		return nil, fmt.Errorf("data_dir %s holds raft logs but no %s: the directory is damaged; restore the file, or empty the directory and readmit the node", dir, identityFile)
	}
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("make an incarnation: %w", err)
	}
	id := &identity{ClusterID: clusterID, NodeID: nodeID, Groups: groups,
		Incarnation: hex.EncodeToString(b[:]), Known: make(map[int32]string), Outdated: make(map[int32]string)}
	return id, id.save(dir)
}

// save writes the identity so that a crash leaves the old one or the new one.
func (id *identity) save(dir string) error {
	raw, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	path := filepath.Join(dir, identityFile)
	if err := writeSynced(path+".tmp", raw); err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return syncDir(dir)
}

func writeSynced(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(raw); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

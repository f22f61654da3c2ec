package cluster

import "time"

// NodeState is how a node is, as the node that is asked sees it.
type NodeState string

const (
	NodeUp       NodeState = "up"       // its word holds
	NodeStopping NodeState = "stopping" // it was told to stop
	NodeSuspect  NodeState = "suspect"  // not heard of for a moment: it may be slow or cut off
	NodeDown     NodeState = "down"     // its process is gone, or it has been silent for downAfter
)

// FarBehind is the lag, in entries, beyond which the status calls a broker
// behind.
const FarBehind = closeBehind

// downAfter is when silence alone counts as down.
const downAfter = 10 * time.Second

// nodeState judges by the newest word of a node, zero if there was none; by
// whether that word still holds; and by when its process was last found gone.
func nodeState(alive, stopping bool, heard, gone, now time.Time) NodeState {
	switch {
	case alive && stopping:
		return NodeStopping
	case alive:
		return NodeUp
	case gone.After(heard), heard.IsZero(), now.Sub(heard) > downAfter:
		return NodeDown
	}
	return NodeSuspect
}

// addState adds what is known of a node beside its own word; slots are the
// coordinators' nodes.
func (c *Cluster) addState(n *NodeStatus, said *Announcement, slots []int32) {
	now, heard := time.Now(), c.Heard(n.ID)
	n.Silent = -1
	if !heard.IsZero() {
		n.Silent = now.Sub(heard).Round(time.Millisecond)
	}
	n.State = nodeState(n.Alive, said != nil && said.Stopping, heard, c.node.GoneSince(n.ID), now)
	for _, id := range slots {
		if id == n.ID {
			n.Coordinators++
		}
	}
}

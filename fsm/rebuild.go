package fsm

import "maps"

// CodeBusy is the code of a TakeRebuild while another node rebuilds the topic.
// No client ever sees it.
const CodeBusy = -1001

// TakeRebuild asks for a topic's lease: the right to destroy a node's copy of
// it and to make it anew from the others. One node at a time has it, so that
// the last good copy is never among those that go. It ends with EndRebuild or
// with the topic, never by itself: a node that is away in the middle of a
// rebuild has no copy.
type TakeRebuild struct {
	Topic uint64 `json:"topic"`
	Node  int32  `json:"node"`
}

// EndRebuild gives a topic's lease back. It changes nothing if the node does
// not have it.
type EndRebuild struct {
	Topic uint64 `json:"topic"`
	Node  int32  `json:"node"`
}

func (c *Catalog) takeRebuild(a *TakeRebuild) (Result, bool) {
	if t := c.Topics[a.Topic]; t == nil || t.State == TopicDeleting {
		return rejected(codeUnknownTopic, "no such topic"), false
	}
	if holder, ok := c.Rebuilds[a.Topic]; ok {
		if holder != a.Node {
			return rejected(CodeBusy, "node %d rebuilds this topic", holder), false
		}
		return Result{Topic: a.Topic}, false
	}
	leases := maps.Clone(c.Rebuilds)
	leases[a.Topic] = a.Node
	c.Rebuilds = leases
	return Result{Topic: a.Topic}, true
}

func (c *Catalog) endRebuild(a *EndRebuild) bool {
	if holder, ok := c.Rebuilds[a.Topic]; !ok || holder != a.Node {
		return false
	}
	c.dropRebuild(a.Topic)
	return true
}

func (c *Catalog) dropRebuild(topic uint64) {
	if _, ok := c.Rebuilds[topic]; !ok {
		return
	}
	leases := maps.Clone(c.Rebuilds)
	delete(leases, topic)
	c.Rebuilds = leases
}

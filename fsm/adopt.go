package fsm

import (
	"math"
	"slices"

	"lockstep/kafkawire"
)

// A topic that a broker held before Lockstep stood in front of it is adopted:
// its partitions begin with the offsets, the log start and the hash of what is
// there. Those records were written by others. What everybody compares, copies
// and hashes is what they are with the applier's identity: epoch 0, and as
// sequence the offset modulo 2^31, which is what an applier would have stamped
// had it written the log from offset 0. The broker that held them keeps its own
// bytes; see AsCommitted.

// The commands of adoption. Numbers are part of the log's format and never
// reused.
const (
	KindAdoptTopic   Kind = 32 // a topic that brokers hold already comes into the catalog
	KindOpenAdopted  Kind = 33 // KindOpen, of a topic that was adopted
	KindReserveTopic Kind = 34 // a topic's id is given out before the topic is there
)

// MaxAdoptedCheckpoints is how many checkpoints a partition brings along: they
// travel in every Open of its topic.
const MaxAdoptedCheckpoints = 16

// maxReserved is how many ids may be reserved and unused.
const maxReserved = 10_000

// CodeNotReserved is the code of an AdoptTopic whose id is not reserved for its
// name. No client ever sees it.
const CodeNotReserved = -1002

// Adopted is what a topic was when it was adopted. It is never modified.
type Adopted struct {
	// Holders are the brokers' own ids (UUIDs) of the topics whose copies are
	// taken as they are: each holds exactly what Partitions says.
	Holders []string `json:"holders"`
	// Discard are the ids of topics with other records that the operator gave
	// up: their brokers may delete them.
	Discard    []string           `json:"discard,omitempty"`
	Partitions []AdoptedPartition `json:"partitions"`
}

// String shows it in full.
func (a *Adopted) String() string {
	if a == nil {
		return "-"
	}
	return string(mustJSON(a))
}

// AdoptedPartition is one partition's log when its topic was adopted.
type AdoptedPartition struct {
	Start       int64        `json:"start"`
	End         int64        `json:"end"`
	Hash        uint64       `json:"hash"` // ChainHash over [Start, End) with the applier's identity
	Last        Placed       `json:"last"` // zero Count: not known
	Checkpoints []Checkpoint `json:"checkpoints,omitempty"`
}

// ReserveTopic gives out the id of a topic that is about to be adopted: the
// hash of its log depends on it.
type ReserveTopic struct {
	Name string `json:"name"`
}

// AdoptTopic enters a topic that brokers hold already, under an id that was
// reserved for its name.
type AdoptTopic struct {
	Topic   uint64            `json:"topic"`
	Name    string            `json:"name"`
	Groups  uint32            `json:"groups"` // number of groups of the cluster
	Config  map[string]string `json:"config,omitempty"`
	Adopted *Adopted          `json:"adopted"`
	// Offsets are what consumer groups had committed for it at the broker whose
	// copy was meant.
	Offsets []AdoptedOffset `json:"offsets,omitempty"`
}

// AdoptedOffset is what a group had committed for a partition.
type AdoptedOffset struct {
	Group     []byte `json:"group"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  []byte `json:"metadata,omitempty"`
}

// AdoptedSequence is the sequence of an adopted record.
func AdoptedSequence(offset int64) int32 { return int32(offset & math.MaxInt32) }

// problem says why the description of a log cannot be true, empty if it can.
func (a *AdoptedPartition) problem() string {
	switch {
	case a.Start < 0 || a.End < a.Start || a.End > 1<<62:
		return "its offsets are not in order"
	case a.Last.Count < 0 || a.Last.Count > 0 && (a.Last.Base < 0 || a.Last.Base+int64(a.Last.Count) != a.End ||
		a.Last.Epoch != 0 || a.Last.Sequence != AdoptedSequence(a.Last.Base)):
		return "its last batch is not where it ends"
	case len(a.Checkpoints) > MaxAdoptedCheckpoints:
		return "it has too many checkpoints"
	}
	before := a.Start - 1
	for _, c := range a.Checkpoints {
		if c.Offset <= before || c.Offset > a.End || c.Sequence != AdoptedSequence(c.Offset) || c.Offset == a.End && c.Hash != a.Hash {
			return "its checkpoints are not in order"
		}
		before = c.Offset
	}
	return ""
}

func (c *Catalog) reserveTopic(a *ReserveTopic) Result {
	if len(c.Places) > 0 {
		return rejected(codeInvalidRequest, "topics are adopted while every node holds every group: here groups have places already (lockstep rebalance)")
	}
	if t := c.TopicByName(a.Name); t != nil {
		r := rejected(codeTopicExists, "topic %q already exists", a.Name)
		r.Topic = t.ID
		return r
	}
	if a.Name == "" || len(c.reserved) >= maxReserved {
		return rejected(codeInvalidRequest, "a reservation needs a name, and there are at most %d", maxReserved)
	}
	c.unreserve(a.Name)
	id := c.nextTopic
	c.nextTopic++
	c.reserved[id] = a.Name
	return Result{Topic: id}
}

// unreserve ends the reservation for a name: a topic that got the name under a
// later id must stay the newest that ever had it.
func (c *Catalog) unreserve(name string) {
	for id, n := range c.reserved {
		if n == name {
			delete(c.reserved, id)
		}
	}
}

func (c *Catalog) adoptTopic(a *AdoptTopic, clockMs int64) Result {
	if n, ok := c.reserved[a.Topic]; !ok || n != a.Name {
		return rejected(CodeNotReserved, "topic id %d is not reserved for %q", a.Topic, a.Name)
	}
	if a.Adopted == nil || len(a.Adopted.Holders) == 0 || len(a.Adopted.Partitions) == 0 || len(a.Adopted.Partitions) > MaxPartitions || a.Groups < 1 {
		return rejected(codeInvalidRequest, "an adopted topic has a holder and 1 to %d partitions", MaxPartitions)
	}
	for i := range a.Adopted.Partitions {
		if why := a.Adopted.Partitions[i].problem(); why != "" {
			return rejected(codeInvalidRequest, "partition %d of topic %q: %s", i, a.Name, why)
		}
	}
	delete(c.reserved, a.Topic)
	// Revision 1, so that the holders' brokers are given the settings.
	t := &CatalogTopic{ID: a.Topic, Name: a.Name, State: TopicOpening, Config: a.Config, Revision: 1, Configured: 1, Adopted: a.Adopted}
	t.Groups = c.spread(nil, t.ID, int32(len(a.Adopted.Partitions)), a.Groups)
	c.Topics[t.ID] = t
	c.byName[t.Name] = t.ID
	for i := range a.Offsets {
		c.adoptOffset(t.ID, &a.Offsets[i], clockMs)
	}
	return Result{Topic: t.ID}
}

// adoptOffset takes over what a group had committed. Nobody can have committed
// anything for the topic yet. What no group could commit is passed over.
func (c *Catalog) adoptOffset(topic uint64, o *AdoptedOffset, clockMs int64) {
	tp := TP{Topic: topic, Partition: o.Partition}
	if len(o.Group) > MaxGroupID || o.Offset < 0 || !c.hasPartition(tp) {
		return
	}
	commit := OffsetCommit{Group: string(o.Group), RetentionMs: -1}
	to := OffsetToCommit{TP: tp, Offset: o.Offset, Metadata: string(o.Metadata)}
	if metadataTooLarge(to.Metadata) {
		to.Metadata = ""
	}
	c.commitOffset(&commit, &to, clockMs)
}

// partition is what a topic brought along for a partition, nil if nothing.
func (a *Adopted) partition(n int32) *AdoptedPartition {
	if a == nil || n < 0 || int(n) >= len(a.Partitions) {
		return nil
	}
	return &a.Partitions[n]
}

// Birth is the state of a partition of an adopted topic when it was opened in a
// group with that recovery number; nil if it began empty.
func (o *Open) Birth(tp TP, recovery int16) *Partition {
	if o.Adopted.partition(tp.Partition) == nil {
		return nil
	}
	return openPartition(o, tp, recovery)
}

// openPartition makes the partition that an Open asks for.
func openPartition(o *Open, tp TP, recovery int16) *Partition {
	p := newPartition(tp, o.Name, recovery)
	a := o.Adopted.partition(tp.Partition)
	if a == nil {
		return p
	}
	p.Epoch = 0
	p.NextOffset, p.LogStart, p.Sequence = a.End, a.Start, AdoptedSequence(a.End)
	p.Hash, p.LastBatch, p.Checkpoints = a.Hash, a.Last, slices.Clone(a.Checkpoints)
	p.forgot = true // who wrote before: any sequence is taken from them, as Kafka does
	if recovery > 0 {
		p.recover(recovery)
	}
	return p
}

// AdoptedEnd is the offset up to which others wrote a partition's log, 0 if
// nobody did.
func (o *Open) AdoptedEnd(partition int32) int64 {
	if a := o.Adopted.partition(partition); a != nil {
		return a.End
	}
	return 0
}

// AsCommitted returns batches of a broker's log as everybody compares them:
// those below end, which others wrote before their topic was adopted, get the
// applier's identity. What has it already, what does not have its own checksum
// and what follows a batch that cannot be read stays as it is. raw is not
// written to; the result may alias it.
func AsCommitted(topic uint64, end int64, raw []byte) []byte {
	mine := false
	for at := 0; at < len(raw); {
		b, _, err := kafkawire.ParseBatch(raw[at:])
		if err != nil || b.BaseOffset() >= end {
			break
		}
		if toRestamp(topic, end, b) {
			if !mine {
				raw, mine = slices.Clone(raw), true
				b = kafkawire.Batch(raw[at : at+len(b)])
			}
			kafkawire.StampInPlace(b, ApplierProducerID(topic), 0, AdoptedSequence(b.BaseOffset()))
		}
		at += len(b)
	}
	return raw
}

func toRestamp(topic uint64, end int64, b kafkawire.Batch) bool {
	if b.BaseOffset() < 0 || b.BaseOffset()+int64(b.LastOffsetDelta()) >= end || b.IsControl() || b.IsTransactional() {
		return false
	}
	same := b.ProducerID() == ApplierProducerID(topic) && b.ProducerEpoch() == 0 && b.BaseSequence() == AdoptedSequence(b.BaseOffset())
	return !same && b.ChecksumOK()
}

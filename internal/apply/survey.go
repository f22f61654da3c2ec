package apply

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// SurveyBroker is the local broker, as a survey of its own topics reads it.
// Methods may be called from any goroutine.
type SurveyBroker interface {
	Topics(ctx context.Context) ([]broker.TopicInfo, error)
	Topic(ctx context.Context, name string) (broker.TopicInfo, error)
	LogEnd(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	LogEnds(ctx context.Context, topic string, partitions int32) (starts, ends map[int32]int64, err error)
	Batches(ctx context.Context, topic string, partition int32, from, to int64, fn func(batch []byte) error) error
	OwnTopicConfig(ctx context.Context, name string) (map[string]string, error)
	TopicConfig(ctx context.Context, name string) (map[string]string, error)
	TopicOffsets(ctx context.Context, topic string, partitions int32) ([]broker.GroupOffset, error)
}

// Surveyor reads the topics that the local broker holds and that are not
// Lockstep's. Its methods may be called from any goroutine after the applier's
// Open.
type Surveyor struct {
	a *Applier
	b SurveyBroker
}

// NewSurveyor returns the surveyor of an applier's broker.
func NewSurveyor(a *Applier, b SurveyBroker) *Surveyor { return &Surveyor{a: a, b: b} }

// ForeignTopic is a topic that a broker holds and that is not Lockstep's.
type ForeignTopic struct {
	Name       string             `json:"name"`
	UUID       string             `json:"uuid"` // the broker's own topic id
	Partitions []ForeignPartition `json:"partitions"`
}

// ForeignPartition is where the log of one of its partitions starts and ends.
type ForeignPartition struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// Empty says that nothing was ever written to the topic.
func (t *ForeignTopic) Empty() bool {
	return !slices.ContainsFunc(t.Partitions, func(p ForeignPartition) bool { return p.End > 0 })
}

// Foreign lists the broker's topics that are not bound to one of the catalog's,
// Kafka's internal ones aside, by name.
func (s *Surveyor) Foreign(ctx context.Context) ([]ForeignTopic, error) {
	return listTopics(ctx, s.b, s.bound)
}

// Listed is a broker whose topics can be listed.
type Listed interface {
	Topics(ctx context.Context) ([]broker.TopicInfo, error)
	LogEnds(ctx context.Context, topic string, partitions int32) (starts, ends map[int32]int64, err error)
}

// AllTopics lists every topic of a broker that no node stood in front of yet.
func AllTopics(ctx context.Context, b Listed) ([]ForeignTopic, error) {
	return listTopics(ctx, b, func([16]byte) bool { return false })
}

func listTopics(ctx context.Context, b Listed, ours func(uuid [16]byte) bool) ([]ForeignTopic, error) {
	infos, err := b.Topics(ctx)
	if err != nil {
		return nil, err
	}
	out := []ForeignTopic{}
	for _, info := range infos {
		if info.Internal || ours(info.UUID) {
			continue
		}
		t, err := bounds(ctx, b, info)
		if err != nil {
			return nil, err
		}
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b ForeignTopic) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Named returns the broker's topic of that name if it is not Lockstep's, nil if
// there is none. It fails with broker.ErrNoTopic if the broker has no topic of
// that name at all.
func (s *Surveyor) Named(ctx context.Context, name string) (*ForeignTopic, error) {
	info, err := s.b.Topic(ctx, name)
	if err != nil || info.Internal || s.bound(info.UUID) {
		return nil, err
	}
	return bounds(ctx, s.b, info)
}

// bound says whether a topic of the broker is, or was, one of the catalog's.
func (s *Surveyor) bound(uuid [16]byte) bool {
	t := s.a.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.bound {
		if b.UUID == uuid && uuid != [16]byte{} {
			return true
		}
	}
	return false
}

func bounds(ctx context.Context, b Listed, info broker.TopicInfo) (*ForeignTopic, error) {
	t := &ForeignTopic{Name: info.Name, UUID: hex.EncodeToString(info.UUID[:])}
	starts, ends, err := b.LogEnds(ctx, info.Name, info.Partitions)
	if err != nil {
		return nil, err
	}
	for n := range info.Partitions {
		t.Partitions = append(t.Partitions, ForeignPartition{Start: starts[n], End: ends[n]})
	}
	return t, nil
}

// Survey is what a broker holds of one topic, read from beginning to end.
type Survey struct {
	UUID       string                 `json:"uuid"`
	Config     map[string]string      `json:"config,omitempty"` // given to the topic itself, and its cleanup.policy
	Partitions []fsm.AdoptedPartition `json:"partitions"`
	Offsets    []fsm.AdoptedOffset    `json:"offsets,omitempty"` // what consumer groups have committed for it
	// Problem is why the topic cannot be adopted, empty if it can.
	Problem string `json:"problem,omitempty"`
}

// Survey reads a whole topic of the broker, as it would be adopted under a
// topic id of the catalog. Hashes of surveys under one id can be compared.
func (s *Surveyor) Survey(ctx context.Context, name string, topic uint64) (*Survey, error) {
	info, err := s.b.Topic(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look the topic up: %w", err)
	}
	out := &Survey{UUID: hex.EncodeToString(info.UUID[:])}
	switch {
	case info.UUID == [16]byte{}:
		out.Problem = "the broker does not give its topics ids (Kafka 2.8 does): it could not be told from another topic of that name"
	case s.bound(info.UUID):
		out.Problem = "it is one of lockstep's already"
	}
	if out.Config, err = s.b.OwnTopicConfig(ctx, name); err != nil {
		return nil, err
	}
	all, err := s.b.TopicConfig(ctx, name)
	if err != nil {
		return nil, err
	}
	compacted := strings.Contains(all["cleanup.policy"], "compact")
	if compacted {
		out.Config["cleanup.policy"] = all["cleanup.policy"]
	}
	for n := range info.Partitions {
		if out.Problem != "" {
			break
		}
		p, problem, err := s.read(ctx, name, topic, n, compacted)
		if err != nil {
			return nil, err
		}
		if out.Partitions = append(out.Partitions, *p); problem != "" {
			out.Problem = fmt.Sprintf("partition %d %s", n, problem)
		}
	}
	if out.Problem == "" {
		out.Offsets, err = s.offsets(ctx, name, info.Partitions)
	}
	return out, err
}

func (s *Surveyor) offsets(ctx context.Context, name string, partitions int32) ([]fsm.AdoptedOffset, error) {
	committed, err := s.b.TopicOffsets(ctx, name, partitions)
	if err != nil {
		return nil, err
	}
	var out []fsm.AdoptedOffset
	for _, o := range committed {
		out = append(out, fsm.AdoptedOffset{Group: []byte(o.Group), Partition: o.Partition, Offset: o.Offset, Metadata: []byte(o.Metadata)})
	}
	return out, nil
}

// read reads one partition.
func (s *Surveyor) read(ctx context.Context, name string, topic uint64, n int32, compacted bool) (*fsm.AdoptedPartition, string, error) {
	start, end, err := s.b.LogEnd(ctx, name, n)
	if err != nil {
		return nil, "", fmt.Errorf("read the log end offset: %w", err)
	}
	r := survey{topic: topic, compacted: compacted, p: fsm.AdoptedPartition{Start: start, End: end}, pos: start}
	if start < end {
		err = s.b.Batches(ctx, name, n, start, end, func(raw []byte) error {
			if r.problem == "" {
				r.problem = r.take(raw)
			}
			return ctx.Err()
		})
	}
	if err != nil {
		return nil, "", fmt.Errorf("read partition %d: %w", n, err)
	}
	if !compacted && r.problem == "" {
		if r.pos != end {
			r.problem = fmt.Sprintf("has nothing between offsets %d and %d", r.pos, end)
		}
		r.mark()
	}
	return &r.p, r.problem, nil
}

// survey is one partition being read. It belongs to one goroutine.
type survey struct {
	topic     uint64
	compacted bool
	p         fsm.AdoptedPartition
	pos       int64 // behind what was read
	bytes     int64 // since the last checkpoint
	spacing   int64 // bytes between two of them
	problem   string
}

// maxAdoptedBatch is the largest batch that may ever be copied
// (configs.MaxEntryBytesCeiling).
const maxAdoptedBatch = 16 << 20

// take takes the next batch, or says why it cannot be adopted.
func (r *survey) take(raw []byte) string {
	b, _, err := kafkawire.ParseBatch(raw)
	switch {
	case err != nil:
		return fmt.Sprintf("holds something at offset %d that is no batch of Kafka's present format (magic 2): %v", r.pos, err)
	case !b.ChecksumOK():
		return fmt.Sprintf("is damaged at offset %d: the batch does not have its checksum", b.BaseOffset())
	case b.IsControl() || b.IsTransactional():
		return fmt.Sprintf("has records of a transaction at offset %d: their markers cannot be copied", b.BaseOffset())
	case b.TimestampTypeAppend():
		return fmt.Sprintf("has timestamps of its broker (LogAppendTime) at offset %d: other brokers would refuse the batch", b.BaseOffset())
	case len(b) > maxAdoptedBatch:
		return fmt.Sprintf("has a batch of %d bytes at offset %d, above %d", len(b), b.BaseOffset(), maxAdoptedBatch)
	case lastOffset(b) >= r.p.End || b.LastOffsetDelta() < 0:
		return fmt.Sprintf("has a batch at offset %d that ends beyond its log end offset %d: something writes to it", b.BaseOffset(), r.p.End)
	case !r.compacted && (!whole(b) || b.BaseOffset() != r.pos && r.bytes+r.spacing > 0 || b.BaseOffset() > r.pos):
		return fmt.Sprintf("has holes at offset %d, though it is not compacted", r.pos)
	}
	if !r.compacted && r.spacing == 0 { // the first
		r.spacing = fsm.CheckpointBytes
		if b.BaseOffset() == r.p.Start && r.p.Start > 0 {
			r.mark()
		}
	}
	b, _, _ = kafkawire.ParseBatch(fsm.AsCommitted(r.topic, r.p.End, raw)) // it was parsed before
	r.p.Hash = fsm.ChainHash(r.p.Hash, b.BaseOffset(), len(b), b.CRC())
	r.pos, r.bytes = lastOffset(b)+1, r.bytes+int64(len(b))
	r.p.Last = fsm.Placed{}
	if r.pos == r.p.End && whole(b) {
		r.p.Last = fsm.Placed{Base: b.BaseOffset(), Count: b.Count(), CRC: b.CRC(), Sequence: b.BaseSequence(), Epoch: b.ProducerEpoch()}
	}
	if !r.compacted && r.bytes >= r.spacing {
		r.mark()
	}
	return ""
}

// mark makes a checkpoint at pos, unless there is one. When there are as many as
// there may be, with one left for the end, every second goes.
func (r *survey) mark() {
	r.bytes = 0
	c := &r.p.Checkpoints
	if r.pos == 0 || len(*c) > 0 && (*c)[len(*c)-1].Offset == r.pos {
		return
	}
	if len(*c) >= fsm.MaxAdoptedCheckpoints-1 && r.pos < r.p.End {
		kept := (*c)[:0]
		for i, m := range *c {
			if i%2 == 1 {
				kept = append(kept, m)
			}
		}
		*c = kept
		r.spacing *= 2
	}
	*c = append(*c, fsm.Checkpoint{Offset: r.pos, Hash: r.p.Hash, Sequence: fsm.AdoptedSequence(r.pos)})
}

// SameLog says whether two surveys under one topic id found the same records at
// the same offsets.
func SameLog(a, b []fsm.AdoptedPartition) bool {
	return slices.EqualFunc(a, b, func(x, y fsm.AdoptedPartition) bool {
		return x.Start == y.Start && x.End == y.End && x.Hash == y.Hash
	})
}

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/internal/apply"
	"lockstep/internal/broker"
	"lockstep/proxy"
	"lockstep/transport"
)

// Adoption: brokers may hold topics from before Lockstep stood in front of them.
// Each node lists those of its own broker when it is asked; an operator has one
// adopted at any node, which reads the copies, decides what they are to each
// other, and enters the topic in the catalog. From there on its partitions live
// like all others; see internal/apply/adopt.go for what becomes of the copies.
//
// Nothing is remembered before the entry in the catalog: whoever dies on the way
// there has changed nothing but given out a topic id.

const (
	methodForeign = methodAnnounce + 20 // what a broker holds that is not ours
	methodSurvey  = methodAnnounce + 21 // one topic of it, read through

	foreignTimeout = 15 * time.Second
	// guardTimeout bounds how long a topic that is created waits for what the
	// brokers hold under its name.
	guardTimeout = 2 * time.Second
)

// Errors of Adopt.
var (
	// ErrNothingForeign is returned when no broker has such a topic.
	ErrNothingForeign = errors.New("no broker that can be asked has such a topic that is not lockstep's already")
	// ErrConflict is returned when brokers have different records under one
	// name, and nobody said which are meant.
	ErrConflict = errors.New("brokers hold different records under that name")
	// ErrNotAdoptable is returned when a topic cannot be adopted as it is.
	ErrNotAdoptable = errors.New("the topic cannot be adopted as it is")
)

// ForeignTopics reads what the local broker holds that is not Lockstep's
// (apply.Surveyor). Methods may be called from any goroutine.
type ForeignTopics interface {
	Foreign(ctx context.Context) ([]apply.ForeignTopic, error)
	Named(ctx context.Context, name string) (*apply.ForeignTopic, error)
	Survey(ctx context.Context, name string, topic uint64) (*apply.Survey, error)
}

// What the copies of a foreign topic are to each other.
const (
	CopySingle   = "single"   // one broker has records
	CopySame     = "same"     // several have logs of the same extent; whether the records are the same is found when they are adopted
	CopyConflict = "conflict" // several have logs of different extent
	CopyEmpty    = "empty"    // nothing was ever written
	CopyAside    = "aside"    // the catalog has a topic of that name; this broker's own is kept aside
)

// ForeignCopy is what one node's broker has of a foreign topic.
type ForeignCopy struct {
	Node       int32 `json:"node"`
	Partitions int   `json:"partitions"`
	Offsets    int64 `json:"offsets"` // between log starts and log ends, all partitions together
	End        int64 `json:"end"`     // log end offsets, all partitions together

	topic apply.ForeignTopic
}

// ForeignTopic is a topic that brokers have and that the catalog did not make.
type ForeignTopic struct {
	Name   string        `json:"name"`
	State  string        `json:"state"`
	Copies []ForeignCopy `json:"copies"`
}

// ForeignReport is what all brokers hold. Silent are the nodes that could not be
// asked, and why.
type ForeignReport struct {
	Topics []ForeignTopic   `json:"topics"`
	Silent map[int32]string `json:"silent,omitempty"`
}

type surveyQuery struct {
	Name  string `json:"name,omitempty"`
	Topic uint64 `json:"topic,omitempty"`
}

func (c *Cluster) handleAdoption() {
	if c.cfg.Foreign == nil {
		return
	}
	c.node.Handle(methodForeign, answerJSON(c.foreignHere))
	c.node.Handle(methodSurvey, answerJSON(func(ctx context.Context, q surveyQuery) (*apply.Survey, error) {
		return c.cfg.Foreign.Survey(ctx, q.Name, q.Topic)
	}))
}

// answerJSON makes a handler of a function from and to JSON.
func answerJSON[T any](f func(context.Context, surveyQuery) (T, error)) transport.Handler {
	return func(ctx context.Context, _ transport.Hello, payload []byte) ([]byte, error) {
		var q surveyQuery
		if err := json.Unmarshal(payload, &q); err != nil {
			return nil, fmt.Errorf("read a question about foreign topics: %w", err)
		}
		out, err := f(ctx, q)
		if err != nil {
			return nil, err
		}
		return json.Marshal(out)
	}
}

// foreignHere lists what the local broker holds, or the topic of one name.
func (c *Cluster) foreignHere(ctx context.Context, q surveyQuery) ([]apply.ForeignTopic, error) {
	if q.Name == "" {
		return c.cfg.Foreign.Foreign(ctx)
	}
	t, err := c.cfg.Foreign.Named(ctx, q.Name)
	switch {
	case errors.Is(err, broker.ErrNoTopic), err == nil && t == nil:
		return []apply.ForeignTopic{}, nil
	case err != nil:
		return nil, err
	}
	return []apply.ForeignTopic{*t}, nil
}

// askAll asks all nodes what their brokers hold. Those that are away keep nobody
// waiting.
func (c *Cluster) askAll(ctx context.Context, q surveyQuery) (held map[int32][]apply.ForeignTopic, silent map[int32]string) {
	held, silent = make(map[int32][]apply.ForeignTopic), make(map[int32]string)
	payload, err := json.Marshal(q)
	if err != nil {
		return held, silent
	}
	news, _ := c.roster.fresh()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range c.node.Peers() {
		if a := news[id]; a == nil || !a.Broker.Up {
			mu.Lock()
			silent[id] = "the node is not heard of"
			if a != nil {
				silent[id] = "its broker is unreachable"
			}
			mu.Unlock()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			var out []apply.ForeignTopic
			var err error
			if id == c.cfg.Self {
				out, err = c.foreignHere(ctx, q)
			} else {
				var raw []byte
				if raw, err = c.node.Call(ctx, id, methodForeign, payload); err == nil {
					err = json.Unmarshal(raw, &out)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[id] = err.Error()
				return
			}
			held[id] = out
		}()
	}
	wg.Wait()
	return held, silent
}

// Foreign lists the topics that brokers hold and that are not Lockstep's. Any
// goroutine.
func (c *Cluster) Foreign(ctx context.Context) (*ForeignReport, error) {
	if c.cfg.Foreign == nil {
		return nil, ErrNothingForeign
	}
	ctx, cancel := context.WithTimeout(ctx, foreignTimeout)
	defer cancel()
	held, silent := c.askAll(ctx, surveyQuery{})
	out := &ForeignReport{Topics: CompareForeign(held), Silent: silent}
	for i := range out.Topics {
		if f := &out.Topics[i]; c.catalogTopic(f.Name) != nil {
			f.State = CopyAside
		}
	}
	return out, nil
}

// CompareForeign says of every topic that brokers hold, by node, who has it and
// what the copies are to each other.
func CompareForeign(held map[int32][]apply.ForeignTopic) []ForeignTopic {
	by := make(map[string]*ForeignTopic)
	for _, id := range slices.Sorted(maps.Keys(held)) {
		for _, t := range held[id] {
			f := by[t.Name]
			if f == nil {
				f = &ForeignTopic{Name: t.Name}
				by[t.Name] = f
			}
			f.Copies = append(f.Copies, copyOf(id, t))
		}
	}
	out := []ForeignTopic{}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		f := by[name]
		f.State = relation(f.Copies)
		out = append(out, *f)
	}
	return out
}

func copyOf(node int32, t apply.ForeignTopic) ForeignCopy {
	out := ForeignCopy{Node: node, Partitions: len(t.Partitions), topic: t}
	for _, p := range t.Partitions {
		out.Offsets += p.End - p.Start
		out.End += p.End
	}
	return out
}

// relation says what copies are to each other, as far as their extent tells.
func relation(copies []ForeignCopy) string {
	var first *ForeignCopy
	state := CopyEmpty
	for i := range copies {
		switch f := &copies[i]; {
		case f.topic.Empty():
		case first == nil:
			first, state = f, CopySingle
		case !slices.Equal(first.topic.Partitions, f.topic.Partitions):
			return CopyConflict
		default:
			state = CopySame
		}
	}
	return state
}

// guardName refuses to create a topic whose name a broker holds records under
// that are not Lockstep's: they would be kept aside, and whoever created it did
// not mean that. What cannot be asked in time is passed over: nothing is lost
// then either.
func (c *Cluster) guardName(ctx context.Context, name string) error {
	if c.cfg.Foreign == nil || c.catalogTopic(name) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	held, _ := c.askAll(ctx, surveyQuery{Name: name})
	var nodes []string
	for _, id := range slices.Sorted(maps.Keys(held)) {
		if len(held[id]) > 0 && !held[id][0].Empty() {
			nodes = append(nodes, itoa(id))
		}
	}
	if len(nodes) == 0 {
		return nil
	}
	return &proxy.KafkaError{Code: codeTopicExists, Message: fmt.Sprintf(
		"the broker of node %s holds a topic %q from before lockstep: `lockstep adopt %s` brings it in", strings.Join(nodes, ", "), name, name)}
}

const codeTopicExists = 36 // TOPIC_ALREADY_EXISTS

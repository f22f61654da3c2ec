package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"lockstep/fsm"
	"lockstep/internal/apply"
	"lockstep/proxy"
)

// AdoptOrder is what an operator wants adopted.
type AdoptOrder struct {
	Topic string
	// From is the node whose broker's copy is meant; 0: the copies are the
	// same, or there is one.
	From int32
	// Discard are the nodes whose brokers' other copies are given up: they are
	// deleted. All others that differ are kept aside.
	Discard []int32
}

// AdoptResult is what became of it.
type AdoptResult struct {
	Topic      string   `json:"topic"`
	TopicID    uint64   `json:"topic_id"`
	Partitions int      `json:"partitions"`
	Offsets    int64    `json:"offsets"`           // between log starts and log ends
	Holders    []int32  `json:"holders"`           // brokers whose copy is taken as it is
	Copying    []int32  `json:"copying,omitempty"` // brokers that get a copy
	Discarded  []int32  `json:"discarded,omitempty"`
	Aside      []int32  `json:"kept_aside,omitempty"`       // brokers that keep their own, and have no copy
	Groups     int      `json:"groups"`                     // consumer groups whose committed offsets came along
	Dropped    []string `json:"dropped_settings,omitempty"` // settings that the cluster cannot keep
}

// Adopt enters a topic that brokers hold in the catalog. It returns when
// the topic's groups have it, before it is copied; after an error it may be called
// again. It reads the whole topic on every broker that may have the same
// records. Any goroutine.
func (c *Cluster) Adopt(ctx context.Context, o AdoptOrder) (*AdoptResult, error) {
	if c.cfg.Foreign == nil {
		return nil, ErrNothingForeign
	}
	ask, cancel := context.WithTimeout(ctx, foreignTimeout)
	held, silent := c.askAll(ask, surveyQuery{Name: o.Topic})
	cancel()
	p := &adoptPlan{order: o, copies: make(map[int32]apply.ForeignTopic), silent: silent}
	for id, ts := range held {
		if len(ts) > 0 && !ts[0].Empty() {
			p.copies[id] = ts[0]
		}
	}
	if err := p.choose(); err != nil {
		return nil, err
	}
	r, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindReserveTopic, fsm.ReserveTopic{Name: o.Topic})
	if err != nil {
		return nil, err
	}
	if err := c.compareCopies(ctx, p, r.Topic); err != nil {
		return nil, err
	}
	if err := p.decide(c.node.Catalog().Voters()); err != nil {
		return nil, err
	}
	config, dropped := proxy.AdoptableSettings(p.survey.Config)
	p.result.TopicID, p.result.Dropped = r.Topic, dropped
	if _, err := c.submit(ctx, fsm.CatalogGroup, fsm.KindAdoptTopic, fsm.AdoptTopic{Topic: r.Topic, Name: o.Topic,
		Groups: c.cfg.Groups, Config: config, Adopted: p.adopted(), Offsets: p.survey.Offsets}); err != nil {
		return nil, err
	}
	c.log.Info("adopted a topic that brokers held", "topic", o.Topic, "topic-id", r.Topic, "from", p.source,
		"holders", p.result.Holders, "kept-aside", p.result.Aside, "discarded", p.result.Discarded)
	return &p.result, c.untilTopic(ctx, r.Topic, func(s *snapshot) bool {
		t := s.shown(r.Topic, o.Topic)
		return t != nil && len(t.Partitions) >= p.result.Partitions
	})
}

// adoptPlan is one adoption being decided. It belongs to one goroutine.
type adoptPlan struct {
	order  AdoptOrder
	copies map[int32]apply.ForeignTopic // with records, by node
	silent map[int32]string

	source  int32
	survey  *apply.Survey           // of the source
	same    map[int32]*apply.Survey // with the source's records, itself included
	discard []string
	result  AdoptResult
}

// choose finds the copy that is meant.
func (p *adoptPlan) choose() error {
	nodes := slices.Sorted(maps.Keys(p.copies))
	switch {
	case len(nodes) == 0:
		return fmt.Errorf("adopt topic %s: %w%s", p.order.Topic, ErrNothingForeign, p.silence())
	case p.order.From == 0:
		p.source = nodes[0]
	default:
		if _, ok := p.copies[p.order.From]; !ok {
			return fmt.Errorf("adopt topic %s from node %d: %w there%s", p.order.Topic, p.order.From, ErrNothingForeign, p.silence())
		}
		p.source = p.order.From
	}
	for _, id := range p.order.Discard {
		if id == p.source {
			return fmt.Errorf("adopt topic %s: node %d cannot be both the source and given up", p.order.Topic, id)
		}
	}
	return nil
}

func (p *adoptPlan) silence() string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(p.silent)) {
		out = append(out, fmt.Sprintf("node %d could not be asked: %s", id, p.silent[id]))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// compareCopies reads the source, and every copy that may be the same.
func (c *Cluster) compareCopies(ctx context.Context, p *adoptPlan, topic uint64) error {
	type answer struct {
		survey *apply.Survey
		err    error
	}
	answers := make(map[int32]*answer)
	var wg sync.WaitGroup
	for id, t := range p.copies {
		if !slices.Equal(t.Partitions, p.copies[p.source].Partitions) {
			continue
		}
		a := new(answer)
		answers[id] = a
		wg.Add(1)
		go func() {
			defer wg.Done()
			a.survey, a.err = c.surveyAt(ctx, id, surveyQuery{Name: p.order.Topic, Topic: topic})
		}()
	}
	wg.Wait()
	src := answers[p.source]
	switch {
	case src.err != nil:
		return fmt.Errorf("read topic %s on the broker of node %d: %w", p.order.Topic, p.source, src.err)
	case src.survey.Problem != "":
		return fmt.Errorf("%w: on the broker of node %d it %s", ErrNotAdoptable, p.source, strings.TrimPrefix(src.survey.Problem, "it "))
	}
	p.survey, p.same = src.survey, make(map[int32]*apply.Survey)
	for id, a := range answers {
		switch {
		case a.err != nil:
			return fmt.Errorf("read topic %s on the broker of node %d: %w", p.order.Topic, id, a.err)
		case a.survey.Problem == "" && apply.SameLog(a.survey.Partitions, p.survey.Partitions):
			p.same[id] = a.survey
		}
	}
	return nil
}

func (c *Cluster) surveyAt(ctx context.Context, node int32, q surveyQuery) (*apply.Survey, error) {
	if node == c.cfg.Self {
		return c.cfg.Foreign.Survey(ctx, q.Name, q.Topic)
	}
	payload, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	raw, err := c.node.Call(ctx, node, methodSurvey, payload)
	if err != nil {
		return nil, err
	}
	out := new(apply.Survey)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("read what the node says: %w", err)
	}
	return out, nil
}

// decide says what becomes of each node's copy. A majority of the nodes must be
// able to hold the topic: what is acknowledged from now on is on their disks.
func (p *adoptPlan) decide(nodes []int32) error {
	r := &p.result
	r.Topic, r.Partitions = p.order.Topic, len(p.survey.Partitions)
	for _, part := range p.survey.Partitions {
		r.Offsets += part.End - part.Start
	}
	groups := make(map[string]bool)
	for _, o := range p.survey.Offsets {
		groups[string(o.Group)] = true
	}
	r.Groups = len(groups)
	var differ []string
	for _, id := range nodes {
		t, has := p.copies[id]
		_, silent := p.silent[id]
		switch {
		case p.same[id] != nil:
			r.Holders = append(r.Holders, id)
		case has && slices.Contains(p.order.Discard, id):
			r.Discarded = append(r.Discarded, id)
			r.Copying = append(r.Copying, id)
			p.discard = append(p.discard, t.UUID)
		case has:
			differ = append(differ, itoa(id))
			r.Aside = append(r.Aside, id)
		case !silent:
			r.Copying = append(r.Copying, id)
		}
	}
	if len(differ) > 0 && p.order.From == 0 {
		return fmt.Errorf("adopt topic %s: %w: that of node %d, and others on %s; say which with --from NODE, the others' are kept aside",
			p.order.Topic, ErrConflict, p.source, strings.Join(differ, ", "))
	}
	if able := len(r.Holders) + len(r.Copying); 2*able <= len(nodes) {
		return fmt.Errorf("adopt topic %s: %w: only %d of %d nodes could hold it, and a majority must: give up other copies with --discard NODE (node %s)%s",
			p.order.Topic, ErrConflict, able, len(nodes), strings.Join(differ, " or "), p.silence())
	}
	return nil
}

// adopted is what the catalog is told.
func (p *adoptPlan) adopted() *fsm.Adopted {
	a := &fsm.Adopted{Discard: p.discard, Partitions: p.survey.Partitions}
	for _, id := range p.result.Holders {
		a.Holders = append(a.Holders, p.same[id].UUID)
	}
	return a
}

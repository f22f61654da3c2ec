package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"lockstep/fsm"
	"lockstep/internal/cluster"
)

// adoptBeat is how often a line says that a topic is still being read, so that
// the client does not take the node for dead.
const adoptBeat = 2 * time.Second

// adoptLine is one line of an answer to /adopt: nothing yet, the result, or why
// there is none.
type adoptLine struct {
	Result *cluster.AdoptResult `json:"result,omitempty"`
	Error  string               `json:"error,omitempty"`
}

// foreign lists the topics that brokers hold and that are not Lockstep's.
func (s *Server) foreign(w http.ResponseWriter, r *http.Request) {
	report, err := s.cluster.Foreign(r.Context())
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSON(w, http.StatusOK, report)
}

// adopt brings a topic that brokers hold into the catalog. The topic is read
// meanwhile, which takes its time: the answer is a line now and then, and the
// last one is the outcome.
func (s *Server) adopt(w http.ResponseWriter, r *http.Request) {
	o, err := adoptOrder(r.URL.Query())
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	lines := json.NewEncoder(w)
	say := func(l adoptLine) {
		_ = lines.Encode(l) // the client is gone: its request's context says so
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
	done := make(chan adoptLine, 1)
	go func() {
		result, err := s.cluster.Adopt(r.Context(), o)
		if err != nil {
			done <- adoptLine{Error: err.Error()}
			return
		}
		done <- adoptLine{Result: result}
	}()
	t := time.NewTicker(adoptBeat)
	defer t.Stop()
	for {
		say(adoptLine{})
		select {
		case <-t.C:
		case l := <-done:
			say(l)
			return
		}
	}
}

func adoptOrder(q url.Values) (cluster.AdoptOrder, error) {
	o := cluster.AdoptOrder{Topic: q.Get("topic")}
	if o.Topic == "" {
		return o, errors.New("adopt needs ?topic=")
	}
	if v := q.Get("from"); v != "" {
		id, err := nodeID(v)
		if err != nil {
			return o, fmt.Errorf("from: %w", err)
		}
		o.From = id
	}
	for _, v := range q["discard"] {
		id, err := nodeID(v)
		if err != nil {
			return o, fmt.Errorf("discard: %w", err)
		}
		o.Discard = append(o.Discard, id)
	}
	return o, nil
}

func nodeID(v string) (int32, error) {
	id, err := strconv.ParseInt(v, 10, 32)
	if err != nil || id < 1 {
		return 0, fmt.Errorf("%q is no node id", v)
	}
	return int32(id), nil
}

// asCommitted gives a batch of the local broker's log the form in which brokers
// are compared: others wrote what was there before its topic was adopted.
func (s *Server) asCommitted(topic string, partition int32) func(raw []byte) []byte {
	var id uint64
	var end int64
	s.node.Catalog().Read(func(g *fsm.Group) {
		t := g.Catalog.TopicByName(topic)
		if t != nil && t.Adopted != nil && int(partition) < len(t.Adopted.Partitions) && partition >= 0 {
			id, end = t.ID, t.Adopted.Partitions[partition].End
		}
	})
	return func(raw []byte) []byte {
		if end == 0 {
			return raw
		}
		return fsm.AsCommitted(id, end, raw)
	}
}

// Foreign returns the topics that brokers hold and that are not Lockstep's.
func (c *Client) Foreign(ctx context.Context, addr string) (*cluster.ForeignReport, error) {
	out := new(cluster.ForeignReport)
	resp, err := c.get(ctx, addr, "/foreign", nil)
	if err == nil {
		defer resp.Body.Close()
		err = json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s what the brokers hold: %w", addr, err)
	}
	return out, nil
}

// Adopt has a node adopt a topic, and returns when it is in the catalog.
func (c *Client) Adopt(ctx context.Context, addr string, o cluster.AdoptOrder) (*cluster.AdoptResult, error) {
	q := url.Values{"topic": {o.Topic}}
	if o.From != 0 {
		q.Set("from", strconv.Itoa(int(o.From)))
	}
	for _, id := range o.Discard {
		q.Add("discard", strconv.Itoa(int(id)))
	}
	resp, err := c.do(ctx, http.MethodPost, addr, "/adopt", q)
	if err != nil {
		return nil, fmt.Errorf("have %s adopt topic %s: %w", addr, o.Topic, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l adoptLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("have %s adopt topic %s: %w", addr, o.Topic, err)
		}
		switch {
		case l.Error != "":
			return nil, errors.New(strings.TrimSpace(l.Error))
		case l.Result != nil:
			return l.Result, nil
		}
	}
	if err = lines.Err(); err == nil {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("have %s adopt topic %s: the outcome is not known, `lockstep adopt` lists what is left: %w", addr, o.Topic, err)
}

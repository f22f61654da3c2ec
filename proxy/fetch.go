package proxy

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// Fetch 4 to 12 (13 carries topic ids).
//
// Served by the local broker over the client's own connection. When every
// partition is served here the request is patched in place and the answer's bytes
// go back untouched but for error codes; else the partitions that are not ours
// are answered by us, at once as Kafka does, and the rest is fetched and
// merged. Deviations from Kafka: no fetch sessions (KIP-227), a request that
// continues one is answered FETCH_SESSION_ID_NOT_FOUND; leader epochs are not
// checked; a poll ends when leadership of one of its partitions is lost; an
// offset that the cluster has and the local broker lacks is
// OFFSET_NOT_AVAILABLE; preferred read replicas and current-leader hints of the
// broker are removed, for they name its own node id. Who names a rack may be
// sent to a follower and served by one (follower_reads.go).

// fetching is one Fetch request.
type fetching struct {
	r     *request
	view  *View // by which the partitions were judged
	req   kafkawire.FetchRequest
	parts []fetchPart // in the request's order

	followed  bool // some partition is
	compacted bool // some topic is
	next      int  // where hasFiller looks first
}

type fetchPart struct {
	name      string
	topic     *Topic // as the View had it; nil if it did not
	partition int32
	offset    int64
	code      int16 // why it is not ours to serve, 0 if it is

	followed bool  // served, and led by another node
	replica  int32 // the node to which the client is sent instead, 0 if to none
	end      int64 // of the log, where it is
}

func handleFetch(r *request) error {
	v := r.c.srv.cluster.View()
	f := &fetching{r: r, view: v}
	name := ""
	req, err := kafkawire.PatchFetchRequest(r.h.Version, r.body, func(p kafkawire.FetchPartition) error {
		if string(p.Topic) != name {
			name = string(p.Topic)
		}
		t, code := partitionCode(v, name, p.Partition)
		f.parts = append(f.parts, fetchPart{name: name, topic: t, partition: p.Partition, offset: p.FetchOffset, code: code})
		f.compacted = f.compacted || t != nil && compacted(t)
		return nil
	})
	switch {
	case errors.Is(err, kafkawire.ErrFollowerFetch):
		return &violation{"client pretends to be a replica", err}
	case err != nil:
		return &violation{"request is malformed", err}
	}
	f.req = req
	f.nearby()
	f.confirm()
	served := 0
	for i := range f.parts {
		if f.parts[i].served() {
			served++
		}
	}
	most := r.c.srv.fetchShare()
	if req.MaxBytes > most {
		setFetchMaxBytes(r.body, most)
	}
	continued := req.SessionID != 0 && req.SessionEpoch > 0
	if served < len(f.parts) && !continued {
		f.deny()
	}
	switch {
	case continued:
		resp := kmsg.NewPtrFetchResponse()
		resp.ErrorCode = kerr.FetchSessionIDNotFound.Code
		r.reply(resp)
	case served == 0:
		r.reply(f.merge(kmsg.NewPtrFetchResponse()))
	case served < len(f.parts):
		return f.askRest()
	default:
		wait := time.Duration(max(req.MaxWaitMs, 0)) * time.Millisecond
		c := &call{timeout: wait + r.c.srv.cfg.Limits.UpstreamTimeout, lostBy: f.lostBy, done: f.answerWhole}
		if len(f.parts) == 1 && !f.compacted {
			c.offer = f.answerStream
		}
		r.forwardCall(c)
	}
	return nil
}

// deny has those who may not read a topic told so, and nothing else, also of the
// partitions that the broker is not asked for. It is called from the connection's
// reader.
func (f *fetching) deny() {
	var names []string
	for i := range f.parts {
		if f.parts[i].code != 0 {
			names = append(names, f.parts[i].name)
		}
	}
	denied := f.r.mayTopics(f.r.c.ctx, opRead, names, kerr.NotLeaderForPartition.Code)
	for i := range f.parts {
		if p := &f.parts[i]; p.code != 0 && denied[p.name] != 0 {
			p.code = denied[p.name]
		}
	}
}

// setFetchMaxBytes patches the max_bytes of a Fetch body: it stands, in all
// versions served, behind replica id, max wait and min bytes.
func setFetchMaxBytes(body []byte, most int32) {
	binary.BigEndian.PutUint32(body[12:], uint32(most))
}

// fetchShare is how many bytes one Fetch may bring, so that every connection
// can have an answer in memory and half of the memory is left.
func (s *Server) fetchShare() int32 {
	s.mu.Lock()
	conns := len(s.conns)
	s.mu.Unlock()
	share := s.cfg.Limits.MaxResponseBytes / (2 * max(conns, 1))
	return int32(min(max(share, minFetchBytes), maxFetchBytes))
}

// lostSince is lostBy with the view of now, if that is another than before. No
// view shows what this node can serve as a follower.
func (f *fetching) lostSince() bool {
	v := f.r.c.srv.cluster.View()
	return (v != f.view || f.followed) && f.lostBy(v)
}

// lostBy says whether this node no longer serves all that it polls for.
func (f *fetching) lostBy(v *View) bool {
	for i := range f.parts {
		if p := &f.parts[i]; p.served() && !f.stillServes(v, p) {
			return true
		}
	}
	return false
}

// answerWhole passes the broker's answer on. It runs on the link's reader. An
// answer that came when this node leads no longer, or is not sure of it after a
// suspension, says nothing of the log's end.
func (f *fetching) answerWhole(raw []byte, held *lease, err error) {
	if err == nil && f.lostSince() {
		held.release()
		err = errLeadershipLost
	}
	if err != nil {
		f.r.reply(f.failed(err))
		return
	}
	_, body, err := kafkawire.ParseResponseHeader(f.r.h.Key, f.r.h.Version, raw)
	if err != nil {
		f.garbage(held, err)
		return
	}
	// Offsets out of range need questions, to the broker among others. This
	// goroutine reads the broker's answers, so they are asked elsewhere.
	var unsure []outOfRange
	fillers, first := false, int16(0)
	resp, err := kafkawire.WalkFetchResponse(f.r.h.Version, body, func(p *kafkawire.FetchResponsePartition) error {
		fillers = fillers || f.hasFiller(p)
		code := p.ErrorCode()
		if first == 0 {
			first = code
		}
		switch code {
		case 0:
		case kerr.OffsetOutOfRange.Code:
			unsure = append(unsure, outOfRange{part: f.find(string(p.Topic), p.Partition)})
		default:
			p.SetErrorCode(brokerCode(code))
		}
		if p.PreferredReadReplica() >= 0 {
			p.SetPreferredReadReplica(-1)
		}
		return nil
	})
	if err != nil {
		f.garbage(held, err)
		return
	}
	if resp.ErrorCode == 0 && resp.SessionID == 0 && !resp.Tagged && len(unsure) == 0 && !fillers {
		f.r.relayAs(first, raw, held)
		return
	}
	decoded, err := f.decode(body)
	if err != nil {
		f.garbage(held, err)
		return
	}
	f.finish(decoded, held, unsure)
}

// answerStream is answerWhole while the answer comes, if there is nothing in it
// that only the whole answer shows. It runs on the link's reader.
func (f *fetching) answerStream(head []byte, size int, rest *stream) bool {
	h, slot := &f.r.h, f.r.slot
	if !slot.awaited.Load() || f.lostSince() {
		return false
	}
	_, body, err := kafkawire.ParseResponseHeader(h.Key, h.Version, head)
	if err != nil || !kafkawire.PatchFetchHead(h.Version, size-(len(head)-len(body)), body) {
		return false
	}
	theirs := correlationOf(head)
	if kafkawire.SetCorrelationID(head, h.CorrelationID) != nil || !slot.finishStream(head, size, rest) {
		_ = kafkawire.SetCorrelationID(head, theirs) // it is read to the end, and matched
		return false
	}
	return true
}

// askRest fetches the partitions that are ours, without waiting: the others
// are errors or read elsewhere, and both end a Fetch at once
// (ReplicaManager.fetchMessages).
func (f *fetching) askRest() error {
	req, err := parse[*kmsg.FetchRequest](f.r)
	if err != nil {
		return err
	}
	req.MaxWaitMillis = 0
	i := 0
	topics := req.Topics[:0]
	for _, t := range req.Topics {
		parts := t.Partitions[:0]
		for _, p := range t.Partitions {
			if f.parts[i].served() {
				parts = append(parts, p)
			}
			i++
		}
		if t.Partitions = parts; len(parts) > 0 {
			topics = append(topics, t)
		}
	}
	req.Topics, req.ForgottenTopics = topics, nil
	ask(f.r, req, f.r.c.srv.cfg.Limits.UpstreamTimeout, func(resp *kmsg.FetchResponse, held *lease, err error) {
		if err == nil && f.lostSince() {
			held.release()
			err = errLeadershipLost
		}
		if err != nil {
			f.r.reply(f.failed(err))
			return
		}
		var unsure []outOfRange
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode == kerr.OffsetOutOfRange.Code {
					unsure = append(unsure, outOfRange{part: f.find(t.Topic, p.Partition)})
				}
			}
		}
		f.finish(resp, held, unsure)
	})
	return nil
}

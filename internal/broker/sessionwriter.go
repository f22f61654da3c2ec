package broker

import (
	"errors"
	"time"

	"lockstep/internal/failpoint"
)

// keptBuffer is the largest request buffer kept between requests.
const keptBuffer = 4 << 20

// writeLoop combines what is queued into requests. It waits for a free slot
// first and looks at the queue after that, so that everything queued while all
// slots were taken shares the next request; there is no linger.
func (s *Session) writeLoop() {
	idle := time.NewTimer(s.cfg.KeepAlive)
	defer idle.Stop()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.lost:
			return
		}
		r := s.take(false)
		for r == nil {
			idle.Reset(s.cfg.KeepAlive)
			select {
			case <-s.wake:
				r = s.take(false)
			case <-idle.C:
				r = s.take(true)
			case <-s.lost:
				return
			}
		}
		if !s.send(r) {
			return
		}
	}
}

// take makes the next request: at most one batch per partition, up to
// MaxRequestBytes together, the first whatever its size. Partitions with more
// go to the back, so that a busy one cannot starve the others. With nothing
// queued it returns nil, or a keep-alive if asked for. The request joins
// inflight at once, so that a loss finds every append in one place.
func (s *Session) take(keepAlive bool) *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []pending
	size, served := 0, 0
	for n := len(s.turn); served < n; served++ {
		q := s.turn[served]
		p := q.items[0]
		if len(batch) > 0 && size+p.size() > s.cfg.MaxRequestBytes {
			break
		}
		batch = append(batch, p)
		size += p.size()
		q.items[0] = pending{}
		q.items = q.items[1:]
	}
	if batch == nil && !keepAlive {
		return nil
	}
	taken := s.turn[:served]
	s.turn = s.turn[served:]
	for _, q := range taken {
		if len(q.items) > 0 {
			s.turn = append(s.turn, q)
		} else {
			delete(s.queues, q.tp)
		}
	}
	byTopic(batch)
	s.conn.corr++
	r := &request{corr: s.conn.corr, batch: batch}
	s.inflight = append(s.inflight, r)
	return r
}

// send writes one request and reports whether the session lives on.
func (s *Session) send(r *request) bool {
	c := s.conn
	if len(r.batch) > 0 {
		s.frame.encode(s.produceVersion, s.cfg.ClientID, r.corr, r.batch)
	} else {
		c.buf = c.format.AppendRequest(c.buf[:0], apiVersionsRequest(0), r.corr)
	}

	s.mu.Lock()
	if s.cause != nil {
		s.mu.Unlock()
		return false
	}
	r.written, r.sentAt = true, time.Now()
	err := errors.Join(s.armLocked(), c.nc.SetWriteDeadline(r.sentAt.Add(s.cfg.RequestTimeout)))
	s.mu.Unlock()

	if err == nil {
		failpoint.Hit(failpoint.AppendBefore)
		if len(r.batch) > 0 {
			err = s.frame.writeTo(c.nc)
		} else {
			_, err = c.nc.Write(c.buf)
		}
		failpoint.Hit(failpoint.AppendAfter)
	}
	if err != nil {
		s.fail(err)
		return false
	}
	return true
}

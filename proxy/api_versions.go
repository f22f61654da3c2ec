package proxy

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// ApiVersions 0 to 4.
//
// What is advertised is kafkawire's allow-list narrowed to what every member's
// broker offers, so that a client may move to any node. A version above ours
// is answered in version 0 with error 35 and the range we do serve (KIP-511).
// No feature is named: transaction.version stays hidden.

func handleAPIVersions(r *request) error {
	if _, err := parse[*kmsg.ApiVersionsRequest](r); err != nil {
		return err
	}
	r.reply(kafkawire.ApiVersionsResponse(r.h.Version, r.c.srv.offered()))
	return nil
}

func (r *request) unsupportedAPIVersions() error {
	frame := kafkawire.AppendResponse(nil, r.h.Key, 0, r.h.CorrelationID, kafkawire.UnsupportedApiVersionsResponse())
	r.slot.finish(frame[4:], nil, nil)
	return nil
}

// offered is the allow-list as it can be served now.
func (s *Server) offered() []kafkawire.API {
	served := kafkawire.Served()
	if s.cfg.BrokerVersions == nil {
		return served
	}
	brokers := s.cfg.BrokerVersions()
	if len(brokers) == 0 {
		return served
	}
	return kafkawire.Intersect(served, brokers)
}

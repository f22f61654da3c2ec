package proxy

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
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
	req, err := parse[*kmsg.ApiVersionsRequest](r)
	if err != nil {
		return err
	}
	if r.h.Version >= 3 && !(isSoftwareName(req.ClientSoftwareName) && isSoftwareName(req.ClientSoftwareVersion)) {
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.ErrorCode = kerr.InvalidRequest.Code
		r.reply(resp)
		return nil
	}
	r.reply(kafkawire.ApiVersionsResponse(r.h.Version, r.c.srv.offered()))
	return nil
}

// isSoftwareName says whether a client may call itself, or its version, so:
// letters and digits, with '.' and '-' between them (ApiVersionsRequest.isValid,
// KIP-511).
func isSoftwareName(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case (c == '.' || c == '-') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}

func (r *request) unsupportedAPIVersions() error {
	frame := kafkawire.AppendResponse(nil, r.h.Key, 0, r.h.CorrelationID, kafkawire.UnsupportedApiVersionsResponse())
	r.slot.finishAs(kerr.UnsupportedVersion.Code, frame[4:], nil, nil)
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

// offers reports whether a version is one that is served now.
func (s *Server) offers(key, version int16) bool {
	return slices.ContainsFunc(s.offered(), func(a kafkawire.API) bool { return a.Key == key && a.Accepts(version) })
}

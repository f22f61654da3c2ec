package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// Requests passed through to the local broker untouched:
// SaslHandshake, DescribeAcls, DescribeClientQuotas. SASL works because the client's principal
// lives on the client's own connection to the broker. When the broker cannot
// answer, the error cannot be expressed and the connection is closed.

func handlePassThrough(r *request) error {
	r.forward(r.c.srv.cfg.Limits.UpstreamTimeout, nil, func(resp []byte, held *lease, err error) {
		if err != nil {
			r.abandon(r.c.srv.unanswered(r, err))
			return
		}
		r.relay(resp, held)
	})
	return nil
}

// handleSASLHandshake passes the handshake and binds the client to this broker
// connection for good: another one would not know who the client is.
func handleSASLHandshake(r *request) error {
	req, err := parse[*kmsg.SASLHandshakeRequest](r)
	if err != nil {
		return err
	}
	r.c.mechanism = req.Mechanism
	err = handlePassThrough(r)
	r.c.up.markAuthenticated()
	return err
}

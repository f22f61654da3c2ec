package proxy

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// TestHalfwayIsNotLoggedIn: Kafka answers who is in the middle of an exchange with
// an error, for which Metadata has no place, before it hangs up.
func TestHalfwayIsNotLoggedIn(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.BrokerAuthenticates = true })
	f.answer(kmsg.SASLHandshake, func(req kmsg.Request) kmsg.Response { return req.ResponseKind() })
	f.answer(kmsg.Metadata, func(req kmsg.Request) kmsg.Response { return req.ResponseKind() })
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Mechanism = "PLAIN"
	for _, req := range []kmsg.Request{kmsg.NewPtrDescribeClusterRequest(), kmsg.NewPtrApiVersionsRequest()} {
		c := f.dial()
		c.alive()
		do[*kmsg.SASLHandshakeResponse](c, 1, handshake)
		c.send(req)
		c.closed()
	}
}

// TestNobodyUnknownIsAnswered: the broker hangs up on who has not authenticated,
// and so does the node, though its own listener asks for nothing. Down, the broker
// is as it was.
func TestNobodyUnknownIsAnswered(t *testing.T) {
	for _, open := range []bool{false, true} {
		f := newFixture(t, func(c *Config) { c.BrokerAuthenticates = true })
		f.createTopic("orders", 1, nil)
		if !open {
			f.broker.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
				f.broker.KeepControl()
				return nil, errors.New("hangs up"), true
			})
		}
		for _, api := range kafkawire.Served() {
			if authenticates(api.Key) || open && api.Key != int16(kmsg.DescribeCluster) {
				continue
			}
			c := f.dial()
			c.alive() // ApiVersions is answered
			req := kmsg.RequestForKey(api.Key)
			req.SetVersion(api.Max)
			if open {
				do[*kmsg.DescribeClusterResponse](c, api.Max, req)
				continue
			}
			c.send(req)
			c.closed()
		}
		f.broker.Close()
		c := f.dial()
		c.send(kmsg.NewPtrDescribeClusterRequest())
		if !open {
			c.closed()
			eventually(t, "the cause in the log", func() bool {
				return len(f.log.lines("the broker does not answer this client", "security.protocol")) > 0
			})
			continue
		}
		if _, err := kafkawire.ReadResponseFrame(c.nc, 1<<20); err != nil {
			t.Errorf("the broker, now down, demanded nothing: %v", err)
		}
	}
}

package kafkawire

import (
	"bytes"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestRequestRoundTrip sends every served API at every served version through
// frame, header and body and compares what comes out.
func TestRequestRoundTrip(t *testing.T) {
	id := "a client"
	for _, api := range Served() {
		for v := api.Min; v <= api.Max; v++ {
			req := kmsg.RequestForKey(api.Key)
			req.SetVersion(v)
			wire := AppendRequest(nil, RequestHeader{CorrelationID: 7, ClientID: &id}, req)
			frame, err := ReadFrame(bytes.NewReader(wire), 1<<20)
			if err != nil {
				t.Fatalf("%s %d: %v", api.Name, v, err)
			}
			h, body, err := ParseRequestHeader(frame)
			if err != nil || h.CorrelationID != 7 || h.ClientID == nil || *h.ClientID != id {
				t.Fatalf("%s %d: header %+v, %v", api.Name, v, h, err)
			}
			got, err := ParseRequest(h, body)
			if err != nil {
				t.Fatalf("%s %d: %v", api.Name, v, err)
			}
			if got.Key() != api.Key || got.GetVersion() != v || !bytes.Equal(got.AppendTo(nil), req.AppendTo(nil)) {
				t.Errorf("%s %d: body changed", api.Name, v)
			}
		}
	}
}

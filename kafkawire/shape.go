package kafkawire

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// checkRequestShape reports bytes after the end of a request, which kmsg reads
// over. A message that is whole cannot be read from one byte less.
func checkRequestShape(key, version int16, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	if err := req.ReadFrom(body[:len(body)-1]); err == nil {
		return fmt.Errorf("%w: bytes after the end", ErrMalformed)
	}
	return nil
}

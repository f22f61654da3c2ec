//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// diffOutcome is what came of a request.
type diffOutcome struct {
	state string // answered, unanswered or closed
	resp  kmsg.Response
}

const recordedWithin = 20 * time.Second

// send sends the request's bytes on a connection of its own. A request that is
// not to be answered is followed by one that is.
func (s *side) send(ctx context.Context, x *exchange) (diffOutcome, error) {
	deadline := time.Now().Add(recordedWithin)
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return diffOutcome{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return diffOutcome{}, err
	}
	const correlation, probe = 7, 8
	raw, req := x.bytes(s, correlation)
	if x.ackless {
		raw = append(raw, kmsg.NewRequestFormatter(kmsg.FormatterClientID("e2e")).AppendRequest(nil, apiVersionsRequest(0), probe)...)
	}
	if _, err := conn.Write(raw); err != nil {
		return diffOutcome{}, err
	}
	frame, err := readAnswer(conn)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return diffOutcome{state: "closed"}, nil
	case err != nil:
		return diffOutcome{}, fmt.Errorf("%s %d: %w", kmsg.NameForKey(x.key), x.version, err)
	}
	if got := binary.BigEndian.Uint32(frame); x.ackless && got == probe {
		return diffOutcome{state: "unanswered"}, nil
	} else if got != correlation {
		return diffOutcome{}, fmt.Errorf("correlation id %d, want %d", got, correlation)
	}
	resp, err := decodeResponse(req, frame[4:])
	return diffOutcome{"answered", resp}, err
}

func readAnswer(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > 64<<20 {
		return nil, fmt.Errorf("answer claims %d bytes", n)
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

// decodeResponse decodes an answer in its request's version, but for the one to
// an ApiVersions request of an unknown version, which is of version 0. Every
// byte must belong to the answer.
func decodeResponse(req kmsg.Request, body []byte) (kmsg.Response, error) {
	resp := req.ResponseKind()
	if _, ok := req.(*kmsg.ApiVersionsRequest); ok && req.GetVersion() > 4 {
		resp.SetVersion(0)
	} else if !ok && resp.IsFlexible() {
		r := kbin.Reader{Src: body}
		kmsg.SkipTags(&r)
		if err := r.Complete(); err != nil {
			return nil, err
		}
		body = r.Src
	}
	if err := resp.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("decode %s %d: %w", strings.TrimPrefix(fmt.Sprintf("%T", resp), "*kmsg."), req.GetVersion(), err)
	}
	return resp, nil
}

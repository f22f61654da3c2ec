package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Layout of a handshake, all numbers big-endian:
//
//	opening  magic 4 | protocol 1 | kind 1 | group 4 | length 2 | Hello (JSON)
//	answer   magic 4 | protocol 1 | status 1        | length 2 | Hello (JSON), or the reason of the refusal
//
// The layout of the answer is the same for every protocol version, so that a
// refusal for the version can be read by the side that is refused.
const (
	magic           = "\xf1LKS" // the first byte is neither ASCII (HTTP) nor a TLS record type
	protocolVersion = 2         // 1 had Raft's messages in msgpack

	maxHello  = 4096 // bytes of an encoded Hello
	maxReason = 1024 // bytes of a refusal's reason
	maxName   = 256  // bytes of each string in a Hello

	openingHeader = 12
	answerHeader  = 8

	statusWelcome = 0
	statusRefused = 1
)

// streamKind says what a connection carries after its handshake.
type streamKind uint8

const (
	kindCalls streamKind = 1 // frames of calls, see frame.go
	kindRaft  streamKind = 2 // hashicorp/raft's own stream for one group
)

func (k streamKind) String() string {
	switch k {
	case kindCalls:
		return "calls"
	case kindRaft:
		return "raft"
	default:
		return fmt.Sprintf("kind-%d", uint8(k))
	}
}

// Hello is what each side of every internode connection says first.
type Hello struct {
	ClusterID   string `json:"cluster_id"`  // a node of another cluster is refused
	NodeID      int32  `json:"node_id"`     // decimal, it is also the Raft server id
	Incarnation string `json:"incarnation"` // random, written before the node's first start; judged by the Gate
	Groups      int    `json:"groups"`      // number of Raft groups; must be equal on all nodes
	Version     string `json:"version"`     // of the software, for logs and the Gate; not compared here

	// Recovery counts the recoveries from a lost quorum that the node has
	// been through; judged by the Gate.
	Recovery int16 `json:"recovery,omitempty"`
}

// validate checks the bounds that hold for every Hello, ours and a peer's.
func (h Hello) validate() error {
	switch {
	case h.Recovery < 0:
		return fmt.Errorf("recovery number %d is negative", h.Recovery)
	case h.NodeID < 0:
		return fmt.Errorf("node id %d is negative", h.NodeID)
	case h.ClusterID == "":
		return errors.New("cluster id is empty")
	case h.Groups < 1:
		return fmt.Errorf("%d raft groups", h.Groups)
	case len(h.ClusterID) > maxName, len(h.Incarnation) > maxName, len(h.Version) > maxName:
		return fmt.Errorf("a name is longer than %d bytes", maxName)
	}
	return nil
}

// opening is what the dialling side sends.
type opening struct {
	protocol uint8
	kind     streamKind
	group    uint32
	hello    Hello
}

// appendOpening encodes an opening. The Hello was validated by Listen, so it
// fits maxHello whatever JSON escapes in it.
func appendOpening(b []byte, o opening) ([]byte, error) {
	body, err := encodeHello(o.hello)
	if err != nil {
		return nil, err
	}
	b = append(b, magic...)
	b = append(b, o.protocol, byte(o.kind))
	b = binary.BigEndian.AppendUint32(b, o.group)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...), nil
}

// readOpening reads what the dialling side sent. errStranger is returned (and
// nothing more is read) when the first four bytes are not ours. For an unknown
// protocol version only that field is filled, with a nil error.
func readOpening(r io.Reader) (opening, error) {
	var head [openingHeader]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return opening{}, fmt.Errorf("read magic: %w", err)
	}
	if string(head[:4]) != magic {
		return opening{}, fmt.Errorf("%w: %s", errStranger, guessProtocol(head[:4]))
	}
	if _, err := io.ReadFull(r, head[4:5]); err != nil {
		return opening{}, fmt.Errorf("read protocol version: %w", noEOF(err))
	}
	o := opening{protocol: head[4]}
	if o.protocol != protocolVersion {
		return o, nil
	}
	if _, err := io.ReadFull(r, head[5:]); err != nil {
		return opening{}, fmt.Errorf("read opening: %w", noEOF(err))
	}
	o.kind = streamKind(head[5])
	o.group = binary.BigEndian.Uint32(head[6:10])
	if o.kind != kindCalls && o.kind != kindRaft {
		return opening{}, fmt.Errorf("%w: stream kind %d", errStranger, head[5])
	}
	var err error
	o.hello, err = readHello(r, int(binary.BigEndian.Uint16(head[10:12])))
	return o, err
}

// answer is what the accepting side sends: its own Hello, or a refusal.
type answer struct {
	protocol uint8
	refused  bool
	reason   string // set when refused
	hello    Hello  // set otherwise
}

func appendAnswer(b []byte, a answer) ([]byte, error) {
	status, body := byte(statusRefused), []byte(a.reason)
	if len(body) > maxReason {
		body = body[:maxReason]
	}
	if !a.refused {
		var err error
		if body, err = encodeHello(a.hello); err != nil {
			return nil, err
		}
		status = statusWelcome
	}
	b = append(b, magic...)
	b = append(b, a.protocol, status)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...), nil
}

// readAnswer reads what the accepting side sent.
func readAnswer(r io.Reader) (answer, error) {
	var head [answerHeader]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return answer{}, fmt.Errorf("read magic: %w", err)
	}
	if string(head[:4]) != magic {
		return answer{}, fmt.Errorf("%w: %s", errStranger, guessProtocol(head[:4]))
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return answer{}, fmt.Errorf("read answer: %w", noEOF(err))
	}
	a := answer{protocol: head[4]}
	n := int(binary.BigEndian.Uint16(head[6:8]))
	switch head[5] {
	case statusRefused:
		if n > maxReason {
			return answer{}, fmt.Errorf("%w: reason of %d bytes", errStranger, n)
		}
		reason := make([]byte, n)
		if _, err := io.ReadFull(r, reason); err != nil {
			return answer{}, fmt.Errorf("read reason: %w", noEOF(err))
		}
		a.refused, a.reason = true, string(bytes.ToValidUTF8(reason, []byte("?")))
		return a, nil
	case statusWelcome:
		var err error
		a.hello, err = readHello(r, n)
		return a, err
	default:
		return answer{}, fmt.Errorf("%w: status %d", errStranger, head[5])
	}
}

func encodeHello(h Hello) ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode hello: %w", err)
	}
	if len(body) > maxHello {
		return nil, fmt.Errorf("encode hello: %d bytes, at most %d are allowed", len(body), maxHello)
	}
	return body, nil
}

// readHello reads n bytes, at most maxHello, and decodes them. Fields it does
// not know are ignored: a newer version may say more.
func readHello(r io.Reader, n int) (Hello, error) {
	if n > maxHello {
		return Hello{}, fmt.Errorf("%w: hello of %d bytes", errStranger, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", noEOF(err))
	}
	var h Hello
	if err := json.Unmarshal(body, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: decode hello: %w", errStranger, err)
	}
	if err := h.validate(); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %w", errStranger, err)
	}
	return h, nil
}

// guessProtocol tells the operator what probably knocked, from its first bytes.
func guessProtocol(b []byte) string {
	switch {
	case b[0] == 0x16 && b[1] == 3, b[0] == 0x15 && b[1] == 3:
		return "it speaks TLS and this port does not; enable TLS on all nodes or on none"
	case bytes.Equal(b, []byte("HTTP")), bytes.Equal(b, []byte("GET ")), bytes.Equal(b, []byte("POST")),
		bytes.Equal(b, []byte("HEAD")), bytes.Equal(b, []byte("PUT ")), bytes.Equal(b, []byte("PRI ")):
		return "it speaks HTTP; this is the internode port, the admin port is another one"
	case b[0] == 0 && b[1] == 0:
		return "it may be a Kafka client; this is the internode port, not a Kafka listener"
	default:
		return fmt.Sprintf("it begins with % x", b)
	}
}

// noEOF turns a clean end inside a structure into an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxFrame is the largest request frame let through. A proxy sends at most
// 16 MiB and a little; kfake would allocate whatever the prefix says.
const maxFrame = 64 << 20

// frameHead is the size prefix, API key and version.
const frameHead = 8

var errBadFrame = errors.New("not a Kafka request")

// listen returns a listener whose connections let only frames through that
// kfake survives.
func listen(network, address string, logger hclog.Logger) (net.Listener, error) {
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return &guardListener{Listener: ln, logger: logger}, nil
}

type guardListener struct {
	net.Listener
	logger hclog.Logger
}

func (l *guardListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guardConn{Conn: c, logger: l.logger}, nil
}

// guardConn checks the size and API key of every frame before the broker sees
// its first byte: kfake panics on an unknown key and trusts any size. Read is
// called by one goroutine at a time.
type guardConn struct {
	net.Conn
	logger hclog.Logger
	head   [frameHead]byte
	unread []byte // of head, not yet given to the broker
	rest   int    // bytes of the frame after head, not yet read
	failed error
}

// Read implements net.Conn. A bad frame ends the connection.
func (c *guardConn) Read(p []byte) (int, error) {
	if c.failed != nil {
		return 0, c.failed
	}
	if len(c.unread) == 0 && c.rest == 0 {
		if err := c.nextFrame(); err != nil {
			c.failed = err
			_ = c.Close()
			return 0, err
		}
	}
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.rest)])
	c.rest -= n
	return n, err
}

func (c *guardConn) nextFrame() error {
	if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
		return err
	}
	rest, err := checkHead(c.head)
	if err != nil {
		c.logger.Warn("refused a frame", "remote", c.RemoteAddr().String(), "error", err)
		return err
	}
	c.unread, c.rest = c.head[:], rest
	return nil
}

// checkHead returns the number of bytes that follow the head of a frame.
func checkHead(head [frameHead]byte) (rest int, err error) {
	size := int32(binary.BigEndian.Uint32(head[:]))
	if size < frameHead || size > maxFrame {
		return 0, fmt.Errorf("%w: frame of %d bytes", errBadFrame, size)
	}
	key := int16(binary.BigEndian.Uint16(head[4:]))
	version := int16(binary.BigEndian.Uint16(head[6:]))
	req := kmsg.RequestForKey(key)
	if req == nil || version < 0 || version > req.MaxVersion() {
		return 0, fmt.Errorf("%w: API key %d version %d", errBadFrame, key, version)
	}
	return int(size) - (frameHead - 4), nil
}

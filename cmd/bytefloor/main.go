// Command bytefloor moves every byte as three proxies in front of three brokers
// must, and does nothing else: no checks, no checksums, no state, no Raft. The
// leader reads from a client, sends to two followers, writes a log, and sends to
// its broker; a follower reads, writes its log, and sends to its own. What it
// costs is what no design with a log of its own can go below.
//
//	bytefloor DIR BROKER BROKER BROKER
//
// prints the address that it listens on for one client, and ends when the client
// does. Frames are four bytes of length, then as many bytes.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// atOnce is the most that one write to the log and one fsync take.
const atOnce = 1 << 20

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bytefloor:", err)
		os.Exit(1)
	}
}

// run is all three nodes. It returns when the client is gone and all is written.
func run(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: bytefloor DIR BROKER BROKER BROKER")
	}
	var followers []*net.TCPConn
	ended := make(chan error, 3)
	for id := 1; id <= 2; id++ {
		there, here, err := pair()
		if err != nil {
			return err
		}
		followers = append(followers, there)
		n, err := open(args[0], id, args[1+id], here)
		if err != nil {
			return err
		}
		go func() { ended <- n.serve() }()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	client, err := ln.Accept()
	if err != nil {
		return err
	}
	n, err := open(args[0], 0, args[1], client)
	if err != nil {
		return err
	}
	n.followers = followers
	err = n.serve()
	for _, f := range followers {
		err = errors.Join(err, f.CloseWrite()) // the slower one still has answers to give
	}
	return errors.Join(err, <-ended, <-ended)
}

// pair is a connection over the loopback.
func pair() (there *net.TCPConn, here net.Conn, err error) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, ln.Close()) }()
	if there, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)); err != nil {
		return nil, nil, err
	}
	here, err = ln.Accept()
	return there, here, err
}

// node is one of the three. from is the client, or the leader.
type node struct {
	from, broker net.Conn
	followers    []*net.TCPConn
	log          *os.File
	free         sync.Pool // of *[]byte: frames that every reader of is done with
}

func open(dir string, id int, broker string, from net.Conn) (*node, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprint("log", id)))
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", broker)
	return &node{from: from, broker: conn, log: f}, err
}

// batch is what was written to the log at once.
type batch struct {
	frames []*[]byte
	bytes  [][]byte
	size   int
	end    uint64 // frames up to and with this batch
}

// serve reads, stores and passes on until from ends, each in a goroutine of its own.
func (n *node) serve() error {
	read, stored := make(chan *[]byte, 64), make(chan *batch, 16)
	errs := make(chan error, 3)
	acked := make(chan uint64, 64)
	go func() { errs <- n.read(read) }()
	go func() { errs <- n.store(read, stored) }()
	go func() { errs <- n.pass(stored, acked) }()
	for _, f := range n.followers {
		go acks(f, acked) // ends with the connection
	}
	for range 3 {
		if err := <-errs; err != nil {
			return err // of a measurement: the process ends with it
		}
	}
	return errors.Join(n.broker.Close(), n.log.Close())
}

func (n *node) read(to chan<- *[]byte) error {
	defer close(to)
	r := bufio.NewReaderSize(n.from, 64<<10)
	for {
		var size [4]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return nil // the client's end
		}
		frame, ok := n.free.Get().(*[]byte)
		if !ok {
			frame = new([]byte)
		}
		if need := 4 + int(binary.BigEndian.Uint32(size[:])); cap(*frame) < need {
			*frame = make([]byte, need)
		} else {
			*frame = (*frame)[:need]
		}
		copy(*frame, size[:])
		if _, err := io.ReadFull(r, (*frame)[4:]); err != nil {
			return err
		}
		to <- frame
	}
}

// store sends to the followers, writes to the log, syncs, and tells the leader,
// one write for all that came meanwhile.
func (n *node) store(from <-chan *[]byte, to chan<- *batch) error {
	defer close(to)
	var end uint64
	for frame := range from {
		b := &batch{}
		b.add(frame)
		for more := true; more && b.size < atOnce; {
			select {
			case f, ok := <-from:
				if more = ok; ok {
					b.add(f)
				}
			default:
				more = false
			}
		}
		end += uint64(len(b.frames))
		b.end = end
		for _, f := range n.followers {
			bufs := net.Buffers(append([][]byte(nil), b.bytes...))
			if _, err := bufs.WriteTo(f); err != nil {
				return err
			}
		}
		if err := n.write(b); err != nil {
			return err
		}
		if len(n.followers) == 0 {
			if _, err := n.from.Write(binary.BigEndian.AppendUint64(nil, end)); err != nil {
				return err
			}
		}
		to <- b
	}
	return nil
}

func (b *batch) add(frame *[]byte) {
	b.frames, b.bytes, b.size = append(b.frames, frame), append(b.bytes, *frame), b.size+len(*frame)
}

func (n *node) write(b *batch) error {
	left := append([][]byte(nil), b.bytes...)
	for len(left) > 0 {
		w, err := unix.Writev(int(n.log.Fd()), left[:min(len(left), 1024)])
		if err != nil {
			return err
		}
		for len(left) > 0 && w >= len(left[0]) {
			w, left = w-len(left[0]), left[1:]
		}
		if w > 0 {
			left[0] = left[0][w:]
		}
	}
	return unix.Fdatasync(int(n.log.Fd()))
}

// acks are how far a follower has synced: with the leader's own, one is a majority.
func acks(follower net.Conn, to chan<- uint64) {
	r := bufio.NewReader(follower)
	for {
		var end [8]byte
		if _, err := io.ReadFull(r, end[:]); err != nil {
			return // the node's end
		}
		to <- binary.BigEndian.Uint64(end[:])
	}
}

// pass sends to the broker what a majority has, and answers the client when the
// broker has it.
func (n *node) pass(from <-chan *batch, acked <-chan uint64) error {
	var safe uint64
	answers, answer := bufio.NewReader(n.broker), make([]byte, 4)
	for b := range from {
		for len(n.followers) > 0 && safe < b.end {
			safe = max(safe, <-acked)
		}
		bufs := net.Buffers(b.bytes)
		if _, err := bufs.WriteTo(n.broker); err != nil {
			return err
		}
		for _, f := range b.frames {
			if _, err := io.ReadFull(answers, answer); err != nil {
				return err
			}
			n.free.Put(f)
		}
		if len(n.followers) > 0 {
			if _, err := n.from.Write(make([]byte, 4*len(b.frames))); err != nil {
				return err
			}
		}
	}
	return nil
}

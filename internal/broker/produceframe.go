package broker

import (
	"cmp"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// flexibleProduce is the first Produce version with compact lengths and tagged
// fields (KIP-482).
const flexibleProduce = 9

// inlineBody is the size of records up to which a copy into the frame's own
// bytes costs less than one more piece in a vectored write.
const inlineBody = 4 << 10

// produceFrame is a Produce request as it goes over the connection. Records
// are written from where they lie: only what stands around them, the headers of
// the batches included, and small ones are put together here. One goroutine uses
// it, for one request after the other.
type produceFrame struct {
	own    []byte      // all bytes but those of bodies, in order
	bodies []frameBody // in order
	pieces net.Buffers // own and bodies, as writeTo writes them
	rest   net.Buffers // of pieces: writing takes it apart
}

// frameBody is a body that comes after the first at bytes of own.
type frameBody struct {
	at    int
	bytes []byte
}

// encode makes the request, with acks=all: acks=0 would make a refusal close
// the connection, and acks=1 gains nothing with one replica. batch holds every
// partition once, and those of a topic one after the other.
func (f *produceFrame) encode(version int16, clientID string, corr int32, batch []pending) {
	flexible := version >= flexibleProduce
	f.bodies = f.bodies[:0]
	be, b := binary.BigEndian, f.own[:0]
	b = append(b, 0, 0, 0, 0) // the length, below
	b = be.AppendUint16(b, uint16(kmsg.Produce))
	b = be.AppendUint16(b, uint16(version))
	b = be.AppendUint32(b, uint32(corr))
	b = be.AppendUint16(b, uint16(len(clientID)))
	b = append(b, clientID...)
	if flexible {
		b = append(b, 0, 0) // no tagged fields; no transactional id
	} else {
		b = be.AppendUint16(b, ^uint16(0))
	}
	b = be.AppendUint16(b, ^uint16(0)) // acks
	b = be.AppendUint32(b, uint32(produceTimeout/time.Millisecond))
	b = appendCount(b, countTopics(batch), flexible)
	size := 0
	for len(batch) > 0 {
		topic, n := batch[0].tp.topic, sameTopic(batch)
		if flexible {
			b = binary.AppendUvarint(b, uint64(len(topic))+1)
		} else {
			b = be.AppendUint16(b, uint16(len(topic)))
		}
		b = append(b, topic...)
		b = appendCount(b, n, flexible)
		for i := range batch[:n] {
			p := &batch[i]
			b = be.AppendUint32(b, uint32(p.tp.partition))
			b = appendCount(b, p.size(), flexible)
			b = append(b, p.head[:]...)
			if len(p.body) <= inlineBody {
				b = append(b, p.body...)
			} else {
				f.bodies = append(f.bodies, frameBody{at: len(b), bytes: p.body})
				size += len(p.body)
			}
			if flexible {
				b = append(b, 0)
			}
		}
		if flexible {
			b = append(b, 0)
		}
		batch = batch[n:]
	}
	if flexible {
		b = append(b, 0)
	}
	be.PutUint32(b, uint32(size+len(b)-4))
	f.own = b
}

// appendCount appends the length of an array or of bytes.
func appendCount(b []byte, n int, flexible bool) []byte {
	if flexible {
		return binary.AppendUvarint(b, uint64(n)+1)
	}
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// byTopic brings partitions of one topic together.
func byTopic(batch []pending) {
	slices.SortStableFunc(batch, func(a, b pending) int { return cmp.Compare(a.tp.topic, b.tp.topic) })
}

// sameTopic is how many at the start of batch are of one topic.
func sameTopic(batch []pending) int {
	n := 1
	for n < len(batch) && batch[n].tp.topic == batch[0].tp.topic {
		n++
	}
	return n
}

func countTopics(batch []pending) int {
	n := 0
	for len(batch) > 0 {
		n++
		batch = batch[sameTopic(batch):]
	}
	return n
}

// writeTo writes what encode made and lets go of it.
func (f *produceFrame) writeTo(w io.Writer) error {
	f.pieces = f.pieces[:0]
	from := 0
	for _, body := range f.bodies {
		f.pieces = append(f.pieces, f.own[from:body.at], body.bytes)
		from = body.at
	}
	f.pieces = append(f.pieces, f.own[from:])
	f.rest = f.pieces
	_, err := f.rest.WriteTo(w)

	clear(f.pieces)
	clear(f.bodies)
	if cap(f.own) > keptBuffer {
		f.own = nil
	}
	return err
}

package kafkawire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// blockReader is an io.Reader over a format made of independent blocks, one of
// which is decompressed at a time. Both formats are read here and not by a
// library because the libraries accept more than Kafka's Java readers do
// (linked blocks, concatenated frames, S2 extensions), and what passes here
// must pass there.
type blockReader struct {
	src  []byte // what is left of the compressed bytes
	next func() error
	out  []byte // the current block, decompressed
	pos  int
	err  error
	mem  []byte // backs out, kept between uses

	lz4 lz4Frame
}

// keepBlock is the largest block buffer in bytes that a pooled reader keeps:
// the largest block of lz4.
const keepBlock = 4 << 20

var blockReaders = sync.Pool{New: func() any { return new(blockReader) }}

func openBlocks(open func(*blockReader) error) (io.Reader, func(), error) {
	r := blockReaders.Get().(*blockReader)
	release := func() {
		mem := r.mem
		if cap(mem) > keepBlock {
			mem = nil
		}
		*r = blockReader{mem: mem}
		blockReaders.Put(r)
	}
	if err := open(r); err != nil {
		release()
		return nil, nil, err
	}
	return r, release, nil
}

// Read implements io.Reader.
func (r *blockReader) Read(p []byte) (int, error) {
	for r.pos == len(r.out) {
		if r.err == nil {
			r.out, r.pos = nil, 0
			r.err = r.next()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.out[r.pos:])
	r.pos += n
	return n, nil
}

// room returns a block buffer of n bytes. Callers bound n by what the
// compressed bytes at hand can yield.
func (r *blockReader) room(n int) []byte {
	if cap(r.mem) < n {
		r.mem = make([]byte, n)
	}
	return r.mem[:n]
}

// take returns the next n compressed bytes.
func (r *blockReader) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.src) {
		return nil, io.ErrUnexpectedEOF
	}
	b := r.src[:n]
	r.src = r.src[n:]
	return b, nil
}

// xerialMagic begins the framing of Java's snappy streams: the magic, two
// 32-bit versions, then blocks with a 32-bit length before each. Without it
// the bytes are one raw block, as librdkafka sends them.
var xerialMagic = []byte("\x82SNAPPY\x00")

const xerialHeaderLen = 16

func (r *blockReader) openSnappy(body []byte) error {
	r.src = body
	if !bytes.HasPrefix(body, xerialMagic) {
		r.next = r.nextRawSnappy
		return nil
	}
	header, err := r.take(xerialHeaderLen)
	if err != nil {
		return err
	}
	// The second number is the oldest reader that understands the stream.
	if v := binary.BigEndian.Uint32(header[12:]); v != 1 {
		return fmt.Errorf("xerial framing version %d", v)
	}
	r.next = r.nextXerial
	return nil
}

func (r *blockReader) nextRawSnappy() (err error) {
	if len(r.src) == 0 {
		return io.EOF
	}
	r.out, err = r.snappyBlock(r.src)
	r.src = nil
	return err
}

func (r *blockReader) nextXerial() error {
	if len(r.src) == 0 {
		return io.EOF
	}
	size, err := r.take(4)
	if err != nil {
		return err
	}
	block, err := r.take(int(int32(binary.BigEndian.Uint32(size))))
	if err != nil {
		return err
	}
	r.out, err = r.snappyBlock(block)
	return err
}

// The parts of an lz4 frame (lz4_Frame_format.md) that Kafka's reader,
// org.apache.kafka.common.compress.Lz4BlockInputStream, looks at.
const (
	lz4Magic           = 0x184D2204
	lz4Version         = 0x40 // bits 6 and 7
	lz4VersionMask     = 0xc0
	lz4Independent     = 0x20
	lz4BlockChecksum   = 0x10
	lz4ContentSize     = 0x08
	lz4ContentChecksum = 0x04
	lz4Reserved        = 0x03 // the lower one is a dictionary, which Kafka has not
	lz4Stored          = 1 << 31
	// lz4MaxRatio is above what one byte of a block can expand to.
	lz4MaxRatio = 255
	// lz4FirstRatio is what a block is first taken to expand to.
	lz4FirstRatio = 8
)

var errLZ4Header = errors.New("lz4 frame header is malformed or of an unsupported kind")

type lz4Frame struct {
	blockChecksum, contentChecksum bool
	maxBlock                       int
}

func (r *blockReader) openLZ4(body []byte) error {
	r.src = body
	head, err := r.take(6)
	if err != nil {
		return err
	}
	flg, bd := head[4], head[5]
	if binary.LittleEndian.Uint32(head) != lz4Magic ||
		flg&lz4VersionMask != lz4Version || flg&lz4Independent == 0 || flg&lz4Reserved != 0 ||
		bd&0x8f != 0 || bd>>4 < 4 {
		return errLZ4Header
	}
	descriptor := 2
	if flg&lz4ContentSize != 0 {
		if _, err := r.take(8); err != nil {
			return err
		}
		descriptor += 8
	}
	sum, err := r.take(1)
	if err != nil {
		return err
	}
	if byte(xxh32(body[4:4+descriptor])>>8) != sum[0] {
		return errors.New("lz4 header checksum does not match")
	}
	r.lz4 = lz4Frame{
		blockChecksum:   flg&lz4BlockChecksum != 0,
		contentChecksum: flg&lz4ContentChecksum != 0,
		maxBlock:        1 << (8 + 2*(bd>>4)), // 4 is 64 KiB, 7 is 4 MiB
	}
	r.next = r.nextLZ4
	return nil
}

func (r *blockReader) nextLZ4() error {
	word, err := r.take(4)
	if err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(word)
	if size == 0 {
		return r.endLZ4()
	}
	stored := size&lz4Stored != 0
	n := int(size &^ lz4Stored)
	if n == 0 || n > r.lz4.maxBlock {
		return errors.New("lz4 block size is out of bounds")
	}
	block, err := r.take(n)
	if err != nil {
		return err
	}
	if r.lz4.blockChecksum {
		sum, err := r.take(4)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(sum) != xxh32(block) {
			return errors.New("lz4 block checksum does not match")
		}
	}
	if stored {
		r.out = block
		return nil
	}
	r.out, err = r.expandLZ4(block)
	return err
}

// expandLZ4 decompresses one block. A block does not say how long it gets, and
// the frame's bound may be far above, so the buffer grows as it is needed.
func (r *blockReader) expandLZ4(block []byte) ([]byte, error) {
	most := min(r.lz4.maxBlock, lz4MaxRatio*len(block))
	for size := min(most, max(cap(r.mem), lz4FirstRatio*len(block))); ; size = min(most, 4*size) {
		dst := r.room(size)
		n, err := lz4.UncompressBlock(block, dst)
		if err == nil {
			return dst[:n], nil
		}
		if size == most {
			return nil, fmt.Errorf("decompress lz4 block: %w", err)
		}
	}
}

// endLZ4 reads what follows the end mark. The content checksum is passed over,
// as Kafka does; the batch's own checksum has covered the bytes.
func (r *blockReader) endLZ4() error {
	if r.lz4.contentChecksum {
		if _, err := r.take(4); err != nil {
			return err
		}
	}
	if len(r.src) > 0 {
		return errTrailing
	}
	return io.EOF
}

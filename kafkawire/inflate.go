package kafkawire

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// The compression codecs of a record batch, as its attributes number them.
const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

// maxZstdWindow is the largest zstd window in bytes accepted, which is what a
// decoder must hold: enough for levels 1 to 19 of the reference encoder.
const maxZstdWindow = 8 << 20

// errTrailing is returned when compressed records go on after their end, where
// decoders differ in what they make of it.
var errTrailing = errors.New("bytes after the end of the compressed stream")

func codecName(codec int8) string {
	switch codec {
	case codecNone:
		return "uncompressed"
	case codecGzip:
		return "gzip"
	case codecSnappy:
		return "snappy"
	case codecLZ4:
		return "lz4"
	case codecZstd:
		return "zstd"
	}
	return "unknown"
}

// openInflater returns a stream of what body decompresses to. The caller reads
// it to its end or first error and then calls release, which takes the decoder
// back into its pool.
func openInflater(codec int8, body []byte) (r io.Reader, release func(), err error) {
	switch codec {
	case codecGzip:
		return openGzip(body)
	case codecSnappy:
		return openBlocks(func(s *blockReader) error { return s.openSnappy(body) })
	case codecLZ4:
		return openBlocks(func(s *blockReader) error { return s.openLZ4(body) })
	case codecZstd:
		return openZstd(body)
	}
	return nil, nil, errors.New("unknown codec")
}

// gzipInflater reads exactly one gzip member.
type gzipInflater struct {
	src bytes.Reader
	dec gzip.Reader
}

var gzips = sync.Pool{New: func() any { return new(gzipInflater) }}

func openGzip(body []byte) (io.Reader, func(), error) {
	g := gzips.Get().(*gzipInflater)
	release := func() { g.src.Reset(nil); gzips.Put(g) }
	g.src.Reset(body)
	if err := g.dec.Reset(&g.src); err != nil {
		release()
		return nil, nil, err
	}
	g.dec.Multistream(false)
	return g, release, nil
}

func (g *gzipInflater) Read(p []byte) (int, error) {
	n, err := g.dec.Read(p)
	if errors.Is(err, io.EOF) && g.src.Len() > 0 {
		err = errTrailing
	}
	return n, err
}

// zstdInflater holds a decoder that works on the caller's goroutine.
type zstdInflater struct {
	src bytes.Reader // hides Bytes, which would make the decoder inflate at once
	dec *zstd.Decoder
}

var zstds = sync.Pool{New: func() any { return new(zstdInflater) }}

func openZstd(body []byte) (io.Reader, func(), error) {
	z := zstds.Get().(*zstdInflater)
	release := func() { z.src.Reset(nil); zstds.Put(z) }
	if z.dec == nil {
		dec, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		z.dec = dec
	}
	z.src.Reset(body)
	if err := z.dec.Reset(&z.src); err != nil {
		release()
		return nil, nil, err
	}
	return z.dec, release, nil
}

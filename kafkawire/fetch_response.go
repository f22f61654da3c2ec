package kafkawire

import (
	"encoding/binary"
	"fmt"
)

// FetchResponse is the head of a Fetch response.
type FetchResponse struct {
	ThrottleMs int32
	ErrorCode  int16
	SessionID  int32
	// Tagged is set when tagged fields were seen anywhere. Among them are the
	// current leader and the diverging epoch (version 12), which tell of the
	// broker's own node id and epochs: decode with kmsg, remove them, encode.
	Tagged bool
}

// FetchResponsePartition is one partition of a Fetch response. Topic and
// Records alias the body; Records is nil if the field is null, and may end in
// a batch that is cut off. The Set methods write to the body in place.
type FetchResponsePartition struct {
	Topic     []byte
	Partition int32
	Records   []byte
	// Tagged is set when the partition carries tagged fields.
	Tagged bool

	// head is the partition's fixed part, from the index to the log start.
	head []byte
	// preferred is the preferred read replica, nil before version 11.
	preferred []byte
}

// Offsets of fields from a response partition's start.
const (
	respErrorCode        = 4
	respHighWatermark    = 6
	respLastStableOffset = 14
	respLogStartOffset   = 22
)

func (p *FetchResponsePartition) int64(off int) int64 {
	if len(p.head) < off+8 {
		return -1
	}
	return int64(binary.BigEndian.Uint64(p.head[off:]))
}

func (p *FetchResponsePartition) setInt64(off int, v int64) {
	if len(p.head) >= off+8 {
		binary.BigEndian.PutUint64(p.head[off:], uint64(v))
	}
}

// ErrorCode is the partition's Kafka error.
func (p *FetchResponsePartition) ErrorCode() int16 {
	return int16(binary.BigEndian.Uint16(p.head[respErrorCode:]))
}

// SetErrorCode replaces the partition's error. Kafka sends no records with an
// error, and clients ignore them.
func (p *FetchResponsePartition) SetErrorCode(code int16) {
	binary.BigEndian.PutUint16(p.head[respErrorCode:], uint16(code))
}

// HighWatermark is the first offset that consumers do not see yet.
func (p *FetchResponsePartition) HighWatermark() int64 { return p.int64(respHighWatermark) }

// SetHighWatermark replaces the high watermark.
func (p *FetchResponsePartition) SetHighWatermark(v int64) { p.setInt64(respHighWatermark, v) }

// LastStableOffset bounds what a read_committed consumer sees.
func (p *FetchResponsePartition) LastStableOffset() int64 { return p.int64(respLastStableOffset) }

// SetLastStableOffset replaces the last stable offset.
func (p *FetchResponsePartition) SetLastStableOffset(v int64) { p.setInt64(respLastStableOffset, v) }

// LogStartOffset is the first offset that exists, -1 before version 5.
func (p *FetchResponsePartition) LogStartOffset() int64 { return p.int64(respLogStartOffset) }

// SetLogStartOffset replaces the log start offset where the version has one.
func (p *FetchResponsePartition) SetLogStartOffset(v int64) { p.setInt64(respLogStartOffset, v) }

// PreferredReadReplica is the node a consumer should read from (KIP-392), -1
// if none is named.
func (p *FetchResponsePartition) PreferredReadReplica() int32 {
	if p.preferred == nil {
		return -1
	}
	return int32(binary.BigEndian.Uint32(p.preferred))
}

// SetPreferredReadReplica replaces the preferred read replica where the
// version has one.
func (p *FetchResponsePartition) SetPreferredReadReplica(node int32) {
	if p.preferred != nil {
		binary.BigEndian.PutUint32(p.preferred, uint32(node))
	}
}

// WalkFetchResponse calls visit for each partition of the body of a Fetch
// response (versions 4 to 12), in order, without copying. visit may patch
// fixed-width fields through the partition, which is valid during the call
// only; an error of visit ends the walk and is returned. It returns
// ErrUnsupportedVersion or ErrMalformed; after an error the body may be half
// patched and must not be sent.
func WalkFetchResponse(version int16, body []byte, visit func(*FetchResponsePartition) error) (FetchResponse, error) {
	if version < fetchMin || version > fetchMax {
		return FetchResponse{}, fmt.Errorf("walk fetch response: %w: %d", ErrUnsupportedVersion, version)
	}
	w := fetchResponseWalk{reader: reader{buf: body}, version: version, flexible: version >= 12}
	resp, err := w.walk(visit)
	if err != nil {
		return resp, fmt.Errorf("walk fetch response: %w", err)
	}
	return resp, nil
}

type fetchResponseWalk struct {
	reader
	version  int16
	flexible bool
	part     FetchResponsePartition // one for the walk, so that visit costs no allocation
}

func (w *fetchResponseWalk) walk(visit func(*FetchResponsePartition) error) (FetchResponse, error) {
	resp := FetchResponse{ThrottleMs: w.int32()}
	if w.version >= 7 {
		resp.ErrorCode, resp.SessionID = w.int16(), w.int32()
	}
	for range w.array(w.flexible, leastFetchRespTopic) {
		topic := w.string(w.flexible)
		for range w.array(w.flexible, leastFetchRespPart) {
			w.partition(topic)
			if w.err != nil {
				return resp, w.err
			}
			resp.Tagged = resp.Tagged || w.part.Tagged
			if err := visit(&w.part); err != nil {
				return resp, err
			}
		}
		resp.Tagged = w.tags(w.flexible) > 0 || resp.Tagged
	}
	resp.Tagged = w.tags(w.flexible) > 0 || resp.Tagged
	return resp, w.end()
}

func (w *fetchResponseWalk) partition(topic []byte) {
	fixed := respLogStartOffset
	if w.version >= 5 {
		fixed += 8
	}
	p := FetchResponsePartition{Topic: topic, head: w.span(fixed)}
	if p.head != nil {
		p.Partition = int32(binary.BigEndian.Uint32(p.head))
	}
	for range w.arrayLen(w.flexible, leastAbortedTxn) { // null is -1: no turn
		w.span(leastAbortedTxn)
		p.Tagged = w.tags(w.flexible) > 0 || p.Tagged
		if w.err != nil {
			return
		}
	}
	if w.version >= 11 {
		p.preferred = w.span(4)
	}
	p.Records = w.nullableBytes(w.flexible)
	p.Tagged = w.tags(w.flexible) > 0 || p.Tagged
	w.part = p
}

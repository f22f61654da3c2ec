package apply

import (
	"encoding/binary"
	"errors"
	"fmt"

	"lockstep/fsm"
)

// What nodes say to each other to copy a partition. Numbers are big-endian.
//
//	request   version 1 | topic id 8 | partition 4 | from offset 8 | max bytes 4
//	answer    version 1 | status 1 | log start 8 | log end 8 | batches
const (
	copyVersion    = 1
	copyRequestLen = 25
	copyAnswerLen  = 18

	// copyBytes is how much one answer brings, unless a single batch is larger.
	copyBytes = 1 << 20
)

// errCopyMessage is returned for a message that this build cannot read.
var errCopyMessage = errors.New("malformed message about a copy")

// copyStatus is how a peer answers.
type copyStatus uint8

const (
	copyOK         copyStatus = iota
	copyNotReady              // the partition is not served there at the moment
	copyBelowStart            // the offset lies below the log start there
	copyUnknown               // the partition is not there
)

func (s copyStatus) String() string {
	switch s {
	case copyOK:
		return "ok"
	case copyNotReady:
		return "not ready there"
	case copyBelowStart:
		return "below the log start there"
	case copyUnknown:
		return "unknown there"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// copyRequest asks for the batches from an offset on.
type copyRequest struct {
	tp   fsm.TP
	from int64
	max  int32
}

func (r copyRequest) encode() []byte {
	b := make([]byte, 0, copyRequestLen)
	b = append(b, copyVersion)
	b = binary.BigEndian.AppendUint64(b, r.tp.Topic)
	b = binary.BigEndian.AppendUint32(b, uint32(r.tp.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(r.from))
	return binary.BigEndian.AppendUint32(b, uint32(r.max))
}

func decodeCopyRequest(b []byte) (copyRequest, error) {
	if len(b) != copyRequestLen || b[0] != copyVersion {
		return copyRequest{}, fmt.Errorf("%w: a request of %d bytes", errCopyMessage, len(b))
	}
	r := copyRequest{
		tp:   fsm.TP{Topic: binary.BigEndian.Uint64(b[1:]), Partition: int32(binary.BigEndian.Uint32(b[9:]))},
		from: int64(binary.BigEndian.Uint64(b[13:])),
		max:  int32(binary.BigEndian.Uint32(b[21:])),
	}
	if r.tp.Partition < 0 || r.from < 0 || r.max < 1 {
		return copyRequest{}, fmt.Errorf("%w: a request for %d bytes of %s from offset %d", errCopyMessage, r.max, r.tp, r.from)
	}
	return r, nil
}

// copyAnswer is what a peer's broker holds: batches from the offset asked for
// up to end at most, whole and as they are stored. Everything of the log from
// start to end was compared with what was committed.
type copyAnswer struct {
	status     copyStatus
	start, end int64
	batches    []byte
}

func (a copyAnswer) encode() []byte {
	b := make([]byte, 0, copyAnswerLen+len(a.batches))
	b = append(b, copyVersion, byte(a.status))
	b = binary.BigEndian.AppendUint64(b, uint64(a.start))
	b = binary.BigEndian.AppendUint64(b, uint64(a.end))
	return append(b, a.batches...)
}

// decodeCopyAnswer aliases b.
func decodeCopyAnswer(b []byte) (copyAnswer, error) {
	if len(b) < copyAnswerLen || b[0] != copyVersion || copyStatus(b[1]) > copyUnknown {
		return copyAnswer{}, fmt.Errorf("%w: an answer of %d bytes", errCopyMessage, len(b))
	}
	a := copyAnswer{
		status:  copyStatus(b[1]),
		start:   int64(binary.BigEndian.Uint64(b[2:])),
		end:     int64(binary.BigEndian.Uint64(b[10:])),
		batches: b[copyAnswerLen:],
	}
	if a.start < 0 || a.end < a.start || a.status != copyOK && len(a.batches) > 0 {
		return copyAnswer{}, fmt.Errorf("%w: an answer for offsets %d to %d with %d bytes", errCopyMessage, a.start, a.end, len(a.batches))
	}
	return a, nil
}

package node

import (
	"bytes"
	"errors"
	"testing"
)

func TestSnapshotRoundTrip(t *testing.T) {
	for _, s := range []snapshot{
		{snapshotHead{7, 3, "abc"}, []byte("head"), []byte("tail")},
		{snapshotHead{1, 0, ""}, nil, nil},
		{snapshotHead{1 << 60, 1 << 60, string(bytes.Repeat([]byte{'i'}, maxIncarnation))}, make([]byte, 1<<20), []byte{0}},
	} {
		raw := s.encode()
		got, err := decodeSnapshot(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got.snapshotHead != s.snapshotHead || !bytes.Equal(got.head, s.head) || !bytes.Equal(got.tail, s.tail) {
			t.Errorf("%+v came back as %+v", s.snapshotHead, got.snapshotHead)
		}
		for i := range min(len(raw), 64) { // no bit of it is free
			bad := bytes.Clone(raw)
			bad[i] ^= 1
			if _, err := decodeSnapshot(bad); !errors.Is(err, errBadSnapshot) && !errors.Is(err, errSnapshotVersion) {
				t.Errorf("a flipped bit in byte %d: %v", i, err)
			}
		}
		if _, err := decodeSnapshot(raw[:len(raw)-1]); !errors.Is(err, errBadSnapshot) {
			t.Errorf("cut short: %v", err)
		}
	}
	if h := (snapshotHead{index: 9, tailIndex: 4, incarnation: "me"}); h.base("me") != 4 || h.base("you") != 9 {
		t.Error("another node's tail counts, or this node's does not")
	}
}

func FuzzDecodeSnapshot(f *testing.F) {
	good := snapshot{snapshotHead{7, 3, "abc"}, []byte("head"), []byte("tail")}
	f.Add(good.encode())
	f.Add([]byte(snapshotMagic))
	f.Add([]byte{})
	huge := good.encode()
	huge[snapshotFixed+3] = 0xff // the head's length
	f.Add(huge)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeSnapshot(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(s.encode(), raw) {
			t.Error("what was read is not what is written")
		}
	})
}

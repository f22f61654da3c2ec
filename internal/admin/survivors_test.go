package admin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"lockstep/kafkawire"
)

// A digest names each record once, whatever codec and batch it stands in, in
// lines that the client takes; a filler has none.
func TestSurvivorsNameEveryRecord(t *testing.T) {
	var records []kafkawire.Record
	for i := range 450 {
		records = append(records, kafkawire.Record{TimestampMs: int64(1_000 + i), Payload: []byte{2, 'k', 4, byte(i), byte(i >> 8), 0}})
	}
	list := func(codec int8, from, to int) (offsets []int64, hashes []uint64) {
		t.Helper()
		raw, err := kafkawire.AppendBatch(nil, codec, records[from:to], 1, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := kafkawire.ParseBatch(raw)
		if err != nil {
			t.Fatal(err)
		}
		more := true
		err = survivors(b, BatchDigest{Base: 1 << 40, Last: 1<<40 + int64(to-from) - 1}, func(d BatchDigest) error {
			line, err := json.Marshal(d)
			if err != nil || len(line) > maxLine || !more {
				t.Fatalf("a line of %d bytes, %v", len(line), err)
			}
			more = d.More
			return d.EachRecord(func(offset int64, hash uint64) {
				offsets, hashes = append(offsets, offset-1<<40), append(hashes, hash)
			})
		})
		if err != nil || more {
			t.Fatalf("%v, more follow: %v", err, more)
		}
		return offsets, hashes
	}
	offsets, hashes := list(0, 0, 450)
	if len(offsets) != 450 || offsets[0] != 0 || offsets[449] != 449 {
		t.Fatalf("%d records", len(offsets))
	}
	slicesOf := slices.Clone(hashes)
	slices.Sort(slicesOf)
	if len(slices.Compact(slicesOf)) != 450 {
		t.Error("two records have one hash")
	}
	if _, other := list(4, 100, 300); !slices.Equal(other, hashes[100:300]) {
		t.Error("the hash depends on the batch")
	}
	filler, _, err := kafkawire.ParseBatch(kafkawire.AppendFiller(nil, 20, 1<<61+5, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	if err := survivors(filler, BatchDigest{Last: 19}, func(d BatchDigest) error { lines += 1 + len(d.Records); return nil }); err != nil || lines != 1 {
		t.Errorf("a filler: %d, %v", lines, err)
	}
	stop := errors.New("stop")
	if err := survivors(filler, BatchDigest{Last: 19}, func(BatchDigest) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func FuzzEachRecord(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1}))
	f.Fuzz(func(t *testing.T, text string) {
		d := BatchDigest{Base: 5, Last: 9, Records: text}
		_ = d.EachRecord(func(offset int64, _ uint64) {
			if offset < d.Base || offset > d.Last {
				t.Fatalf("offset %d", offset)
			}
		})
	})
}

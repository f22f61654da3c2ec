package kafkawire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const testApplier = fillerMinProducer + 7

// Every size around the places where the layout changes decompresses, by a
// decoder that did not make it, to the records it stands for.
func TestFillersHoldTheRecordsTheyCount(t *testing.T) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	sizes := []int{1, 2, fillerPlain - 1, fillerPlain, 63, 64, 65, 127, 128, 129, 130, 255, 4096, 4224, 4225, 8190, 8191, 8192, 8193,
		8255, 8256, 8257, 8258, 12345, 16383, 16384, 16385, 16386, 20479, 20480, 20481, 24576, 24577, 40_000, MaxFillerCount}
	for _, n := range sizes {
		raw := AppendFiller(nil, int32(n), testApplier, 3, 77)
		b, rest, err := ParseBatch(raw)
		if err != nil || len(rest) > 0 {
			t.Fatalf("%d records: %v, %d bytes left", n, err, len(rest))
		}
		if !b.ChecksumOK() || int(b.Count()) != n || int(b.LastOffsetDelta()) != n-1 || b.BaseOffset() != 0 ||
			b.ProducerID() != testApplier || b.ProducerEpoch() != 3 || b.BaseSequence() != 77 {
			t.Fatalf("%d records: header is not what was asked for", n)
		}
		body := []byte(b[BatchHeaderLen:])
		if b.Codec() == codecZstd {
			if body, err = dec.DecodeAll(body, nil); err != nil {
				t.Fatalf("%d records: %v", n, err)
			}
		}
		if !bytes.Equal(body, appendFillerRecords(nil, n)) {
			t.Fatalf("%d records: the frame holds something else", n)
		}
		if !b.IsFiller() {
			t.Errorf("%d records: not known for a filler", n)
		}
		if n > farRecords+1 { // the body is compared already
			continue
		}
		next := int32(0)
		if err := VisitRecords(b, 1<<30, func(r Record) bool {
			if r.OffsetDelta != next || r.TimestampMs != 1 || string(r.Key) != fillerKey || r.Value != nil {
				t.Fatalf("%d records: record %d is %+v", n, next, r)
			}
			next++
			return true
		}); err != nil || int(next) != n {
			t.Fatalf("%d records: %d read, %v", n, next, err)
		}
	}
	if size := len(AppendFiller(nil, MaxFillerCount, testApplier, 0, 0)); size > 24<<10 {
		t.Errorf("a full filler takes %d bytes", size)
	}
	for _, n := range []int32{0, -1, MaxFillerCount + 1} {
		if got := AppendFiller(nil, n, testApplier, 0, 0); got != nil {
			t.Errorf("a filler of %d records was made", n)
		}
	}
}

// fillerLike is a batch of one record that differs from a filler's in what edit
// changes.
func fillerLike(producer, timestamp int64, key string, value []byte) Batch {
	r := kmsg.Record{Key: []byte(key), Value: value}
	b := buildBatch(codecNone, 1, encodeRecords([]kmsg.Record{r}))
	binary.BigEndian.PutUint64(b[offBaseTimestamp:], uint64(timestamp))
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(timestamp))
	binary.BigEndian.PutUint64(b[offProducerID:], uint64(producer))
	if producer >= 0 {
		binary.BigEndian.PutUint16(b[offProducerEpoch:], 0)
		binary.BigEndian.PutUint32(b[offBaseSequence:], 0)
	}
	return reseal(b)
}

func TestOnlyFillersAreTakenForOne(t *testing.T) {
	for _, c := range []struct {
		name  string
		batch Batch
		want  bool
	}{
		{"a filler's record", fillerLike(testApplier, 1, fillerKey, nil), true},
		{"of a client", fillerLike(42, 1, fillerKey, nil), false},
		{"of another time", fillerLike(testApplier, 2, fillerKey, nil), false},
		{"of another key", fillerLike(testApplier, 1, fillerKey+"s", nil), false},
		{"with a value", fillerLike(testApplier, 1, fillerKey, []byte{}), false},
		{"a plain batch", plainBatch(3), false},
		{"emptied", Batch(appendEmptied(nil, fillerLike(testApplier, 1, fillerKey, nil))), false},
	} {
		if got := c.batch.IsFiller(); got != c.want {
			t.Errorf("%s: IsFiller %v, want %v", c.name, got, c.want)
		}
	}
}

// As the cleaner left it on Kafka 4.3.1: the newest tombstone alone, the delete
// horizon as base timestamp, the rest of the header as it was.
func TestWhatTheCleanerLeavesOfAFillerIsKnown(t *testing.T) {
	const horizon = int64(1_795_482_063_404)
	record := []byte{0}
	record = binary.AppendVarint(record, 1-horizon)
	record = binary.AppendVarint(record, 19999)
	record = binary.AppendVarint(record, int64(len(fillerKey)))
	record = append(append(record, fillerKey...), 1, 0)
	b := buildBatch(0x40, 1, append(binary.AppendVarint(nil, int64(len(record))), record...))
	binary.BigEndian.PutUint32(b[offLastOffsetDelta:], 19999)
	binary.BigEndian.PutUint64(b[offBaseTimestamp:], uint64(horizon))
	binary.BigEndian.PutUint64(b[offMaxTimestamp:], 1)
	binary.BigEndian.PutUint64(b[offProducerID:], uint64(testApplier))
	if !reseal(b).IsFiller() {
		t.Error("not known for a filler")
	}
}

func TestClientsCannotWriteWhatLooksLikeAFiller(t *testing.T) {
	for _, c := range []struct {
		name      string
		timestamp int64
		key       string
		value     []byte
		refused   bool
	}{
		{"key and timestamp", 1, fillerKey, nil, true},
		{"with a value, which compaction might take", 1, fillerKey, []byte("v"), true},
		{"another timestamp", 2, fillerKey, nil, false},
		{"no timestamp", -1, fillerKey, nil, false},
		{"another key", 1, "lockstep.fillet", nil, false},
		{"a longer key", 1, fillerKey + "x", nil, false},
		{"no key", 1, "", nil, false},
	} {
		for _, first := range []bool{true, false} {
			r := kmsg.Record{Key: []byte(c.key), Value: c.value}
			other := kmsg.Record{Key: []byte("k"), TimestampDelta64: 5}
			all := []kmsg.Record{r, other}
			if !first {
				all = []kmsg.Record{other, r}
			}
			all[1].OffsetDelta = 1
			b := buildBatch(codecNone, 2, encodeRecords(all))
			binary.BigEndian.PutUint64(b[offBaseTimestamp:], uint64(c.timestamp))
			binary.BigEndian.PutUint64(b[offMaxTimestamp:], uint64(c.timestamp+5))
			_, refusal := CheckProduce(reseal(b), Limits{})
			if (refusal != nil) != c.refused {
				t.Errorf("%s, first %v: %v, want refused %v", c.name, first, refusal, c.refused)
			}
			if refusal != nil && refusal.Code != kerr.InvalidRecord.Code {
				t.Errorf("%s: %v", c.name, refusal)
			}
		}
	}
}

func at(base int64, b []byte) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint64(b, uint64(base))
	return b
}

func TestHiddenFillersSpanTheirOffsetsAndHoldNothing(t *testing.T) {
	real := at(5000, plainBatch(3))
	records := slicesConcat(at(0, AppendFiller(nil, 5000, testApplier, 2, 9)), real, at(5003, AppendFiller(nil, 4, testApplier, 2, 5012)), real[:40])
	before := bytes.Clone(records)
	got := HideFillers(records)
	if !bytes.Equal(records, before) {
		t.Fatal("the records were written to")
	}
	var spans []string
	for {
		b, rest, err := ParseBatch(got)
		if err != nil {
			break
		}
		if !b.ChecksumOK() || b.ProducerID() == testApplier && b.ProducerEpoch() != 2 {
			t.Errorf("batch at %d is not in order", b.BaseOffset())
		}
		spans = append(spans, fmt.Sprintf("%d+%d:%d", b.BaseOffset(), b.LastOffsetDelta(), b.Count()))
		got = rest
	}
	if want := "[0+4999:0 5000+2:3 5003+3:0]"; fmt.Sprint(spans) != want {
		t.Errorf("got %v, want %s", spans, want)
	}
	if !bytes.Equal(got, real[:40]) {
		t.Errorf("the batch that is cut off was not kept")
	}
	if same := HideFillers(real); &same[0] != &real[0] {
		t.Error("records without a filler were copied")
	}
}

func slicesConcat(all ...[]byte) []byte { return bytes.Join(all, nil) }

func TestVisitedRecordsMakeTheSameBatchAgain(t *testing.T) {
	all := testRecords(40)
	all[7].Value, all[8].Key, all[9].Headers = nil, nil, nil
	all[11].Value = bytes.Repeat([]byte("long "), 20_000) // more than a window
	for _, c := range codecCases(t, encodeRecords(all)) {
		b := buildBatch(c.id, len(all), c.body)
		var got []Record
		if err := VisitRecords(b, 1<<30, func(r Record) bool { got = append(got, r); return true }); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for i, r := range got {
			if want := all[i]; r.OffsetDelta != want.OffsetDelta || r.TimestampMs != baseMs+want.TimestampDelta64 ||
				!bytes.Equal(r.Key, want.Key) || !bytes.Equal(r.Value, want.Value) || (r.Value == nil) != (want.Value == nil) || (r.Key == nil) != (want.Key == nil) {
				t.Fatalf("%s: record %d is %+v", c.name, i, r)
			}
		}
		again, err := AppendBatch(nil, b.Codec(), got[5:30], testApplier, 4, 99)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		made, refusal := CheckProduce(again, Limits{})
		if refusal != nil {
			t.Fatalf("%s: %v", c.name, refusal)
		}
		if made.Codec() != b.Codec() || made.ProducerEpoch() != 4 || made.BaseSequence() != 99 || made.MaxTimestamp() != baseMs+29 {
			t.Errorf("%s: header is not what was asked for", c.name)
		}
		i := 5
		if err := VisitRecords(made, 1<<30, func(r Record) bool {
			if int(r.OffsetDelta) != i-5 || r.TimestampMs != got[i].TimestampMs || !bytes.Equal(r.Payload, got[i].Payload) {
				t.Fatalf("%s: record %d became %+v", c.name, i, r)
			}
			i++
			return true
		}); err != nil || i != 30 {
			t.Fatalf("%s: read up to %d: %v", c.name, i, err)
		}
		if b.Codec() != codecNone {
			if err := VisitRecords(b, 1000, func(Record) bool { return true }); err == nil {
				t.Errorf("%s: more was read than the bound allows", c.name)
			}
		}
	}
}

func FuzzVisitRecords(f *testing.F) {
	f.Add([]byte(plainBatch(3)))
	f.Add(AppendFiller(nil, 3, testApplier, 0, 0))
	f.Add(AppendFiller(nil, 300, testApplier, 0, 0))
	for _, c := range codecCases(f, encodeRecords(testRecords(3))) {
		f.Add([]byte(buildBatch(c.id, 3, c.body)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, _, err := ParseBatch(raw)
		if err != nil {
			return
		}
		last, total := int32(-1), 0
		err = VisitRecords(b, 1<<20, func(r Record) bool {
			if r.OffsetDelta <= last || r.OffsetDelta > b.LastOffsetDelta() {
				t.Fatalf("record %d after %d", r.OffsetDelta, last)
			}
			last = r.OffsetDelta
			total += len(r.Payload)
			return true
		})
		if err == nil && total > 1<<20+len(raw) {
			t.Fatalf("%d bytes read", total)
		}
		hidden := HideFillers(raw)
		if HasFiller(hidden) {
			t.Fatal("a filler is left")
		}
	})
}

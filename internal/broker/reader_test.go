package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fill appends batches of mixed sizes, one larger than any first fetch, and
// returns them as appended.
func fill(t *testing.T, addr, topic string) (batches [][]byte, bases []int64, end int64) {
	t.Helper()
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	for i := range 40 {
		size, count := 100+i*1500, int32(1+i%4)
		if i == 17 {
			size, count = 3<<20, 1
		}
		batch := makeBatch(int32(end), count, size)
		c := newCollector()
		s.Append(appendOf(topic, 0, batch), c.done(0))
		if got := c.next(t); got.Err != nil || got.Code != 0 || got.BaseOffset != end {
			t.Fatalf("append %d: %+v, want offset %d", i, got, end)
		}
		batches, bases = append(batches, batch), append(bases, end)
		end += int64(count)
	}
	return batches, bases, end
}

// checkReader runs against any broker that has the topic with room for 3 MiB
// batches.
func checkReader(t *testing.T, addr, topic string) {
	ctx := testContext(t)
	r := newReader(t, addr)
	if start, end, err := r.LogEnd(ctx, topic, 0); err != nil || start != 0 || end != 0 {
		t.Fatalf("empty log: %d..%d, %v", start, end, err)
	}
	if _, err := r.LastBatch(ctx, topic, 0, 0); !errors.Is(err, ErrNoBatch) {
		t.Fatalf("last batch of an empty log: %v", err)
	}
	batches, bases, end := fill(t, addr, topic)
	if start, got, err := r.LogEnd(ctx, topic, 0); err != nil || start != 0 || got != end {
		t.Fatalf("log: %d..%d, %v, want 0..%d", start, got, err, end)
	}
	// As if each batch had been the last, the 3 MiB one included.
	for i := range batches {
		after := bases[i] + int64(i%4) + 1
		if i == 17 {
			after = bases[i] + 1
		}
		got, err := r.LastBatch(ctx, topic, 0, after)
		if err != nil || !sameBatch(got, batches[i]) {
			t.Fatalf("batch before offset %d: %d bytes, %v, want %d bytes", after, len(got), err, len(batches[i]))
		}
		if base := int64(binary.BigEndian.Uint64(got)); base != bases[i] {
			t.Fatalf("batch before offset %d starts at %d, want %d", after, base, bases[i])
		}
	}
	if _, err := r.LastBatch(ctx, topic, 0, end+5); !errors.Is(err, ErrNoBatch) {
		t.Fatalf("batch beyond the end: %v", err)
	}
	if _, _, err := r.LogEnd(ctx, topic, 999); !errors.Is(err, ErrNoTopic) {
		t.Fatalf("log end of no partition: %v", err)
	}
	checkStream(t, r, topic, batches, bases, end)
}

func checkStream(t *testing.T, r *Reader, topic string, batches [][]byte, bases []int64, end int64) {
	ctx := testContext(t)
	stream := func(from, to int64) ([][]byte, error) {
		var got [][]byte
		err := r.Batches(ctx, topic, 0, from, to, func(b []byte) error {
			got = append(got, bytes.Clone(b))
			return nil
		})
		return got, err
	}
	got, err := stream(0, end)
	if err != nil || len(got) != len(batches) {
		t.Fatalf("stream of all: %d batches, %v, want %d", len(got), err, len(batches))
	}
	for i := range got {
		if !sameBatch(got[i], batches[i]) || int64(binary.BigEndian.Uint64(got[i])) != bases[i] {
			t.Fatalf("batch %d differs from what was appended", i)
		}
	}
	// Batches 3 (offsets 6..9) and 5 (11..12): both ends inside a batch.
	got, err = stream(bases[3]+2, bases[5]+1)
	if err != nil || len(got) != 3 || !sameBatch(got[0], batches[3]) || !sameBatch(got[2], batches[5]) {
		t.Fatalf("stream from inside batch 3 to inside batch 5: %d batches, %v", len(got), err)
	}
	if got, err = stream(bases[4], bases[5]); err != nil || len(got) != 1 {
		t.Fatalf("stream of batch 4 alone: %d batches, %v", len(got), err)
	}
	if got, err = stream(end-1, end+3); !errors.Is(err, ErrNoBatch) || len(got) != 1 {
		t.Fatalf("stream beyond the end: %d batches, %v", len(got), err)
	}
	stop := errors.New("enough")
	calls := 0
	err = r.Batches(ctx, topic, 0, 0, end, func([]byte) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Fatalf("stream stopped by its consumer: %d calls, %v", calls, err)
	}
}

func TestReader(t *testing.T) {
	_, addr := newBroker(t)
	createBig(t, addr, "big")
	checkReader(t, addr, "big")
}

func createBig(t *testing.T, addr, topic string) {
	t.Helper()
	if _, err := newAdmin(t, addr).CreateTopic(testContext(t), topic, 1, nil); err != nil {
		t.Fatal(err)
	}
}

// checkDeletedRecords reads below a log start that has moved.
func checkDeletedRecords(t *testing.T, addr, topic string) {
	_, bases, end := fill(t, addr, topic)
	deleteRecords(t, addr, topic, bases[10])
	ctx := testContext(t)
	r := newReader(t, addr)
	if start, got, err := r.LogEnd(ctx, topic, 0); err != nil || start != bases[10] || got != end {
		t.Fatalf("log: %d..%d, %v, want %d..%d", start, got, err, bases[10], end)
	}
	if _, err := r.LastBatch(ctx, topic, 0, bases[10]); !errors.Is(err, ErrNoBatch) {
		t.Fatalf("batch below the log start: %v", err)
	}
	err := r.Batches(ctx, topic, 0, 0, end, func([]byte) error { return nil })
	if !errors.Is(err, ErrNoBatch) {
		t.Fatalf("stream from below the log start: %v", err)
	}
	deleteRecords(t, addr, topic, end)
	if _, err := r.LastBatch(ctx, topic, 0, end); !errors.Is(err, ErrNoBatch) {
		t.Fatalf("last batch of a log with everything deleted: %v", err)
	}
}

func TestReaderDeletedRecords(t *testing.T) {
	_, addr := newBroker(t)
	createBig(t, addr, "big")
	checkDeletedRecords(t, addr, "big")
}

func deleteRecords(t *testing.T, addr, topic string, offset int64) {
	t.Helper()
	resp, err := newReader(t, addr).caller.call(testContext(t), false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DeleteRecords, 0, 2)
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.Version = version
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Offset = offset
		rt := kmsg.NewDeleteRecordsRequestTopic()
		rt.Topic = topic
		rt.Partitions = append(rt.Partitions, p)
		req.Topics = append(req.Topics, rt)
		return req, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatalf("DeleteRecords to %d: error code %d", offset, code)
	}
}

// A request on a connection the broker closed in the meantime is repeated on a
// new one.
func TestReaderReconnects(t *testing.T) {
	_, addr := newBroker(t)
	relay := newRelay(t, addr)
	r := newReader(t, relay.addr())
	for i := range 3 {
		if _, _, err := r.LogEnd(testContext(t), testTopic, 0); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		relay.cut()
	}
	if n := relay.dialCount(); n != 3 {
		t.Fatalf("%d dials, want 3", n)
	}
}

func TestReaderClose(t *testing.T) {
	_, addr := newBroker(t)
	relay := newRelay(t, addr)
	r := newReader(t, relay.addr())
	relay.hold()
	result := make(chan error, 1)
	go func() {
		_, _, err := r.LogEnd(testContext(t), testTopic, 0)
		result <- err
	}()
	relay.nextFrame(t, kmsg.ApiVersions)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Fatalf("call under way at Close: %v", err)
	}
	if _, _, err := r.LogEnd(testContext(t), testTopic, 0); !errors.Is(err, ErrClosed) {
		t.Fatalf("call after Close: %v", err)
	}
}

// A cut-off batch at the end of an answer is asked for again, never passed on.
func TestWalkTruncated(t *testing.T) {
	first, second := makeBatch(0, 2, 50), makeBatch(2, 1, 50)
	binary.BigEndian.PutUint64(second, 2)
	want := scanRange{topic: testTopic, to: 3, maxBytes: 100}
	both := append(bytes.Clone(first), second...)
	for _, cut := range []int{1, 11, 12, 60, len(second) - 1} {
		var got []string
		next, need, err := walk(both[:len(first)+cut], want, func(b []byte, s span) error {
			got = append(got, fmt.Sprint(s.base, s.last, len(b)))
			return nil
		})
		if err != nil || next != 2 || len(got) != 1 || got[0] != fmt.Sprint(0, 1, len(first)) {
			t.Fatalf("cut at %d: next %d, need %d, %v, batches %v", cut, next, need, err, got)
		}
		if cut >= 12 && need != len(second) {
			t.Fatalf("cut at %d: need %d, want %d", cut, need, len(second))
		}
	}
}

// Some brokers cut even the first batch at the size asked for.
func TestReaderAsksForMore(t *testing.T) {
	cluster, addr := newBroker(t)
	batch := makeBatch(0, 1, 3*streamFetch)
	cluster.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked := int(kreq.(*kmsg.FetchRequest).Topics[0].Partitions[0].PartitionMaxBytes)
		resp := kreq.ResponseKind().(*kmsg.FetchResponse)
		rp := kmsg.NewFetchResponseTopicPartition()
		rp.RecordBatches = batch[:min(asked, len(batch))]
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic = testTopic
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	r := newReader(t, addr)
	got, err := r.LastBatch(testContext(t), testTopic, 0, 1)
	if err != nil || !bytes.Equal(got, batch) {
		t.Fatalf("last batch: %d of %d bytes, %v", len(got), len(batch), err)
	}
	calls := 0
	err = r.Batches(testContext(t), testTopic, 0, 0, 1, func(b []byte) error {
		calls++
		if !bytes.Equal(b, batch) {
			t.Errorf("%d of %d bytes", len(b), len(batch))
		}
		return nil
	})
	if err != nil || calls != 1 {
		t.Fatalf("stream: %d batches, %v", calls, err)
	}
}

package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func produced(resp *kmsg.ProduceResponse) map[partitionKey]kmsg.ProduceResponseTopicPartition {
	parts := map[partitionKey]kmsg.ProduceResponseTopicPartition{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			parts[partitionKey{t.Topic, p.Partition}] = p
		}
	}
	return parts
}

// addProduce adds a partition to a Produce request.
func addProduce(req *kmsg.ProduceRequest, topic string, partition int32, batch []byte) {
	req.Topics = append(req.Topics, produceTo(topic, partition, batch).Topics...)
}

// TestProducePerPartition: each partition has its own fate, in every version.
func TestProducePerPartition(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 3, nil)
	f.createTopic("payments", 1, nil)
	f.cluster.setLeader("orders", 1, 2)
	f.cluster.setLeader("orders", 2, -1)
	c := f.dial()
	for version := int16(3); version <= 11; version++ {
		req := produceTo("orders", 0, batchOf("a", "b"))
		addProduce(req, "payments", 0, batchOf("c"))
		addProduce(req, "orders", 1, batchOf("d"))
		addProduce(req, "orders", 2, batchOf("e"))
		addProduce(req, "orders", 7, batchOf("f"))
		addProduce(req, "nowhere", 0, batchOf("g"))
		got := produced(do[*kmsg.ProduceResponse](c, version, req))
		round := int64(version - 3)
		for key, want := range map[partitionKey]struct {
			code int16
			base int64
		}{
			{"orders", 0}:   {0, 2 * round},
			{"payments", 0}: {0, round},
			{"orders", 1}:   {kerr.NotLeaderForPartition.Code, -1},
			{"orders", 2}:   {kerr.NotLeaderForPartition.Code, -1},
			{"orders", 7}:   {kerr.UnknownTopicOrPartition.Code, -1},
			{"nowhere", 0}:  {kerr.UnknownTopicOrPartition.Code, -1},
		} {
			p, ok := got[key]
			if !ok || p.ErrorCode != want.code || p.BaseOffset != want.base || p.LogAppendTime != -1 {
				t.Errorf("v%d %v: present %t, code %d, base offset %d, append time %d; want %+v", version, key, ok, p.ErrorCode, p.BaseOffset, p.LogAppendTime, want)
			}
			if version >= 10 && (p.CurrentLeader.LeaderID != -1 || p.CurrentLeader.LeaderEpoch != -1) {
				t.Errorf("v%d %v: a leader hint leaks: %+v", version, key, p.CurrentLeader)
			}
			if want := int64(0); version >= 5 && p.ErrorCode == 0 && p.LogStartOffset != want {
				t.Errorf("v%d %v: log start %d", version, key, p.LogStartOffset)
			}
		}
	}
}

// TestProduceIsRefusedAsAWhole for what concerns the request.
func TestProduceIsRefusedAsAWhole(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	c := f.dial()
	for _, tc := range []struct {
		name   string
		change func(*kmsg.ProduceRequest)
		code   int16
	}{
		{"acks 2", func(r *kmsg.ProduceRequest) { r.Acks = 2 }, kerr.InvalidRequiredAcks.Code},
		{"acks -2", func(r *kmsg.ProduceRequest) { r.Acks = -2 }, kerr.InvalidRequiredAcks.Code},
		{"transactional id", func(r *kmsg.ProduceRequest) { r.TransactionID = kmsg.StringPtr("tx") }, kerr.TransactionalIDAuthorizationFailed.Code},
	} {
		req := produceTo("orders", 0, batchOf("a"))
		addProduce(req, "orders", 1, batchOf("b"))
		tc.change(req)
		for key, p := range produced(do[*kmsg.ProduceResponse](c, 9, req)) {
			if p.ErrorCode != tc.code {
				t.Errorf("%s %v: code %d, want %d", tc.name, key, p.ErrorCode, tc.code)
			}
		}
	}
	if n := f.producer.appended(); n != 0 {
		t.Errorf("%d batches were appended", n)
	}
}

// TestProduceNamesAPartitionTwice: neither batch is appended, others are.
func TestProduceNamesAPartitionTwice(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	req := produceTo("orders", 0, batchOf("a"))
	addProduce(req, "orders", 1, batchOf("b"))
	addProduce(req, "orders", 0, batchOf("c"))
	resp := do[*kmsg.ProduceResponse](f.dial(), 9, req)
	var codes []int16
	for _, rt := range resp.Topics {
		for _, p := range rt.Partitions {
			codes = append(codes, p.ErrorCode)
		}
	}
	if want := fmt.Sprint([]int16{42, 0, 42}); fmt.Sprint(codes) != want {
		t.Errorf("codes %v, want %s", codes, want)
	}
	if calls := f.producer.taken(); len(calls) != 1 || calls[0].partition != 1 {
		t.Errorf("%d batches were appended", len(calls))
	}
}

// TestProduceTimesOut answers REQUEST_TIMED_OUT for what has no outcome at
// timeout_ms, and keeps the outcome of the rest.
func TestProduceTimesOut(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 2, nil)
	late := make(chan func(), 1)
	f.producer.setHold(func(call appendCall, complete func()) {
		if call.partition == 1 {
			late <- complete
			return
		}
		complete()
	})
	c := f.dial()
	req := produceTo("orders", 0, batchOf("a"))
	addProduce(req, "orders", 1, batchOf("b"))
	req.TimeoutMillis = 50
	got := produced(do[*kmsg.ProduceResponse](c, 9, req))
	if p := got[partitionKey{"orders", 0}]; p.ErrorCode != 0 || p.BaseOffset != 0 {
		t.Errorf("in time: %+v", p)
	}
	if p := got[partitionKey{"orders", 1}]; p.ErrorCode != kerr.RequestTimedOut.Code || p.BaseOffset != -1 {
		t.Errorf("late: %+v", p)
	}
	if f.srv.requests.inUse() == 0 {
		t.Error("the bytes that the Producer still holds were given back")
	}
	(<-late)()
	eventually(t, "the budget to be given back", func() bool { return f.srv.requests.inUse() == 0 })
	c.alive()
}

// TestProduceWithoutAcks has no answer when it succeeds and closes the
// connection when it fails, after what is owed before it.
func TestProduceWithoutAcks(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	quiet := produceTo("orders", 0, batchOf("a"))
	quiet.Acks = 0
	c.send(quiet)
	c.alive() // the next answer on the wire is this one's
	if end, err := listOffset(f.upstream, "orders", 0, -1); err != nil || end != 1 {
		t.Errorf("end %d, %v", end, err)
	}
	loud := produceTo("orders", 0, batchOf("b"))
	corr := c.send(loud)
	bad := produceTo("nowhere", 0, batchOf("c"))
	bad.Acks = 0
	c.send(bad)
	if resp := receive[*kmsg.ProduceResponse](c, corr, loud); resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Error("the Produce before it failed")
	}
	c.closed()
	eventually(t, "the log line", func() bool { return len(f.log.lines("a Produce with acks 0 failed", "nowhere")) == 1 })
}

// TestProduceKeepsTopicSettings: the limits come from the catalog's settings.
func TestProduceKeepsTopicSettings(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Topics.MaxMessageBytes = 2000 })
	f.createTopic("plain", 1, nil)
	f.createTopic("small", 1, map[string]string{"max.message.bytes": "100"})
	f.createTopic("large", 1, map[string]string{"max.message.bytes": "5000"})
	f.createTopic("compacted", 1, map[string]string{"cleanup.policy": "delete, compact"})
	f.createTopic("timely", 1, map[string]string{"message.timestamp.before.max.ms": "60000"})
	old := batchOf("a")
	for i := range 8 {
		old[27+i], old[35+i] = 0, 0 // both timestamps: 1970
	}
	sealBatch(old)
	c := f.dial()
	for _, tc := range []struct {
		topic string
		batch []byte
		code  int16
	}{
		{"plain", batchOf(strings.Repeat("x", 1500)), 0},
		{"plain", batchOf(strings.Repeat("x", 2500)), kerr.MessageTooLarge.Code},
		{"small", batchOf(strings.Repeat("x", 100)), kerr.MessageTooLarge.Code},
		{"large", batchOf(strings.Repeat("x", 2500)), 0},
		{"compacted", batchOf("no key"), kerr.InvalidRecord.Code},
		{"plain", old, 0},
		{"timely", old, kerr.InvalidTimestamp.Code},
	} {
		resp := do[*kmsg.ProduceResponse](c, 9, produceTo(tc.topic, 0, tc.batch))
		p := resp.Topics[0].Partitions[0]
		if p.ErrorCode != tc.code {
			t.Errorf("%s, %d bytes: code %d, want %d", tc.topic, len(tc.batch), p.ErrorCode, tc.code)
		}
		if tc.topic == "compacted" && (len(p.ErrorRecords) != 1 || p.ErrorRecords[0].RelativeOffset != 0) {
			t.Errorf("compacted: error records %+v", p.ErrorRecords)
		}
	}
}

// TestProducerRefuses passes a code and message of the Producer on.
func TestProducerRefuses(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	f.broker.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic = "orders"
		rp := kmsg.NewProduceResponseTopicPartition()
		rp.ErrorCode = kerr.OutOfOrderSequenceNumber.Code
		rt.Partitions = append(rt.Partitions, rp)
		resp.Topics = append(resp.Topics, rt)
		return resp, nil, true
	})
	p := do[*kmsg.ProduceResponse](f.dial(), 9, produceTo("orders", 0, batchOf("a"))).Topics[0].Partitions[0]
	if p.ErrorCode != kerr.OutOfOrderSequenceNumber.Code || p.BaseOffset != -1 {
		t.Errorf("%+v", p)
	}
}

// TestProduceDeadline hands the client's timeout to the Producer.
func TestProduceDeadline(t *testing.T) {
	f := newFixture(t, nil)
	f.createTopic("orders", 1, nil)
	c := f.dial()
	for _, tc := range []struct {
		acks    int16
		timeout int32
		want    time.Duration
	}{{-1, 5000, 5 * time.Second}, {1, 1 << 30, maxProduceWait}, {-1, -5, 0}, {0, 1, acklessWait}} {
		req := produceTo("orders", 0, batchOf("a"))
		req.Acks, req.TimeoutMillis = tc.acks, tc.timeout
		before := time.Now()
		taken := f.producer.appended()
		corr := c.send(req)
		eventually(t, "the append", func() bool { return f.producer.appended() == taken+1 })
		calls := f.producer.taken()
		wait := calls[len(calls)-1].deadline.Sub(before)
		if wait < tc.want || wait > tc.want+patience {
			t.Errorf("acks %d timeout %d: the Producer has %v, want %v", tc.acks, tc.timeout, wait, tc.want)
		}
		if tc.acks != 0 {
			receive[*kmsg.ProduceResponse](c, corr, req)
		}
	}
}

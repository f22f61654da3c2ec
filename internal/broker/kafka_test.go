//go:build kafka

package broker

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// These tests run against a real Apache Kafka broker of one node, named by
// LOCKSTEP_TEST_KAFKA (host:port). They create and delete topics named
// lockstep-*, and "life".
func kafkaAddr(t *testing.T) string {
	t.Helper()
	addr := os.Getenv("LOCKSTEP_TEST_KAFKA")
	if addr == "" {
		t.Fatal("set LOCKSTEP_TEST_KAFKA to the host:port of a single Kafka broker")
	}
	return addr
}

func kafkaTopic(t *testing.T, addr string, partitions int32) string {
	t.Helper()
	name := "lockstep-" + strings.ToLower(t.Name())
	a := newAdmin(t, addr)
	if err := a.DeleteTopic(testContext(t), name); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	info, err := a.CreateTopic(testContext(t), name, partitions, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("created %d partitions in %s", info.Partitions, time.Since(start))
	t.Cleanup(func() {
		if err := a.DeleteTopic(testContext(t), name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func TestKafkaTopics(t *testing.T) {
	addr := kafkaAddr(t)
	if err := newAdmin(t, addr).DeleteTopic(testContext(t), "life"); err != nil {
		t.Fatal(err)
	}
	checkTopics(t, addr)
}

func TestKafkaReader(t *testing.T) {
	addr := kafkaAddr(t)
	checkReader(t, addr, kafkaTopic(t, addr, 1))
}

func TestKafkaDeletedRecords(t *testing.T) {
	addr := kafkaAddr(t)
	checkDeletedRecords(t, addr, kafkaTopic(t, addr, 1))
	checkRange(t, addr, kafkaTopic(t, addr, 1))
}

func TestKafkaBrokerDefaults(t *testing.T) {
	a := newAdmin(t, kafkaAddr(t))
	warnings, err := a.SetBrokerDefaults(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := a.metadata(testContext(t), []kmsg.MetadataRequestTopic{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := a.DescribeConfig(testContext(t), kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(meta.Brokers[0].NodeID)))
	if err != nil || config["producer.id.expiration.ms"] != producerExpiry {
		t.Fatalf("producer.id.expiration.ms=%s, %v", config["producer.id.expiration.ms"], err)
	}
	kind, err := a.Describe(testContext(t))
	if err != nil || kind == "unknown" {
		t.Fatalf("describe: %q, %v", kind, err)
	}
	t.Logf("%s; warnings %q", kind, warnings)
	for _, w := range warnings {
		if strings.Contains(w, "cannot set") {
			t.Errorf("warning: %s", w)
		}
	}
}

// What the applier's fence rests on.
func TestKafkaSequenceFence(t *testing.T) {
	addr := kafkaAddr(t)
	topic := kafkaTopic(t, addr, 2)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	try := func(batch []byte) Result {
		t.Helper()
		c := newCollector()
		s.Append(appendOf(topic, 0, batch), c.done(0))
		got := c.next(t)
		if got.Err != nil {
			t.Fatal(got.Err)
		}
		return got.Result
	}
	want := func(what string, got Result, code int16, base int64) {
		t.Helper()
		if got.Code != code || (code == 0 && got.BaseOffset != base) {
			t.Errorf("%s: %+v, want code %d base %d", what, got, code, base)
		}
		t.Logf("%s: code %d base %d %q", what, got.Code, got.BaseOffset, got.Message)
	}
	want("unknown producer, sequence 77", try(makeBatch(77, 2, 10)), 0, 0)
	for i := range int32(6) { // sequences 79..84 at offsets 2..7
		want("next", try(makeBatch(79+i, 1, 10)), 0, int64(2+i))
	}
	want("repeat of the last", try(makeBatch(84, 1, 10)), 0, 7)
	want("repeat of the fifth last", try(makeBatch(80, 1, 10)), 0, 3)
	want("repeat of the sixth last", try(makeBatch(79, 1, 10)), kerr.OutOfOrderSequenceNumber.Code, 0)
	want("gap", try(makeBatch(90, 1, 10)), kerr.OutOfOrderSequenceNumber.Code, 0)
	epoch := makeBatch(90, 1, 10)
	setEpoch(epoch, 3)
	want("higher epoch, sequence not 0", try(epoch), kerr.OutOfOrderSequenceNumber.Code, 0)
	epoch = makeBatch(0, 1, 10)
	setEpoch(epoch, 3)
	want("higher epoch, sequence 0", try(epoch), 0, 8)
	want("lower epoch", try(makeBatch(85, 1, 10)), kerr.InvalidProducerEpoch.Code, 0)
	broken := makeBatch(0, 1, 10)
	broken[30]++
	want("wrong CRC", try(broken), kerr.CorruptMessage.Code, 0)

	// A sequence that wraps at 2^31, on the other partition.
	wrap := func(seq int32) Result {
		c := newCollector()
		s.Append(appendOf(topic, 1, makeBatch(seq, 4, 10)), c.done(0))
		return c.next(t).Result
	}
	want("up to the wrap", wrap(2147483640), 0, 0)
	want("across the wrap", wrap(2147483644), 0, 4)
	want("after the wrap", wrap(0), 0, 8)
}

func setEpoch(batch []byte, epoch int16) {
	binary.BigEndian.PutUint16(batch[51:], uint16(epoch))
	seal(batch)
}

// A refused batch does not stop the next request, only the sequence does.
func TestKafkaPipelineAfterRefusal(t *testing.T) {
	addr := kafkaAddr(t)
	topic := kafkaTopic(t, addr, 1)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	c := newCollector()
	broken := makeBatch(1, 1, 10)
	broken[30]++
	for i, batch := range [][]byte{makeBatch(0, 1, 10), broken, makeBatch(2, 1, 10), makeBatch(3, 1, 10)} {
		s.Append(appendOf(topic, 0, batch), c.done(i))
	}
	for i, code := range []int16{0, kerr.CorruptMessage.Code, kerr.OutOfOrderSequenceNumber.Code, kerr.OutOfOrderSequenceNumber.Code} {
		if got := c.next(t); got.Err != nil || got.Code != code {
			t.Errorf("result %d: %+v, want code %d", i, got, code)
		}
	}
}

func TestKafkaManyPartitions(t *testing.T) {
	addr := kafkaAddr(t)
	topic := kafkaTopic(t, addr, 50)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	c := newCollector()
	const rounds = 40
	start := time.Now()
	for i := range rounds {
		for p := range int32(50) {
			s.Append(appendOf(topic, p, makeBatch(int32(i), 1, 1000)), c.done(i))
		}
	}
	for i := range rounds * 50 {
		got := c.next(t)
		if got.Err != nil || got.Code != 0 || got.BaseOffset != int64(got.tag) {
			t.Fatalf("result %d: %+v", i, got)
		}
	}
	t.Logf("%d batches over 50 partitions in %s", rounds*50, time.Since(start))
}

// A 16 MiB batch passes on a topic created here.
func TestKafkaLargestBatch(t *testing.T) {
	addr := kafkaAddr(t)
	topic := kafkaTopic(t, addr, 1)
	s := mustSession(t, newAppender(t, Config{BootstrapServer: addr}))
	c := newCollector()
	batch := makeBatch(0, 1, 16<<20)
	s.Append(appendOf(topic, 0, batch), c.done(0))
	if got := c.next(t); got.Err != nil || got.Code != 0 {
		t.Fatalf("append: %+v", got)
	}
	got, err := newReader(t, addr).LastBatch(testContext(t), topic, 0, 1)
	if err != nil || !sameBatch(got, batch) {
		t.Fatalf("read back %d bytes, %v", len(got), err)
	}
}

func TestKafkaNoTopic(t *testing.T) {
	addr := kafkaAddr(t)
	_, _, err := newReader(t, addr).LogEnd(testContext(t), "lockstep-nowhere", 0)
	if !errors.Is(err, ErrNoTopic) {
		t.Fatalf("log end of no topic: %v", err)
	}
}

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Kafka's error codes that the test expects.
var (
	outOfOrder = kerr.OutOfOrderSequenceNumber.Code
	badEpoch   = kerr.InvalidProducerEpoch.Code
)

// TestKafkaKeepsItsPromises holds a real broker to what the applier is built
// on: how it answers repeated, missing and unknown sequences of a producer id,
// before and after it was stopped and killed. A Kafka release that answers
// otherwise fails here first.
func TestKafkaKeepsItsPromises(t *testing.T) {
	b := newBroker(t, runDir(t)+"/kafka", 11)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const topic = "facts"
	if err := createLocalTopic(ctx, b.addr(), topic, 3); err != nil {
		t.Fatal(err)
	}
	f := &facts{t: t, ctx: ctx, b: b, topic: topic}

	const reserved = int64(1) << 50 // no InitProducerId ever gave this id away
	f.send("a first sequence of 1000 on an empty partition", 0, reserved, 0, 1000, 2, 0, 0)
	f.send("the next sequence", 0, reserved, 0, 1002, 1, 2, 0)
	f.send("a repeat of the first batch", 0, reserved, 0, 1000, 2, 0, 0)
	f.send("a gap", 0, reserved, 0, 1004, 1, -1, outOfOrder)
	for i := range int32(5) {
		f.send("five more batches", 0, reserved, 0, 1003+i, 1, int64(3+i), 0)
	}
	f.send("a repeat of the sixth last batch, which the broker has forgotten", 0, reserved, 0, 1002, 1, -1, outOfOrder)
	f.send("a higher epoch starting at 0", 0, reserved, 1, 0, 1, 8, 0)
	f.send("the older epoch", 0, reserved, 0, 1008, 1, -1, badEpoch)
	f.send("the last sequence before the wrap, on another partition", 1, reserved, 0, 1<<31-1, 1, 0, 0)
	f.send("the sequence after the wrap", 1, reserved, 0, 0, 1, 1, 0)

	epoch := f.leaderEpoch()
	for round, how := range []string{"SIGTERM", "kill -9", "kill -9"} {
		if how == "SIGTERM" {
			b.stop(t)
		} else {
			b.kill9(t)
		}
		begin := time.Now()
		b.restart(t)
		now := f.leaderEpoch()
		t.Logf("after %s: served again in %s, leader epoch %d -> %d", how, time.Since(begin).Round(time.Millisecond), epoch, now)
		if now <= epoch {
			t.Errorf("after %s: leader epoch %d, was %d; want it higher", how, now, epoch)
		}
		epoch = now
		// Each round leaves one batch behind, killed right after its answer.
		seq, offset := int32(1+round), int64(9+round)
		f.send("a repeat after "+how, 0, reserved, 1, seq-1, 1, offset-1, 0)
		f.send("a gap after "+how, 0, reserved, 1, seq+1, 1, -1, outOfOrder)
		f.send("the next sequence after "+how, 0, reserved, 1, seq, 1, offset, 0)
	}
	d, err := readBroker(ctx, b.addr(), topic, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.gapless(); err != nil {
		t.Error(err)
	}
	if len(d[0]) != 12 || len(d[1]) != 2 || len(d[2]) != 0 {
		t.Errorf("partitions hold %d, %d and %d records, want 12, 2 and 0", len(d[0]), len(d[1]), len(d[2]))
	}
}

type facts struct {
	t     *testing.T
	ctx   context.Context
	b     *broker
	topic string
}

// send produces count records with the given identity and compares the answer;
// wantBase counts only when wantCode is 0.
func (f *facts) send(what string, partition int32, id int64, epoch int16, seq int32, count int, wantBase int64, wantCode int16) {
	f.t.Helper()
	b := batch{producerID: id, epoch: epoch, sequence: seq}
	for i := range count {
		b.values = append(b.values, fmt.Sprintf("%d/%d", seq, i))
	}
	base, code, err := rawProduce(f.ctx, f.b.addr(), f.topic, partition, b)
	if err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
	if code != wantCode || code == 0 && base != wantBase {
		f.t.Errorf("%s: base offset %d, error %v; want base offset %d, error %v",
			what, base, kerr.ErrorForCode(code), wantBase, kerr.ErrorForCode(wantCode))
	}
}

func (f *facts) leaderEpoch() int32 {
	f.t.Helper()
	epochs, err := leaderEpochs(f.ctx, f.b.addr(), f.topic)
	if err != nil {
		f.t.Fatal(err)
	}
	return epochs[0]
}

// leaderEpochs returns what the broker at addr says of each partition's epoch.
func leaderEpochs(ctx context.Context, addr, topic string) (map[int32]int32, error) {
	md, err := metadata(ctx, addr, topic)
	if err != nil {
		return nil, err
	}
	epochs := map[int32]int32{}
	for _, p := range md.Topics[0].Partitions {
		epochs[p.Partition] = p.LeaderEpoch
	}
	return epochs, nil
}

// metadata asks one node for one topic, without creating it.
func metadata(ctx context.Context, addr, topic string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(9)
	tp := kmsg.NewMetadataRequestTopic()
	tp.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, tp)
	resp, err := rawCall[*kmsg.MetadataResponse](ctx, addr, req)
	if err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 {
		return nil, fmt.Errorf("metadata of %s from %s: %d topics", topic, addr, len(resp.Topics))
	}
	if code := resp.Topics[0].ErrorCode; code != 0 {
		return nil, fmt.Errorf("metadata of %s from %s: %w", topic, addr, kerr.ErrorForCode(code))
	}
	return resp, nil
}

// isUnknownTopic tells whether a node answered that the topic does not exist.
func isUnknownTopic(err error) bool { return errors.Is(err, kerr.UnknownTopicOrPartition) }

// errNotYet turns "no error" into one, for probes that wait for a refusal.
func errNotYet(err error) error {
	if err == nil {
		return errors.New("the topic is still there")
	}
	return err
}

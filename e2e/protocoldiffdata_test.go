//go:build e2e

package e2e

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fixedBatch is a batch whose every byte is known.
func fixedBatch(values ...string) batch {
	return batch{producerID: -1, epoch: -1, sequence: -1, values: values}
}

// fixed encodes a batch with the fixed time, after change was made to its
// header, and with the checksum that goes with it.
func (b batch) fixed(change func(*kmsg.RecordBatch)) []byte {
	var rb kmsg.RecordBatch
	if err := rb.ReadFrom(b.encode()); err != nil {
		panic(err) // what encode has just written
	}
	rb.FirstTimestamp, rb.MaxTimestamp = fixedTime, fixedTime
	if change != nil {
		change(&rb)
	}
	raw := rb.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

func produceRequest(topic string, partition int32, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// produceScript writes to partition 0 of the topic write; a partition of its
// own has what is written on one side alone.
func produceScript(r *recorder) {
	good := fixedBatch("one", "two").fixed(nil)
	if r.version < 3 {
		r.add("plain", produceRequest("write", 0, good))
		return
	}
	r.add("plain", produceRequest("write", 0, good))
	acked := func(name string, acks int16, topic string) *exchange {
		req := produceRequest(topic, 0, good)
		req.Acks = acks
		return r.add(name, req)
	}
	acked("acks 1", 1, "write")
	acked("acks 0", 0, "write").ackless = true
	acked("acks 0, unknown topic", 0, "unknown").ackless = true
	acked("acks 2", 2, "write")
	r.add("unknown topic", produceRequest("unknown", 0, good))
	r.add("unknown partition", produceRequest("write", 99, good))
	r.add("negative partition", produceRequest("write", -1, good))
	r.add("bad topic name", produceRequest("a b", 0, good))
	mixed := produceRequest("write", 0, good)
	mixed.Topics = append(mixed.Topics, produceRequest("unknown", 0, good).Topics[0])
	r.add("a good and an unknown topic", mixed)
	twice := produceRequest("write", 1, good)
	twice.Topics[0].Partitions = append(twice.Topics[0].Partitions, twice.Topics[0].Partitions[0])
	r.add("a partition twice", twice)
	none := kmsg.NewPtrProduceRequest()
	none.Acks, none.TimeoutMillis = -1, 10_000
	r.add("no topic", none)
	r.add("cut off", produceRequest("write", 0, good)).damage = cutOff
	produceBadBatches(r, good)
	produceIdempotent(r)
	produceTransactional(r)
}

func produceBadBatches(r *recorder, good []byte) {
	bad := func(name string, change func(*kmsg.RecordBatch)) {
		r.add(name, produceRequest("write", 0, fixedBatch("one", "two").fixed(change)))
	}
	r.add("no batch", produceRequest("write", 0, []byte{}))
	r.add("two batches", produceRequest("write", 0, append(append([]byte{}, good...), good...)))
	broken := append([]byte{}, good...)
	broken[len(broken)-1] ^= 1
	r.add("bad checksum", produceRequest("write", 0, broken))
	bad("format 1", func(b *kmsg.RecordBatch) { b.Magic = 1 })
	bad("base offset not 0", func(b *kmsg.RecordBatch) { b.FirstOffset = 7 })
	bad("wrong count", func(b *kmsg.RecordBatch) { b.NumRecords = 5 })
	bad("control batch", func(b *kmsg.RecordBatch) { b.Attributes = 1 << 5 })
	r.add("timestamp type LogAppendTime", produceRequest("write", 3, fixedBatch("one").fixed(func(b *kmsg.RecordBatch) { b.Attributes = 1 << 3 })))
	bad("unknown codec", func(b *kmsg.RecordBatch) { b.Attributes = 7 })
	bad("in the far future", func(b *kmsg.RecordBatch) {
		b.FirstTimestamp = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		b.MaxTimestamp = b.FirstTimestamp
	})
	bad("wrong max timestamp", func(b *kmsg.RecordBatch) { b.MaxTimestamp += 1000 })
	bad("zstd", func(b *kmsg.RecordBatch) {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err) // only wrong options fail
		}
		b.Attributes, b.Records = 4, enc.EncodeAll(b.Records, nil)
	})
	r.add("too large", produceRequest("small", 0, fixedBatch(strings.Repeat("x", 400)).fixed(nil)))
	r.add("no key on a compacted topic", produceRequest("compacted", 0, good))
}

// produceIdempotent has a producer and a partition for each version.
func produceIdempotent(r *recorder) {
	id := 4000 + int64(r.version)
	write := func(name string, epoch int16, sequence int32) {
		b := batch{producerID: id, epoch: epoch, sequence: sequence, values: []string{"one", "two"}}
		r.add("idempotent: "+name, produceRequest("once", int32(r.version), b.fixed(nil)))
	}
	write("first", 3, 0)
	write("the same again", 3, 0)
	write("second", 3, 2)
	write("a gap", 3, 9)
	write("an older epoch", 2, 0)
	write("a new epoch, not from 0", 4, 5)
	write("a new epoch", 4, 0)
	b := batch{producerID: id + 1000, epoch: 0, sequence: -1, values: []string{"one"}}
	r.add("idempotent: no sequence", produceRequest("once", int32(r.version), b.fixed(nil)))
}

func produceTransactional(r *recorder) {
	named := produceRequest("write", 2, fixedBatch("one").fixed(nil))
	named.TransactionID = kmsg.StringPtr("transaction")
	r.add("a transaction's name", named)
	b := batch{producerID: 5000, epoch: 0, sequence: 0, values: []string{"one"}}
	raw := b.fixed(func(b *kmsg.RecordBatch) { b.Attributes = 1 << 4 })
	r.add("transactional batch without a name", produceRequest("write", 2, raw))
	both := produceRequest("write", 2, raw)
	both.TransactionID = kmsg.StringPtr("transaction")
	r.add("transactional batch", both)
}

func fetchRequest(topic string, partition int32, offset int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 0, 0, 1<<20, -1
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, offset, 1<<20
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// fetchScript reads the topic read: three batches of three records in partition
// 0, nothing in partition 1.
func fetchScript(r *recorder) {
	fetch := func(name, topic string, partition int32, offset int64) {
		r.add(name, fetchRequest(topic, partition, offset))
	}
	changed := func(name string, change func(*kmsg.FetchRequest)) *exchange {
		req := fetchRequest("read", 0, 0)
		change(req)
		return r.add(name, req)
	}
	first := func(q *kmsg.FetchRequest) *kmsg.FetchRequestTopicPartition { return &q.Topics[0].Partitions[0] }
	fetch("from the start", "read", 0, 0)
	fetch("from within a batch", "read", 0, 4)
	fetch("at the end", "read", 0, 9)
	fetch("an empty partition", "read", 1, 0)
	fetch("beyond the end", "read", 0, 10)
	fetch("before the start", "read", 0, -1)
	fetch("unknown topic", "unknown", 0, 0)
	fetch("unknown partition", "read", 99, 0)
	changed("a good and an unknown topic", func(q *kmsg.FetchRequest) {
		q.Topics = append(q.Topics, fetchRequest("unknown", 0, 0).Topics[0])
	})
	changed("a good and an unknown partition", func(q *kmsg.FetchRequest) {
		q.Topics[0].Partitions = append(q.Topics[0].Partitions, fetchRequest("read", 99, 0).Topics[0].Partitions[0])
	})
	changed("one byte", func(q *kmsg.FetchRequest) { first(q).PartitionMaxBytes = 1 })
	changed("one byte of the whole", func(q *kmsg.FetchRequest) { q.MaxBytes = 1 })
	changed("read committed", func(q *kmsg.FetchRequest) { q.IsolationLevel = 1 })
	changed("a short wait at the end", func(q *kmsg.FetchRequest) {
		first(q).FetchOffset, q.MaxWaitMillis, q.MinBytes = 9, 20, 1
	})
	changed("no topic", func(q *kmsg.FetchRequest) { q.Topics = nil })
	changed("as a replica", func(q *kmsg.FetchRequest) { q.ReplicaID = 5 })
	changed("cut off", func(*kmsg.FetchRequest) {}).damage = cutOff
	if r.version >= 7 {
		changed("a new session", func(q *kmsg.FetchRequest) { q.SessionEpoch = 0 })
		changed("an unknown session", func(q *kmsg.FetchRequest) { q.SessionID, q.SessionEpoch = 77, 5 })
	}
	if r.version >= 9 {
		changed("the leader's epoch", func(q *kmsg.FetchRequest) { first(q).CurrentLeaderEpoch = 0 })
		changed("a newer leader epoch", func(q *kmsg.FetchRequest) { first(q).CurrentLeaderEpoch = 99 })
	}
	if r.version >= 11 {
		changed("from a rack", func(q *kmsg.FetchRequest) { q.Rack = "a" })
	}
	if r.version >= 12 {
		changed("after a newer epoch", func(q *kmsg.FetchRequest) { first(q).FetchOffset, first(q).LastFetchedEpoch = 4, 99 })
	}
}

func listOffsetsScript(r *recorder) {
	list := func(name, topic string, partition int32, timestamp int64, change func(*kmsg.ListOffsetsRequest)) {
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = partition, timestamp
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		if change != nil {
			change(req)
		}
		r.add(name, req)
	}
	list("the end", "read", 0, -1, nil)
	list("the start", "read", 0, -2, nil)
	list("the time of all", "read", 0, fixedTime, nil)
	list("a time after all", "read", 0, fixedTime+1, nil)
	list("an empty partition's end", "read", 1, -1, nil)
	list("a time in an empty partition", "read", 1, fixedTime, nil)
	list("unknown topic", "unknown", 0, -1, nil)
	list("unknown partition", "read", 99, -1, nil)
	list("an unknown special time", "read", 0, -9, nil)
	list("a partition twice", "read", 0, -1, func(q *kmsg.ListOffsetsRequest) {
		q.Topics[0].Partitions = append(q.Topics[0].Partitions, q.Topics[0].Partitions[0])
	})
	list("as a replica", "read", 0, -1, func(q *kmsg.ListOffsetsRequest) { q.ReplicaID = 5 })
	list("as the debugger", "read", 0, -1, func(q *kmsg.ListOffsetsRequest) { q.ReplicaID = -2 })
	for special := int64(-3); special >= -5; special-- {
		names := map[int64]string{-3: "the newest record", -4: "the local start", -5: "the tiered end"}
		list(names[special], "read", 0, special, nil)
	}
	if r.version >= 2 {
		list("the end, read committed", "read", 0, -1, func(q *kmsg.ListOffsetsRequest) { q.IsolationLevel = 1 })
	}
	if r.version >= 4 {
		list("a newer leader epoch", "read", 0, -1, func(q *kmsg.ListOffsetsRequest) { q.Topics[0].Partitions[0].CurrentLeaderEpoch = 99 })
	}
}

func offsetForLeaderEpochScript(r *recorder) {
	ask := func(name, topic string, partition, epoch int32, change func(*kmsg.OffsetForLeaderEpochRequest)) {
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.ReplicaID = -1
		p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		p.Partition, p.LeaderEpoch = partition, epoch
		t := kmsg.NewOffsetForLeaderEpochRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		if change != nil {
			change(req)
		}
		r.add(name, req)
	}
	ask("the epoch", "read", 0, 0, nil)
	ask("an unknown epoch", "read", 0, 99, nil)
	ask("no epoch", "read", 0, -1, nil)
	ask("unknown topic", "unknown", 0, 0, nil)
	ask("unknown partition", "read", 99, 0, nil)
	ask("a newer leader epoch", "read", 0, 0, func(q *kmsg.OffsetForLeaderEpochRequest) { q.Topics[0].Partitions[0].CurrentLeaderEpoch = 99 })
	if r.version >= 3 {
		ask("as a replica", "read", 0, 0, func(q *kmsg.OffsetForLeaderEpochRequest) { q.ReplicaID = 5 })
	}
}

func metadataScript(r *recorder) {
	of := func(name string, change func(*kmsg.MetadataRequest), topics ...string) *exchange {
		req := kmsg.NewPtrMetadataRequest()
		req.AllowAutoTopicCreation = false
		req.Topics = []kmsg.MetadataRequestTopic{}
		for _, topic := range topics {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = kmsg.StringPtr(topic)
			req.Topics = append(req.Topics, t)
		}
		if change != nil {
			change(req)
		}
		return r.add(name, req)
	}
	of("a topic", nil, "read")
	of("topics", nil, "read", "write", "compacted")
	of("a topic twice", nil, "read", "read")
	of("all topics", func(q *kmsg.MetadataRequest) { q.Topics = nil }).eventually = true
	if r.version > 0 {
		of("no topic", nil)
	}
	of("unknown topic", nil, "unknown")
	of("bad topic name", nil, "a b")
	of("empty topic name", nil, "")
	of("a topic that may be created", func(q *kmsg.MetadataRequest) { q.AllowAutoTopicCreation = true }, "unknown")
	if r.version >= 8 {
		of("with operations", func(q *kmsg.MetadataRequest) {
			q.IncludeTopicAuthorizedOperations, q.IncludeClusterAuthorizedOperations = true, r.version <= 10
		}, "read", "unknown")
	}
}

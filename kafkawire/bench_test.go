package kafkawire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// benchBatches are batches of 64 records of 1 KiB, half of it compressible.
func benchBatches(b *testing.B) map[string]Batch {
	rng := rand.New(rand.NewPCG(19, 20))
	records := make([]kmsg.Record, 64)
	for i := range records {
		value := bytes.Repeat([]byte("compress"), 64)
		for range 512 {
			value = append(value, byte(rng.Uint32()))
		}
		records[i] = kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: int64(i), Key: fmt.Append(nil, i), Value: value}
	}
	batches := map[string]Batch{}
	for _, c := range codecCases(b, encodeRecords(records)) {
		batches[c.name] = buildBatch(c.id, len(records), c.body)
	}
	return batches
}

func BenchmarkCheckProduce(b *testing.B) {
	for name, batch := range benchBatches(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			for b.Loop() {
				if _, refusal := CheckProduce(batch, Limits{NowMs: baseMs, TimestampAfterMaxMs: 1000}); refusal != nil {
					b.Fatal(refusal)
				}
			}
		})
	}
}

func BenchmarkCheckProduceSmallRecords(b *testing.B) {
	batch := plainBatch(1000)
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		if _, refusal := CheckProduce(batch, Limits{}); refusal != nil {
			b.Fatal(refusal)
		}
	}
}

func BenchmarkStamp(b *testing.B) {
	batch := benchBatches(b)["none"]
	dst := make([]byte, 0, len(batch))
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		dst = Stamp(dst[:0], batch, 1<<40, 0, 7)
	}
}

func BenchmarkParseProduce(b *testing.B) {
	req := kmsg.NewPtrProduceRequest()
	req.Version = 9
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: "t", Partitions: []kmsg.ProduceRequestTopicPartition{{Records: make([]byte, 64<<10)}}}}
	body := req.AppendTo(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest(RequestHeader{Key: 0, Version: 9}, body); err != nil {
			b.Fatal(err)
		}
	}
}

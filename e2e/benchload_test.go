//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// benchRow is one kind of load.
type benchRow struct {
	Name       string
	Partitions int
	Record     int // bytes of a value
	Producers  int
	Codec      string // none, lz4, zstd
	latency    bool   // at a fixed rate; else as fast as it goes
}

// sample is one run of a row at one contestant.
type sample struct {
	Records    float64 // acknowledged per second
	MiB        float64 // the same, of values
	Failed     int
	P50, P99   float64 // milliseconds from produce to acknowledgement
	P999       float64
	End50      float64 // milliseconds from produce to a consumer that waits at the end
	End99      float64
	CPUBrokers float64 // seconds per GiB of values
	CPUProxies float64
	Written    float64 // bytes written per byte of values
	PeakMiB    float64 // of the largest proxy
}

const (
	benchWarmUp = 3 * time.Second
	benchWindow = 16 << 20 // bytes of values that all producers together have in flight
)

// latencies are the times of the records of the measured span.
type latencies struct {
	mu sync.Mutex
	ds []float64
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ds = append(l.ds, d.Seconds()*1000)
}

func (l *latencies) at(q float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ds) == 0 {
		return 0
	}
	slices.Sort(l.ds)
	return l.ds[min(int(q*float64(len(l.ds))), len(l.ds)-1)]
}

func codecs(name string) kgo.CompressionCodec {
	switch name {
	case "lz4":
		return kgo.Lz4Compression()
	case "zstd":
		return kgo.ZstdCompression()
	}
	return kgo.NoCompression()
}

// benchValue is a value: half of it repeats where it is to be compressed.
func benchValue(row benchRow) []byte {
	b := make([]byte, max(row.Record, 8))
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	if row.Codec != "none" {
		for i := len(b) / 2; i < len(b); i++ {
			b[i] = 'x'
		}
	}
	return b
}

// produce runs a row's producers for warm-up and span; rate is in records per
// second for all of them, 0 for as many as possible. What ends up in the samples
// was sent and acknowledged after the warm-up.
func (k *contestant) produce(ctx context.Context, row benchRow, topic string, span time.Duration, rate float64) (sample, error) {
	var s sample
	var acked atomic.Int64
	var failed atomic.Int64
	var lat latencies
	ctx, cancel := context.WithTimeout(ctx, benchWarmUp+span)
	defer cancel()
	begin := time.Now()
	from, to := begin.Add(benchWarmUp), begin.Add(benchWarmUp+span)
	var wg sync.WaitGroup
	var clients []*kgo.Client
	defer func() {
		for _, cl := range clients {
			cl.Close()
		}
	}()
	for range row.Producers {
		cl, err := kgo.NewClient(append(clientOpts(k.seeds), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codecs(row.Codec)),
			kgo.ProducerLinger(0), kgo.MaxBufferedRecords(max(benchWindow/row.Record/row.Producers, 1)))...)
		if err != nil {
			return s, err
		}
		clients = append(clients, cl)
	}
	for i, cl := range clients {
		wg.Go(func() {
			next, each := begin, time.Duration(0)
			if rate > 0 {
				each = time.Duration(float64(row.Producers) / rate * float64(time.Second))
				next = begin.Add(each * time.Duration(i) / time.Duration(row.Producers))
			}
			pace := time.NewTimer(0)
			defer pace.Stop()
			shared := benchValue(row)
			for ctx.Err() == nil {
				value := shared
				if rate > 0 {
					pace.Reset(time.Until(next))
					select {
					case <-pace.C:
					case <-ctx.Done():
						return
					}
					value = slices.Clone(shared)
					// By the schedule: what waited in the producer counts.
					binary.BigEndian.PutUint64(value, uint64(next.UnixNano()))
				}
				at := next
				if rate == 0 {
					at = time.Now()
				}
				next = next.Add(each)
				cl.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
					now := time.Now()
					switch {
					case err != nil && ctx.Err() == nil:
						failed.Add(1)
					case err == nil && now.After(from) && now.Before(to):
						if n := acked.Add(1); rate > 0 || n%64 == 0 {
							lat.add(now.Sub(at))
						}
					}
				})
			}
		})
	}
	warm := time.NewTimer(benchWarmUp)
	defer warm.Stop()
	<-warm.C
	brokers, proxies := used(k.brokers), used(k.proxies)
	wg.Wait()
	total := float64(acked.Load())
	gib := total * float64(row.Record) / (1 << 30)
	b, p := used(k.brokers), used(k.proxies)
	s.Records, s.MiB, s.Failed = total/span.Seconds(), gib*1024/span.Seconds(), int(failed.Load())
	s.P50, s.P99, s.P999 = lat.at(0.5), lat.at(0.99), lat.at(0.999)
	if gib > 0 {
		s.CPUBrokers, s.CPUProxies = (b.CPU-brokers.CPU)/gib, (p.CPU-proxies.CPU)/gib
		s.Written = (b.Written - brokers.Written + p.Written - proxies.Written) / gib / (1 << 30)
	}
	s.PeakMiB = p.Peak / (1 << 20)
	return s, nil
}

// tail reads a topic's end until ctx ends, and notes how old records are that
// were sent after the warm-up.
func (k *contestant) tail(ctx context.Context, topic string, from time.Time, ages *latencies) error {
	cl, err := kgo.NewClient(append(clientOpts(k.seeds), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			if at := time.Unix(0, int64(binary.BigEndian.Uint64(r.Value))); at.After(from) {
				ages.add(now.Sub(at))
			}
		})
	}
	return nil
}

// consume reads a topic of so many records from its start, and returns MiB of
// values per second.
func (k *contestant) consume(ctx context.Context, topic string, records int64) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(append(clientOpts(k.seeds), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	var begin time.Time
	var n, size int64
	for n < records {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("%s: %d of %d records were read: %w", k.name, n, records, err)
		}
		if begin.IsZero() { // the first answer; connections and metadata are not what is measured
			begin = time.Now()
			records -= int64(fetches.NumRecords())
			continue
		}
		fetches.EachRecord(func(r *kgo.Record) { n++; size += int64(len(r.Value)) })
	}
	return float64(size) / (1 << 20) / time.Since(begin).Seconds(), nil
}

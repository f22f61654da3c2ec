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
	Waits      waits
}

const (
	benchWarmUp = 2 * time.Second
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

// benchValues are values to be sent in turn, all different; half of each repeats
// where they are to be compressed.
func benchValues(row benchRow) [][]byte {
	values := make([][]byte, max(4<<20/row.Record, 1))
	r := rand.NewChaCha8([32]byte{1})
	for i := range values {
		b := make([]byte, max(row.Record, 8))
		_, _ = r.Read(b)
		if row.Codec != "none" {
			for j := len(b) / 2; j < len(b); j++ {
				b[j] = 'x'
			}
		}
		values[i] = b
	}
	return values
}

// produce runs a row's producers for warm-up and span; rate is in records per
// second for all of them, 0 for as many as possible. As many as possible are
// counted when they are acknowledged within the span. At a rate every record
// counts that was due within it, however long its acknowledgement took.
func (k *contestant) produce(ctx context.Context, row benchRow, topic string, span time.Duration, rate float64) (sample, error) {
	begin := time.Now()
	p := &benchProducers{row: row, rate: rate, from: begin.Add(benchWarmUp), to: begin.Add(benchWarmUp + span), values: benchValues(row)}
	defer p.close()
	if err := p.open(k.seeds, topic); err != nil {
		return sample{}, err
	}
	sending, stop := context.WithDeadline(ctx, p.to)
	defer stop()
	var wg sync.WaitGroup
	for i, cl := range p.clients {
		wg.Go(func() { p.send(ctx, sending, i, cl) })
	}
	warm := time.NewTimer(time.Until(p.from))
	defer warm.Stop()
	<-warm.C
	resetPeak(k.proxies)
	brokers, proxies, before := used(k.brokers), used(k.proxies), k.probe()
	wg.Wait()
	b, x, after := used(k.brokers), used(k.proxies), k.probe()
	flush, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, cl := range p.clients {
		if err := cl.Flush(flush); err != nil {
			return sample{}, fmt.Errorf("%s: wait for the last acknowledgements: %w", k.name, err)
		}
	}
	total := float64(p.counted.Load())
	gib := total * float64(row.Record) / (1 << 30)
	s := sample{Records: total / span.Seconds(), MiB: gib * 1024 / span.Seconds(), Failed: int(p.failed.Load()),
		P50: p.lat.at(0.5), P99: p.lat.at(0.99), P999: p.lat.at(0.999), PeakMiB: x.Peak / (1 << 20),
		Waits: before.until(after)}
	if gib > 0 {
		s.CPUBrokers, s.CPUProxies = (b.CPU-brokers.CPU)/gib, (x.CPU-proxies.CPU)/gib
		s.Written = (b.Written - brokers.Written + x.Written - proxies.Written) / gib / (1 << 30)
	}
	return s, nil
}

// benchProducers are a row's producers.
type benchProducers struct {
	row             benchRow
	rate            float64
	from, to        time.Time
	values          [][]byte
	clients         []*kgo.Client
	counted, failed atomic.Int64
	lat             latencies
}

func (p *benchProducers) open(seeds []string, topic string) error {
	for range p.row.Producers {
		cl, err := kgo.NewClient(append(clientOpts(seeds), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codecs(p.row.Codec)),
			kgo.ProducerLinger(0), kgo.MaxBufferedRecords(max(benchWindow/p.row.Record/p.row.Producers, 1)))...)
		if err != nil {
			return err
		}
		p.clients = append(p.clients, cl)
	}
	return nil
}

func (p *benchProducers) close() {
	for _, cl := range p.clients {
		cl.Close()
	}
}

// send is one producer's goroutine: it sends until sending ends.
func (p *benchProducers) send(ctx, sending context.Context, i int, cl *kgo.Client) {
	if p.rate == 0 {
		for n := i; sending.Err() == nil; n++ {
			p.one(ctx, cl, p.values[n%len(p.values)], time.Now())
		}
		return
	}
	each := time.Duration(float64(p.row.Producers) / p.rate * float64(time.Second))
	due := time.Now().Add(each * time.Duration(i) / time.Duration(p.row.Producers))
	pace := time.NewTimer(0)
	defer pace.Stop()
	for n := i; due.Before(p.to); n++ {
		pace.Reset(time.Until(due))
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
		value := slices.Clone(p.values[n%len(p.values)])
		binary.BigEndian.PutUint64(value, uint64(due.UnixNano()))
		p.one(ctx, cl, value, due)
		due = due.Add(each)
	}
}

// one sends a record that was due at a time: what it waited in the producer
// counts.
func (p *benchProducers) one(ctx context.Context, cl *kgo.Client, value []byte, due time.Time) {
	cl.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
		now := time.Now()
		counts := now
		if p.rate > 0 {
			counts = due
		}
		switch {
		case err != nil:
			p.failed.Add(1)
		case counts.After(p.from) && counts.Before(p.to):
			if n := p.counted.Add(1); p.rate > 0 || n%64 == 0 {
				p.lat.add(now.Sub(due))
			}
		}
	})
}

// fill sends values of so many bytes to a topic, and returns how many records
// that are.
func (k *contestant) fill(ctx context.Context, row benchRow, topic string, size int) (int64, error) {
	p := &benchProducers{row: row, values: benchValues(row)}
	defer p.close()
	if err := p.open(k.seeds, topic); err != nil {
		return 0, err
	}
	records := size / row.Record
	for n := range records {
		p.one(ctx, p.clients[n%len(p.clients)], p.values[n%len(p.values)], time.Now())
	}
	for _, cl := range p.clients {
		if err := cl.Flush(ctx); err != nil {
			return 0, err
		}
	}
	if n := p.failed.Load(); n > 0 {
		return 0, fmt.Errorf("%s: %d of %d records failed", k.name, n, records)
	}
	return int64(records), nil
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

// consume reads a topic from its start and returns MiB of values per second. What
// the first answer holds does not count: connections and metadata are not what
// is measured.
func consume(ctx context.Context, s benchSource, topic string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(append(append(clientOpts(s.seeds), s.opts...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	left := s.records - int64(cl.PollFetches(ctx).NumRecords())
	begin, size := time.Now(), int64(0)
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("%d of %d records are left: %w", left, s.records, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { left--; size += int64(len(r.Value)) })
	}
	if size == 0 {
		return 0, fmt.Errorf("the first answer held all %d records", s.records)
	}
	return float64(size) / (1 << 20) / time.Since(begin).Seconds(), nil
}

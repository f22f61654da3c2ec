//go:build e2e

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// benchBacklog is how much is read back.
const benchBacklog = 512 << 20

// benchSource is a way to read what a contestant has.
type benchSource struct {
	name    string
	seeds   []string
	opts    []kgo.Opt
	records int64
}

// reading reads the same backlog of one partition from one broker: a plain one,
// one behind a proxy, that one through a relay that knows nothing of Kafka, which
// is the least that any proxy costs on this machine, and through Lockstep.
func (b *bench) reading(rounds int) {
	row := benchRow{Partitions: 1, Record: 1024, Producers: 1, Codec: "none"}
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Minute)
	defer cancel()
	const topic = "bench-backlog"
	var sources []benchSource
	for _, k := range b.all {
		if err := k.topic(ctx, topic, row.Partitions); err != nil {
			b.t.Fatal(err)
		}
		records, err := k.fill(ctx, row, topic, benchBacklog)
		if err != nil {
			b.t.Fatal(err)
		}
		sources = append(sources, benchSource{name: k.name, seeds: k.seeds, records: records})
		if k.cluster != nil {
			addr := b.leaderBroker(ctx, k, topic)
			via := blindRelay(b.t, addr)
			dial := kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, via)
			})
			sources = append(sources, benchSource{name: k.name + " direct", seeds: []string{addr}, records: records},
				benchSource{name: k.name + " relay", seeds: []string{addr}, opts: []kgo.Opt{dial}, records: records})
		}
	}
	for round := range rounds {
		for i := range sources {
			s := sources[(i+round)%len(sources)]
			rate, err := consume(ctx, s, topic)
			if err != nil {
				b.t.Fatalf("read %s: %v", s.name, err)
			}
			b.t.Logf("round %d, read %s: %.0f MiB/s", round+1, s.name, rate)
			b.rep.Consume[s.name] = append(b.rep.Consume[s.name], rate)
		}
	}
}

// leaderBroker is the address of the broker of the node that leads partition 0.
func (b *bench) leaderBroker(ctx context.Context, k *contestant, topic string) string {
	b.t.Helper()
	leaders, err := partitionLeaders(ctx, k.cluster.node(1), topic, 1)
	if err != nil {
		b.t.Fatal(err)
	}
	return k.cluster.node(leaders[0]).broker.addr()
}

// tails has two consumers wait for the same records at the same time: one at the
// leader's broker, one at its proxy.
func (b *bench) tails(rounds int) {
	row := benchRow{Partitions: 1, Record: 1024, Producers: 1, Codec: "none", latency: true}
	for _, k := range b.all {
		if k.cluster == nil {
			continue
		}
		for round := range rounds {
			b.on(k, row.Partitions, func(ctx context.Context, topic string) {
				direct := *k
				direct.seeds = []string{b.leaderBroker(ctx, k, topic)}
				reading, stop := context.WithCancel(ctx)
				defer stop()
				var ages [2]latencies
				read := make(chan error, 2)
				for i, source := range []*contestant{k, &direct} {
					go func() { read <- source.tail(reading, topic, time.Now().Add(benchWarmUp), &ages[i]) }()
				}
				if _, err := k.produce(ctx, row, topic, b.span, 200); err != nil {
					b.t.Fatalf("tail of %s: %v", k.name, err)
				}
				stop()
				if err := errors.Join(<-read, <-read); err != nil {
					b.t.Fatalf("tail of %s: %v", k.name, err)
				}
				through, at := ages[0].at(0.5), ages[1].at(0.5)
				b.t.Logf("round %d, tail: %.2f ms through the proxy, %.2f ms at its broker", round+1, through, at)
				b.rep.Tail[k.name] = append(b.rep.Tail[k.name], through)
				b.rep.Tail[k.name+" direct"] = append(b.rep.Tail[k.name+" direct"], at)
			})
		}
	}
}

// blindRelay passes bytes on, between sockets within the kernel (splice).
func blindRelay(t *testing.T, to string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				conn.Close()
				continue
			}
			end := func() { conn.Close(); up.Close() }
			context.AfterFunc(ctx, end)
			wg.Go(func() { defer end(); _, _ = io.Copy(conn, up) })
			wg.Go(func() { defer end(); _, _ = io.Copy(up, conn) })
		}
	})
	return ln.Addr().String()
}

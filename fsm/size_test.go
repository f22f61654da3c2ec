package fsm

import (
	"fmt"
	"math/rand"
	"testing"
	"time"
)

// producersState is a group of partitions that each remember as many producers
// as they may, in random order and some hours old, with five batches each.
func producersState(t testing.TB, partitions int32) *Group {
	rnd := rand.New(rand.NewSource(1))
	g := NewGroup(1)
	numbers := make([]int32, partitions)
	for n := range numbers {
		numbers[n] = int32(n)
	}
	open := Open{Level: 1, Topic: 7, Name: "orders", Total: partitions, Partitions: numbers}
	if _, err := g.Apply(1, EncodeEntry(0, []Command{Control(KindOpen, open)})); err != nil {
		t.Fatal(err)
	}
	for _, p := range g.Partitions {
		clock := int64(0)
		for round := range int32(keptBatches) {
			for _, i := range rnd.Perm(MaxProducers) {
				clock += int64(rnd.Intn(200))
				p.append(makeBatch(batchSpec{pid: ClientProducerBase + int64(i), seq: round * 50, count: 50}), clock)
			}
		}
		g.ClockMs = max(g.ClockMs, clock)
		for len(p.Checkpoints) < MaxCheckpoints {
			p.mark(CheckpointBytes)
			p.append(makeBatch(batchSpec{}), clock)
		}
	}
	return g
}

// A snapshot is a manifest: what a partition can take at most is half a
// megabyte, whatever it holds.
func TestStateIsSmall(t *testing.T) {
	g := producersState(t, 1)
	p := g.Partitions[TP{7, 0}]
	if len(p.producers) != MaxProducers || len(p.Checkpoints) != MaxCheckpoints {
		t.Fatalf("%d producers, %d checkpoints", len(p.producers), len(p.Checkpoints))
	}
	for _, e := range p.producers {
		if n := len(e.Value.(*producer).kept); n != keptBatches {
			t.Fatalf("a producer with %d batches", n)
		}
	}
	start := time.Now()
	raw := g.Encode()
	encoded := time.Since(start)
	start = time.Now()
	if _, err := DecodeGroup(raw); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d producers with %d batches each and %d checkpoints: %d bytes, %.1f a producer; encoded in %v, decoded in %v",
		MaxProducers, keptBatches, MaxCheckpoints, len(raw), float64(len(raw))/MaxProducers, encoded, time.Since(start))
	if len(raw) > 512<<10 {
		t.Errorf("the state of one partition takes %d bytes", len(raw))
	}
	again(t, g)

	// Without producers a partition takes its checkpoints, and an open one
	// with nothing in it next to nothing.
	many := NewGroup(1)
	parts := make([]int32, 1000)
	for n := range parts {
		parts[n] = int32(n)
	}
	open := Control(KindOpen, Open{Level: 1, Topic: 7, Name: "orders", Total: 1000, Partitions: parts})
	if _, err := many.Apply(1, EncodeEntry(0, []Command{open})); err != nil {
		t.Fatal(err)
	}
	size := len(many.Encode())
	t.Logf("1000 empty partitions: %d bytes", size)
	if size > 64<<10 {
		t.Errorf("1000 empty partitions take %d bytes", size)
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, partitions := range []int32{1, 8} {
		b.Run(fmt.Sprint(int(partitions)*MaxProducers, " producers"), func(b *testing.B) {
			g := producersState(b, partitions)
			b.SetBytes(int64(len(g.Encode())))
			for b.Loop() {
				g.Encode()
			}
		})
	}
}

func BenchmarkDecodeGroup(b *testing.B) {
	for _, partitions := range []int32{1, 8} {
		b.Run(fmt.Sprint(int(partitions)*MaxProducers, " producers"), func(b *testing.B) {
			raw := producersState(b, partitions).Encode()
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				if _, err := DecodeGroup(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApply is what a batch costs the state machine: its checksum with the
// applier's identity, mostly.
func BenchmarkApply(b *testing.B) {
	m := openMachine(b)
	entry := EncodeEntry(1, []Command{AppendCommand(testTP, makeBatch(batchSpec{size: 16 << 10}))})
	b.SetBytes(int64(len(entry)))
	for b.Loop() {
		if _, err := m.Apply(m.Index+1, entry); err != nil {
			b.Fatal(err)
		}
	}
}

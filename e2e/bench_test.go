//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// benchRows are the rows that count. They span what decides how fast it goes:
// partitions, the size of a record, producers, compression.
var benchRows = []benchRow{
	{Name: "1 partition, 1 KiB, 1 producer", Partitions: 1, Record: 1024, Producers: 1, Codec: "none"},
	{Name: "1 partition, 100 B, 8 producers", Partitions: 1, Record: 100, Producers: 8, Codec: "none"},
	{Name: "6 partitions, 100 B, 1 producer", Partitions: 6, Record: 100, Producers: 1, Codec: "none"},
	{Name: "6 partitions, 100 B, 64 producers", Partitions: 6, Record: 100, Producers: 64, Codec: "none"},
	benchMain,
	{Name: "6 partitions, 1 KiB, 8 producers, lz4", Partitions: 6, Record: 1024, Producers: 8, Codec: "lz4"},
	{Name: "6 partitions, 10 KiB, 8 producers", Partitions: 6, Record: 10240, Producers: 8, Codec: "none"},
	{Name: "48 partitions, 100 B, 64 producers", Partitions: 48, Record: 100, Producers: 64, Codec: "none"},
	{Name: "48 partitions, 100 B, 8 producers, lz4", Partitions: 48, Record: 100, Producers: 8, Codec: "lz4"},
	{Name: "48 partitions, 1 KiB, 8 producers", Partitions: 48, Record: 1024, Producers: 8, Codec: "none"},
	{Name: "48 partitions, 10 KiB, 1 producer", Partitions: 48, Record: 10240, Producers: 1, Codec: "none"},
	{Name: "48 partitions, 10 KiB, 64 producers, zstd", Partitions: 48, Record: 10240, Producers: 64, Codec: "zstd"},
}

// benchMain is the row whose peak sets the rate at which latency is measured.
var benchMain = benchRow{Name: "6 partitions, 1 KiB, 8 producers", Partitions: 6, Record: 1024, Producers: 8, Codec: "none"}

// benchReport is what is kept of a run.
type benchReport struct {
	Commit, When, Machine string
	Rounds                int
	Seconds               float64
	Contestants           map[string]string
	Rows                  []string                       // in order
	Samples               map[string]map[string][]sample // by row and contestant
	Consume               map[string][]float64           // MiB/s by source
	Tail                  map[string][]float64           // median age in ms of a record at a waiting consumer, by source
	Latency               map[string]map[string][]sample // by rate and contestant
}

// TestBench measures Lockstep (b) beside one plain broker (a), a native cluster
// of three (c), and that cluster with an fsync for every append (d), which is what
// Lockstep promises. Rounds alternate between them, row by row. BENCH_ROUNDS (5),
// BENCH_SECONDS (4), BENCH_ROWS (a regular expression on the name), BENCH_ONLY
// (abcd), BENCH_MATRIX=1 (all combinations), BENCH_OUT (a directory for the
// result as JSON) and BENCH_TABLE (a file for the tables).
func TestBench(t *testing.T) {
	rounds, span := envInt(t, "BENCH_ROUNDS", 5), time.Duration(envInt(t, "BENCH_SECONDS", 4))*time.Second
	want := regexp.MustCompile(envOr("BENCH_ROWS", ""))
	rows := benchRows
	if os.Getenv("BENCH_MATRIX") != "" {
		rows = benchMatrix()
	}
	all := contestants(t)
	rep := &benchReport{Commit: commitHere(), When: time.Now().UTC().Format("2006-01-02 15:04"), Machine: machine(kafka(t)),
		Rounds: rounds, Seconds: span.Seconds(), Contestants: map[string]string{}, Samples: map[string]map[string][]sample{},
		Consume: map[string][]float64{}, Tail: map[string][]float64{}, Latency: map[string]map[string][]sample{}}
	for _, k := range all {
		rep.Contestants[k.name] = k.what
	}
	b := &bench{t: t, all: all, rep: rep, span: span}
	b.warmUp()
	for round := range rounds {
		for _, row := range rows {
			if want.MatchString(row.Name) {
				b.throughput(round, row)
			}
		}
	}
	b.latencies(rounds)
	if want.MatchString("consume") {
		b.reading(rounds)
		b.tails(rounds)
	}
	t.Logf("\n%s", rep.tables())
	rep.write(t)
}

// bench is a run. Its methods are called from the test goroutine only.
type bench struct {
	t      *testing.T
	all    []*contestant
	rep    *benchReport
	span   time.Duration
	topics int
}

// warmUp lets every broker's JVM compile what the rows need: in its first minute
// a broker takes half of what it takes later, and a slow contestant would pay for
// that over fewer bytes.
func (b *bench) warmUp() {
	for _, row := range []benchRow{benchMain, {Name: "small records", Partitions: 48, Record: 100, Producers: 64, Codec: "none"}} {
		for _, k := range b.all {
			b.on(k, row.Partitions, func(ctx context.Context, topic string) {
				s, err := k.produce(ctx, row, topic, 30*time.Second, 0)
				if err != nil {
					b.t.Fatalf("warm up %s: %v", k.name, err)
				}
				b.t.Logf("warm-up, %s: %.1f MiB/s", k.name, s.MiB)
			})
		}
	}
}

// throughput runs a row once at every contestant.
func (b *bench) throughput(round int, row benchRow) {
	if b.rep.Samples[row.Name] == nil {
		b.rep.Rows = append(b.rep.Rows, row.Name)
		b.rep.Samples[row.Name] = map[string][]sample{}
	}
	for _, k := range b.turn(round) {
		b.on(k, row.Partitions, func(ctx context.Context, topic string) {
			s, err := k.produce(ctx, row, topic, b.span, 0)
			if err != nil {
				b.t.Fatalf("%s, %s: %v", row.Name, k.name, err)
			}
			b.count(row.Name, k, s)
			b.rep.Samples[row.Name][k.name] = append(b.rep.Samples[row.Name][k.name], s)
			b.t.Logf("round %d, %s, %s: %.0f records/s, %.1f MiB/s, p50 %.1f ms, p99 %.1f ms, %d failed", round+1, row.Name, k.name, s.Records, s.MiB, s.P50, s.P99, s.Failed)
		})
	}
}

// latencies measures all contestants at the same rate, a third of what Lockstep
// takes at most.
func (b *bench) latencies(rounds int) {
	peak := b.rep.median(b.rep.Samples[benchMain.Name]["b"], func(s sample) float64 { return s.Records })
	if math.IsNaN(peak) {
		return
	}
	row := benchMain
	row.latency = true
	name := fmt.Sprintf("%s, at %.0f records/s", row.Name, peak/3)
	b.rep.Latency[name] = map[string][]sample{}
	for round := range rounds {
		for _, k := range b.turn(round) {
			b.on(k, row.Partitions, func(ctx context.Context, topic string) {
				reading, stop := context.WithCancel(ctx)
				defer stop()
				var ages latencies
				read := make(chan error, 1)
				go func() { read <- k.tail(reading, topic, time.Now().Add(benchWarmUp), &ages) }()
				s, err := k.produce(ctx, row, topic, b.span, peak/3)
				if err != nil {
					b.t.Fatalf("%s, %s: %v", name, k.name, err)
				}
				stop()
				if err := <-read; err != nil {
					b.t.Fatalf("%s, %s: read: %v", name, k.name, err)
				}
				b.count(name, k, s)
				s.End50, s.End99 = ages.at(0.5), ages.at(0.99)
				b.rep.Latency[name][k.name] = append(b.rep.Latency[name][k.name], s)
				b.t.Logf("round %d, %s, %s: %.0f records/s, p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms; at a consumer p50 %.2f ms, p99 %.2f ms; waits %+v",
					round+1, name, k.name, s.Records, s.P50, s.P99, s.P999, s.End50, s.End99, s.Waits)
			})
		}
	}
}

// turn is the order of a round: nobody always comes after the same other.
func (b *bench) turn(round int) []*contestant {
	n := round % len(b.all)
	return append(slices.Clone(b.all[n:]), b.all[:n]...)
}

// count fails the run for records that were not taken.
func (b *bench) count(row string, k *contestant, s sample) {
	if s.Failed > 0 {
		b.t.Errorf("%s, %s: %d records failed", row, k.name, s.Failed)
	}
}

// on runs f with a new topic. What others left to be written back is written
// first, so that nobody pays for it.
func (b *bench) on(k *contestant, partitions int, f func(ctx context.Context, topic string)) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Minute)
	defer cancel()
	b.topics++
	topic := fmt.Sprintf("bench-%d", b.topics)
	if err := k.topic(ctx, topic, partitions); err != nil {
		b.t.Fatal(err)
	}
	syscall.Sync()
	f(ctx, topic)
	if k.cluster != nil { // what was measured is what was to be kept
		k.cluster.verify()
	}
	k.drop(ctx, topic)
}

func benchMatrix() (rows []benchRow) {
	for _, partitions := range []int{1, 6, 48} {
		for _, record := range []int{100, 1024, 10240} {
			for _, producers := range []int{1, 8, 64} {
				for _, codec := range []string{"none", "lz4"} {
					name := fmt.Sprintf("%d partitions, %d B, %d producers, %s", partitions, record, producers, codec)
					if partitions == 6 && record == 1024 && producers == 8 && codec == "none" {
						name = benchMain.Name
					}
					rows = append(rows, benchRow{Name: name, Partitions: partitions, Record: record, Producers: producers, Codec: codec})
				}
			}
		}
	}
	return rows
}

func commitHere() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// machine says what the figures were measured on.
func machine(k *kafkaDist) string {
	var fs syscall.Statfs_t
	kind := "another file system"
	if err := syscall.Statfs(envOr("E2E_DIR", os.TempDir()), &fs); err == nil {
		kind = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x01021994: "tmpfs", 0x9123683e: "btrfs"}[int64(fs.Type)]
	}
	memory := 0
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		_, _ = fmt.Sscanf(string(raw), "MemTotal: %d kB", &memory)
	}
	return fmt.Sprintf("%d cores, %d GiB, %s, %s, Apache Kafka %s", runtime.NumCPU(), memory>>20, kind, runtime.Version(), k.version)
}

// write keeps the report.
func (r *benchReport) write(t *testing.T) {
	if dir := os.Getenv("BENCH_OUT"); dir != "" {
		raw, err := json.MarshalIndent(r, "", " ")
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		if err == nil {
			name := strings.NewReplacer(" ", "-", ":", "").Replace(r.When) + ".json"
			err = os.WriteFile(filepath.Join(dir, name), append(raw, '\n'), 0o644)
		}
		if err != nil {
			t.Errorf("keep the result: %v", err)
		}
	}
	if path := os.Getenv("BENCH_TABLE"); path != "" {
		if err := replaceBetween(path, benchBegin, benchEnd, r.tables()); err != nil {
			t.Errorf("write the tables: %v", err)
		}
	}
}

func (r *benchReport) median(samples []sample, f func(sample) float64) float64 {
	var vs []float64
	for _, s := range samples {
		vs = append(vs, f(s))
	}
	return medianOf(vs)
}

// medianOf is NaN for nothing.
func medianOf(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(vs))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

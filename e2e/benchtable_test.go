//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

// The tables of docs/performance.md stand between these lines.
const (
	benchBegin = "<!-- make bench writes from here -->"
	benchEnd   = "<!-- to here -->"
)

// tables are the medians of a run, in Markdown: absolute figures of Lockstep and
// of the others, and the ratios.
func (r *benchReport) tables() string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s, commit %s. %s. Medians of %d alternating rounds of %.0f s.\n\n", r.When, r.Commit, r.Machine, r.Rounds, r.Seconds)
	for _, name := range []string{"a", "b", "c", "d"} {
		if what, ok := r.Contestants[name]; ok {
			fmt.Fprintf(&w, "- **%s**: %s\n", name, what)
		}
	}
	w.WriteString("\n| produce, MiB/s of values | a | b | c | d | b/a | b/c | b/d |\n|---|---|---|---|---|---|---|---|\n")
	ratios := map[string][]float64{}
	for _, row := range r.Rows {
		m := r.medians(r.Samples[row], func(s sample) float64 { return s.MiB })
		fmt.Fprintf(&w, "| %s | %s |", row, figures(m, "%.1f", "a", "b", "c", "d"))
		for _, other := range []string{"a", "c", "d"} {
			ratio := m["b"] / m[other]
			ratios[other] = append(ratios[other], ratio)
			fmt.Fprintf(&w, " %s |", figure(ratio, "%.2f"))
		}
		w.WriteString("\n")
	}
	fmt.Fprintf(&w, "| median row | | | | | %s | %s | %s |\n", figure(medianOf(ratios["a"]), "%.2f"), figure(medianOf(ratios["c"]), "%.2f"), figure(medianOf(ratios["d"]), "%.2f"))
	r.costs(&w)
	r.reads(&w)
	for name, by := range r.Latency {
		fmt.Fprintf(&w, "\n| latency, ms: %s | a | b | c | d |\n|---|---|---|---|---|\n", name)
		for _, what := range []struct {
			name string
			of   func(sample) float64
		}{
			{"produce p50", func(s sample) float64 { return s.P50 }}, {"produce p99", func(s sample) float64 { return s.P99 }},
			{"produce p99.9", func(s sample) float64 { return s.P999 }}, {"at a consumer, p50", func(s sample) float64 { return s.End50 }},
			{"at a consumer, p99", func(s sample) float64 { return s.End99 }}, {"records/s", func(s sample) float64 { return s.Records }},
		} {
			fmt.Fprintf(&w, "| %s | %s |\n", what.name, figures(r.medians(by, what.of), "%.2f", "a", "b", "c", "d"))
		}
		r.whereItWaits(&w, by)
	}
	return w.String()
}

// whereItWaits adds to the latencies what the processes waited for.
func (r *benchReport) whereItWaits(w *strings.Builder, by map[string][]sample) {
	of := map[string]func(sample) float64{
		"cores used by its brokers":                func(s sample) float64 { return s.Waits.Brokers },
		"cores used by its proxies":                func(s sample) float64 { return s.Waits.Proxies },
		"cores busy, whole machine":                func(s sample) float64 { return s.Waits.BusyCores },
		"share of time, a task has no core":        func(s sample) float64 { return s.Waits.CPUPressure },
		"share of time, a task waits for the disk": func(s sample) float64 { return s.Waits.IOPressure },
		"tasks of the contestant without a core":   func(s sample) float64 { return s.Waits.Runqueue },
	}
	for _, stage := range stageNames {
		of["p50 of "+stage] = func(s sample) float64 { return s.Waits.P50[stage] }
		of["p99 of "+stage] = func(s sample) float64 { return s.Waits.P99[stage] }
	}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(w, "| %s | %s |\n", name, figures(r.medians(by, of[name]), "%.2f", "a", "b", "c", "d"))
	}
}

// costs are of the main row.
func (r *benchReport) costs(w *strings.Builder) {
	by := r.Samples[benchMain.Name]
	if by == nil {
		return
	}
	fmt.Fprintf(w, "\n| %s | a | b | c | d |\n|---|---|---|---|---|\n", benchMain.Name)
	for _, what := range []struct {
		name, format string
		of           func(sample) float64
	}{
		{"CPU seconds per GiB, brokers", "%.1f", func(s sample) float64 { return s.CPUBrokers }},
		{"CPU seconds per GiB, proxies", "%.1f", func(s sample) float64 { return s.CPUProxies }},
		{"bytes written per byte, all nodes", "%.1f", func(s sample) float64 { return s.Written }},
		{"largest proxy, MiB", "%.0f", func(s sample) float64 { return s.PeakMiB }},
		{"p50 at full load, ms", "%.1f", func(s sample) float64 { return s.P50 }},
		{"p99 at full load, ms", "%.1f", func(s sample) float64 { return s.P99 }},
	} {
		fmt.Fprintf(w, "| %s | %s |\n", what.name, figures(r.medians(by, what.of), what.format, "a", "b", "c", "d"))
	}
}

// reads are of one backlog each.
func (r *benchReport) reads(w *strings.Builder) {
	if len(r.Consume) == 0 {
		return
	}
	m := map[string]float64{}
	for name, vs := range r.Consume {
		m[name] = medianOf(vs)
	}
	w.WriteString("\n| consume, one partition, 1 KiB | a | b's broker | through a blind relay | through its proxy | c | d | proxy / broker | relay / broker |\n|---|---|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(w, "| MiB/s of values | %s | %s | %s |\n", figures(m, "%.0f", "a", "b direct", "b relay", "b", "c", "d"),
		figure(m["b"]/m["b direct"], "%.2f"), figure(m["b relay"]/m["b direct"], "%.2f"))
	through, at := medianOf(r.Tail["b"]), medianOf(r.Tail["b direct"])
	fmt.Fprintf(w, "\nA record at a consumer that waits for it, 200 records/s, p50: %s ms at the leader's broker, %s ms at its proxy: %s ms more.\n",
		figure(at, "%.2f"), figure(through, "%.2f"), figure(through-at, "%.2f"))
}

func (r *benchReport) medians(by map[string][]sample, of func(sample) float64) map[string]float64 {
	m := map[string]float64{}
	for name, samples := range by {
		m[name] = r.median(samples, of)
	}
	return m
}

func figures(m map[string]float64, format string, names ...string) string {
	var out []string
	for _, name := range names {
		v, ok := m[name]
		if !ok {
			v = math.NaN()
		}
		out = append(out, figure(v, format))
	}
	return strings.Join(out, " | ")
}

func figure(v float64, format string) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "–"
	}
	return fmt.Sprintf(format, v)
}

// replaceBetween puts text between two lines of a file.
func replaceBetween(path, begin, end, text string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", path, begin, end)
	}
	return os.WriteFile(path, []byte(before+begin+"\n\n"+strings.TrimSpace(text)+"\n\n"+end+after), 0o644)
}

// TestBenchTables: the arithmetic of the tables, without a broker.
func TestBenchTables(t *testing.T) {
	r := &benchReport{Rounds: 3, Contestants: map[string]string{"b": "Lockstep", "d": "native"}, Rows: []string{"row"},
		Samples: map[string]map[string][]sample{"row": {"b": {{MiB: 30}, {MiB: 10}, {MiB: 20}}, "d": {{MiB: 10}, {MiB: 8}, {MiB: 12}}}}}
	got := r.tables()
	for _, want := range []string{"| row | – | 20.0 | – | 10.0 | – | – | 2.00 |", "| median row | | | | | – | – | 2.00 |"} {
		if !slices.Contains(strings.Split(got, "\n"), want) {
			t.Errorf("%q is not a line of\n%s", want, got)
		}
	}
}

//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// waits say where the time of a run went: for what a contestant's processes
// waited, and for Lockstep how long a Produce was in which stage.
type waits struct {
	BusyCores   float64            // of the whole machine
	Brokers     float64            // cores that the contestant's brokers use
	Proxies     float64            // and its proxies
	CPUPressure float64            // share of the time in which a task of the machine waited for a core
	IOPressure  float64            // the same for the disk
	Runqueue    float64            // seconds per second that all tasks of the contestant waited for a core
	P50, P99    map[string]float64 // milliseconds, by stage
}

// stageNames are the parts of a Produce as a leader's proxy counts them.
var stageNames = []string{"queue", "commit", "visible"}

// probe is what is read before and after.
type probe struct {
	at       time.Time
	busy     float64 // seconds of all cores
	cpu, io  float64 // seconds in which some task waited
	runqueue float64
	brokers  float64 // seconds of cores
	proxies  float64
	stages   map[string]map[float64]float64 // cumulative counts by upper bound
}

func (k *contestant) probe() probe {
	p := probe{at: time.Now(), busy: busySeconds(), cpu: pressure("cpu"), io: pressure("io"), stages: map[string]map[float64]float64{},
		brokers: used(k.brokers).CPU, proxies: used(k.proxies).CPU}
	for _, proc := range append(slices.Clone(k.brokers), k.proxies...) {
		p.runqueue += runqueueSeconds(proc.pid)
	}
	if k.cluster != nil {
		for _, n := range k.cluster.nodes {
			stageCounts("http://"+n.adminAddr()+"/metrics", p.stages)
		}
	}
	return p
}

func (p probe) until(q probe) waits {
	span := q.at.Sub(p.at).Seconds()
	w := waits{BusyCores: (q.busy - p.busy) / span, CPUPressure: (q.cpu - p.cpu) / span, IOPressure: (q.io - p.io) / span,
		Brokers: (q.brokers - p.brokers) / span, Proxies: (q.proxies - p.proxies) / span, Runqueue: (q.runqueue - p.runqueue) / span, P50: map[string]float64{}, P99: map[string]float64{}}
	for name, after := range q.stages {
		counts := map[float64]float64{}
		for bound, n := range after {
			counts[bound] = n - p.stages[name][bound]
		}
		w.P50[name], w.P99[name] = 1000*bucketQuantile(0.5, counts), 1000*bucketQuantile(0.99, counts)
	}
	return w
}

// bucketQuantile interpolates within the bucket, as Prometheus does.
func bucketQuantile(q float64, counts map[float64]float64) float64 {
	bounds := make([]float64, 0, len(counts))
	var total float64
	for b, n := range counts {
		bounds = append(bounds, b)
		total = max(total, n)
	}
	slices.Sort(bounds)
	var lower, below float64
	for _, b := range bounds {
		if n := counts[b]; n >= q*total && n > below {
			return lower + (b-lower)*(q*total-below)/(n-below)
		}
		lower, below = b, counts[b]
	}
	return lower
}

// stageCounts adds the buckets of one proxy's produce stages.
func stageCounts(url string, to map[string]map[float64]float64) {
	resp, err := adminClient.Get(url)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		for _, stage := range stageNames {
			rest, ok := strings.CutPrefix(lines.Text(), "lockstep_produce_"+stage+`_seconds_bucket{le="`)
			if !ok {
				continue
			}
			bound, count, _ := strings.Cut(rest, `"} `)
			b, err := strconv.ParseFloat(bound, 64)
			n, err2 := strconv.ParseFloat(count, 64)
			if err != nil || err2 != nil {
				continue
			}
			if to[stage] == nil {
				to[stage] = map[float64]float64{}
			}
			to[stage][b] += n
		}
	}
}

// busySeconds are the seconds that all cores were not idle (proc(5), stat).
func busySeconds() (s float64) {
	raw, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(raw), "\n")
	for i, f := range strings.Fields(line) {
		if v, err := strconv.ParseFloat(f, 64); err == nil && i != 4 && i != 5 && i < 9 { // idle, iowait; guests are in user
			s += v / 100
		}
	}
	return s
}

// pressure is how long some task of the machine waited for a resource, in
// seconds (Linux, Documentation/accounting/psi.rst); 0 where the kernel does not count it.
func pressure(of string) float64 {
	raw, _ := os.ReadFile("/proc/pressure/" + of)
	for line := range strings.Lines(string(raw)) {
		var a10, a60, a300, total float64
		if n, _ := fmt.Sscanf(line, "some avg10=%g avg60=%g avg300=%g total=%g", &a10, &a60, &a300, &total); n == 4 {
			return total / 1e6
		}
	}
	return 0
}

// runqueueSeconds is how long a process's tasks could run and had no core
// (Linux, Documentation/scheduler/sched-stats.rst).
func runqueueSeconds(pid int) (s float64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, path := range tasks {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // the task has ended
		}
		if f := strings.Fields(string(raw)); len(f) == 3 {
			v, _ := strconv.ParseFloat(f[1], 64)
			s += v / 1e9
		}
	}
	return s
}

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// chaosConfig is what decides a run, but for the interleaving.
type chaosConfig struct {
	Seed     uint64        `json:"seed"`
	Duration time.Duration `json:"duration"`
	Broker   string        `json:"broker"` // embedded or kafka
	Steps    []step        `json:"steps"`
}

func chaosFromEnv(t *testing.T) (cfg chaosConfig) {
	t.Helper()
	if path := os.Getenv("CHAOS_SCHEDULE"); path != "" {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(raw, &cfg)
		}
		if err != nil {
			t.Fatalf("CHAOS_SCHEDULE: %v", err)
		}
		return cfg
	}
	cfg.Seed, cfg.Broker = uint64(time.Now().UnixNano()%1_000_000), envOr("CHAOS_BROKER", "embedded")
	var err error
	if s := os.Getenv("CHAOS_SEED"); s != "" {
		if cfg.Seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED=%q: want a number: %v", s, err)
		}
	}
	if cfg.Duration, err = time.ParseDuration(envOr("CHAOS_DURATION", "60s")); err != nil {
		t.Fatalf("CHAOS_DURATION: %v", err)
	}
	if cfg.Broker != "embedded" && cfg.Broker != "kafka" {
		t.Fatalf("CHAOS_BROKER=%q: want embedded or kafka", cfg.Broker)
	}
	cfg.Steps = chaosSchedule(cfg)
	return cfg
}

// chaosSchedule draws faults of 2 to 7 s. A third begin before the one before
// is over; one in ten lasts until the end, but none that takes all nodes. Every kind comes once before any
// comes again.
func chaosSchedule(cfg chaosConfig) (steps []step) {
	rnd := rand.New(rand.NewPCG(cfg.Seed, 1))
	var kinds []string
	for at := 2 * time.Second; ; {
		if len(kinds) == 0 {
			for _, i := range rnd.Perm(len(chaosKinds)) {
				if k := chaosKinds[i]; !k.kafkaOnly || cfg.Broker == "kafka" {
					kinds = append(kinds, k.name)
				}
			}
		}
		if k := chaosKindOf(kinds[0]); k.once && slices.ContainsFunc(steps, func(s step) bool { return s.Kind == k.name }) {
			kinds = kinds[1:]
			continue
		}
		s := step{At: at, Kind: kinds[0], Lasts: 2*time.Second + time.Duration(rnd.IntN(5000))*time.Millisecond}
		if kinds = kinds[1:]; at+s.Lasts > cfg.Duration {
			return steps
		}
		s.Target = fmt.Sprintf("node:%d", 1+rnd.IntN(3))
		if rnd.IntN(2) == 0 {
			s.Target = fmt.Sprintf("leader:%d", rnd.IntN(3))
		}
		switch pause := time.Duration(1000+rnd.IntN(3000)) * time.Millisecond; {
		case rnd.IntN(10) == 0 && at > cfg.Duration*3/4 && !chaosKindOf(s.Kind).everyNode:
			s.Lasts = 0
			at += pause
		case rnd.IntN(3) == 0:
			at += s.Lasts / 2
		default:
			at += s.Lasts + pause
		}
		steps = append(steps, s)
	}
}

// TestChaosSchedule: the same seed gives the same faults, another one others;
// all lie within the time, and a minute brings many kinds.
func TestChaosSchedule(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(50) {
		cfg := chaosConfig{Seed: seed, Duration: time.Minute, Broker: "embedded"}
		a, b := chaosSchedule(cfg), chaosSchedule(cfg)
		if !slices.Equal(a, b) {
			t.Fatalf("seed %d gives two schedules", seed)
		}
		raw, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(raw)] {
			t.Errorf("seed %d gives the schedule of another", seed)
		}
		seen[string(raw)] = true
		if len(a) < 6 {
			t.Errorf("seed %d gives %d faults in a minute", seed, len(a))
		}
		for _, s := range a {
			k := chaosKindOf(s.Kind)
			if k == nil || k.kafkaOnly || s.At+s.Lasts > cfg.Duration {
				t.Errorf("seed %d: %+v", seed, s)
			}
		}
	}
}

// smallest takes parts out of a list as long as what is left still fails
// (delta debugging, from halves to single elements).
func smallest[E any](list []E, fails func([]E) bool) []E {
	for size := (len(list) + 1) / 2; size >= 1; {
		took := false
		for from := 0; from < len(list); {
			rest := append(slices.Clone(list[:from]), list[min(len(list), from+size):]...)
			if fails(rest) {
				list, took = rest, true
			} else {
				from += size
			}
		}
		if !took || size == 1 {
			size /= 2
		}
	}
	return list
}

// TestSmallest: what is left is what it takes to fail.
func TestSmallest(t *testing.T) {
	for _, guilty := range [][]int{{0}, {9}, {3, 4}, {0, 5, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}} {
		runs := 0
		got := smallest([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, func(rest []int) bool {
			runs++
			return !slices.ContainsFunc(guilty, func(g int) bool { return !slices.Contains(rest, g) })
		})
		if !slices.Equal(got, guilty) {
			t.Errorf("of %v %v is left", guilty, got)
		}
		if runs > 100 {
			t.Errorf("%d runs for %v", runs, guilty)
		}
	}
}

// TestChaosScheduleEnds: nothing that takes all nodes lasts until the end, for
// nothing could come after it.
func TestChaosScheduleEnds(t *testing.T) {
	untilEnd := 0
	for seed := range uint64(500) {
		for _, s := range chaosSchedule(chaosConfig{Seed: seed, Duration: 2 * time.Minute, Broker: "kafka"}) {
			if s.Lasts > 0 {
				continue
			}
			untilEnd++
			if chaosKindOf(s.Kind).everyNode {
				t.Errorf("seed %d: %+v", seed, s)
			}
		}
	}
	if untilEnd == 0 {
		t.Error("no fault lasts until the end")
	}
}

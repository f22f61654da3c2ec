package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"lockstep/configs"
)

// However much is logged, the newest lines are held, whole, in order, and no more
// of them than there is room for.
func TestRecentLogIsBounded(t *testing.T) {
	t.Parallel()
	for _, format := range []string{configs.LogFormatText, configs.LogFormatJSON} {
		r := new(recentLog)
		log := newLogger(configs.Log{Level: "info", Format: format}, r.tee(io.Discard))
		const lines = 30_000
		for i := range lines {
			log.Info("something happened", "number", i, "what", strings.Repeat("x", i%200))
			log.Debug("nobody asked", "number", -1)
		}
		held := r.lines()
		if len(held) > recentLogBytes || len(held) < recentLogBytes/2-1000 {
			t.Errorf("%s: %d bytes are held", format, len(held))
		}
		if room := cap(r.old) + cap(r.now); room > 2*recentLogBytes {
			t.Errorf("%s: they take %d bytes", format, room)
		}
		all := strings.Split(strings.TrimSuffix(string(held), "\n"), "\n")
		for i, line := range all {
			if want := numbered(format, lines-len(all)+i); !strings.Contains(line, want) || !strings.Contains(line, "something happened") {
				t.Fatalf("%s: line %d of %d has no %s: %.200s", format, i, len(all), want, line)
			}
			if format == configs.LogFormatJSON && !json.Valid([]byte(line)) {
				t.Fatalf("no JSON: %.200s", line)
			}
		}
	}
}

func numbered(format string, n int) string {
	if format == configs.LogFormatJSON {
		return fmt.Sprintf(`"number":%d,`, n)
	}
	return fmt.Sprintf("number=%d ", n)
}

func TestRecentLogOfFewAndOfHugeLines(t *testing.T) {
	t.Parallel()
	r := new(recentLog)
	if len(r.lines()) != 0 {
		t.Error("something is held before anything was logged")
	}
	var out bytes.Buffer
	w := r.tee(&out)
	huge := strings.Repeat("y", 3*recentLogBytes) + "\n"
	for _, s := range []string{"first\n", huge, "last\n"} {
		if n, err := io.WriteString(w, s); n != len(s) || err != nil {
			t.Fatalf("%d of %d bytes written: %v", n, len(s), err)
		}
	}
	held := string(r.lines())
	if len(held) > recentLogBytes || !strings.HasSuffix(held, "y\nlast\n") {
		t.Errorf("%d bytes are held, the end is %q", len(held), held[len(held)-10:])
	}
	if out.String() != "first\n"+huge+"last\n" {
		t.Error("the log itself was cut")
	}
}

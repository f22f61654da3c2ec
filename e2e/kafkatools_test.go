//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// toolAck is one acknowledgement as org.apache.kafka.tools.VerifiableProducer
// prints it.
type toolAck struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// parseAcks takes the acknowledgements out of the producer's output, one JSON
// object a line, and counts the failures it reports.
func parseAcks(out string) (acks []toolAck, failed int, err error) {
	for line := range strings.Lines(out) {
		var a toolAck
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, 0, fmt.Errorf("read producer output %q: %w", line, err)
		}
		switch a.Name {
		case "producer_send_success":
			acks = append(acks, a)
		case "producer_send_error":
			failed++
		}
	}
	return acks, failed, nil
}

// verifiableProducer sends count numbered records with acks=all and returns
// their acknowledgements; anything but one for each fails the test.
func verifiableProducer(t *testing.T, ctx context.Context, dir, addr, topic string, count int) []toolAck {
	t.Helper()
	out, err := kafka(t).tool(ctx, dir, "org.apache.kafka.tools.VerifiableProducer",
		"--bootstrap-server", addr, "--topic", topic, "--max-messages", fmt.Sprint(count), "--acks", "-1",
		"--command-config", idempotentConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	acks, failed, err := parseAcks(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(acks) != count || failed > 0 {
		t.Fatalf("verifiable producer: %d acknowledged and %d failed, want all %d acknowledged\n%s",
			len(acks), failed, count, lastBytes(out, 2000))
	}
	return acks
}

// acksAt returns an error unless every acknowledged record stands in d at the
// offset the producer was told.
func acksAt(acks []toolAck, d dump) error {
	for _, a := range acks {
		records := d[a.Partition]
		if a.Offset < 0 || a.Offset >= int64(len(records)) {
			return fmt.Errorf("record %q was acknowledged at %d/%d, which holds %d records", a.Value, a.Partition, a.Offset, len(records))
		}
		if got := records[a.Offset]; got.offset != a.Offset || got.value != a.Value {
			return fmt.Errorf("record %q was acknowledged at %d/%d, where %+v stands", a.Value, a.Partition, a.Offset, got)
		}
	}
	return nil
}

// lines collects the lines that a running child prints and wakes who waits.
type lines struct {
	mu      sync.Mutex
	partial []byte
	all     []string
	changed chan struct{} // closed and replaced when a line was added
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

// Write implements io.Writer for exec.Cmd, which calls it from one goroutine.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, b...)
	for {
		i := bytes.IndexByte(l.partial, '\n')
		if i < 0 {
			return len(b), nil
		}
		l.all = append(l.all, string(l.partial[:i]))
		l.partial = l.partial[i+1:]
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// snapshot returns the lines so far.
func (l *lines) snapshot() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[:len(l.all):len(l.all)]
}

// waitFor returns when ok holds of the lines so far, or when ctx ends.
func (l *lines) waitFor(ctx context.Context, ok func([]string) bool) error {
	for {
		l.mu.Lock()
		all, changed := l.all[:len(l.all):len(l.all)], l.changed
		l.mu.Unlock()
		if ok(all) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// text returns all complete lines, each with its newline.
func (l *lines) text() string {
	all := l.snapshot()
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all, "\n") + "\n"
}

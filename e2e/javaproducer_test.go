//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// javaProducer is Kafka's verifiable producer running beside a test: numbered
// records, idempotent, acks=all.
type javaProducer struct {
	proc   *process
	stdout *lines
	stderr *lines
}

// idempotentConfig writes a producer configuration for the verifiable producer,
// whose own default is to retry nothing: it would report every record that a
// planned change of leader touched as failed.
func idempotentConfig(t *testing.T, dir string, more ...string) string {
	t.Helper()
	path := filepath.Join(dir, "java-producer.properties")
	if err := os.WriteFile(path, []byte(strings.Join(append([]string{
		"enable.idempotence=true", "retries=2147483647", "delivery.timeout.ms=120000",
		"request.timeout.ms=10000", "retry.backoff.ms=50", "reconnect.backoff.ms=50", "reconnect.backoff.max.ms=200",
	}, more...), "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// startJavaProducer sends rate records a second until stop. It may have settings
// beside the usual.
func startJavaProducer(t *testing.T, dir string, bootstrap []string, topic string, rate int, more ...string) *javaProducer {
	t.Helper()
	j := &javaProducer{stdout: newLines(), stderr: newLines()}
	var err error
	j.proc, err = kafka(t).startJava(dir, "org.apache.kafka.tools.VerifiableProducer", j.stdout, j.stderr,
		"--bootstrap-server", strings.Join(bootstrap, ","), "--topic", topic, "--acks", "-1",
		"--throughput", fmt.Sprint(rate), "--command-config", idempotentConfig(t, dir, more...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.proc.kill9(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err = j.stdout.waitFor(ctx, func(all []string) bool { return len(all) > 100 || j.proc.exited() })
	if err != nil || j.proc.exited() {
		t.Fatalf("verifiable producer does not get going: %v\n%s", err, lastBytes(j.stderr.text()+j.stdout.text(), 3000))
	}
	return j
}

// stop ends the producer, which sends off what it holds, and returns what was
// acknowledged. A producer that cannot get rid of its records fails the test.
func (j *javaProducer) stop(t *testing.T) []toolAck {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := j.proc.stop(ctx); err != nil {
		t.Errorf("the verifiable producer has records that are never acknowledged: %v", err)
	}
	acks, failed, err := parseAcks(j.stdout.text())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("verifiable producer: %d records acknowledged, %d failed", len(acks), failed)
	if failed > 0 {
		t.Errorf("verifiable producer: %d records failed in spite of retries\n%s", failed, lastBytes(j.stderr.text(), 2000))
	}
	return acks
}

// checkJava holds the verifiable producer's acknowledgements against each
// broker: every record at its offset, no value twice.
func checkJava(t *testing.T, acks []toolAck, dumps map[int]dump) {
	t.Helper()
	for id, d := range dumps {
		if err := acksAt(acks, d); err != nil {
			t.Errorf("verifiable producer, broker of node %d: %v", id, err)
		}
		seen := map[string]bool{}
		for p, records := range d {
			for _, r := range records {
				if seen[r.value] {
					t.Errorf("verifiable producer, broker of node %d: value %s stands twice, again at %d/%d", id, r.value, p, r.offset)
				}
				seen[r.value] = true
			}
		}
	}
}

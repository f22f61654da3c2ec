//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCompat runs every client against every feature through the proxies of
// three real brokers, looks for itself whether it worked, and makes the table
// of docs/compat.md. A feature that does not work must be a known gap, and a
// known gap that works must be taken off the list.
//
// Environment: COMPAT_QUICK=1 (the features of the quick form), COMPAT_ONLY (a
// regular expression on "client/feature"), COMPAT_TABLE (a file for the table,
// written by a complete run only, whatever its outcome).
func TestCompat(t *testing.T) {
	quick, only := os.Getenv("COMPAT_QUICK") == "1", regexp.MustCompile(os.Getenv("COMPAT_ONLY"))
	begin, commit := time.Now(), productCommit()
	dir := runDir(t)
	clients := setUpClients(t, dir)
	t.Logf("%d clients ready after %s", len(clients), time.Since(begin).Round(time.Second))
	c := newCluster(t)
	shared, err := produceShared(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}

	table := newCompatTable(clients, compatFeatures)
	tools := newCompatTable([]*compatClient{{name: "Apache Kafka", version: kafka(t).version}}, compatTools)
	var runs []*compatRun
	for _, cl := range clients {
		r := &compatRun{c: c, cl: cl, s: &session{cl: cl}, shared: shared}
		t.Cleanup(func() {
			if err := r.s.close(); err != nil {
				t.Error(err)
			}
		})
		runs = append(runs, r)
	}
	wanted := func(cl *compatClient, f *compatFeature) bool {
		return (f.quick || !quick) && only.MatchString(cl.id()+"/"+f.name)
	}
	// What kills nodes runs alone; the rest waits most of its time, so three
	// clients share the machine.
	var wg sync.WaitGroup
	slots := make(chan struct{}, 3)
	for _, r := range runs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for _, f := range compatFeatures {
				if wanted(r.cl, f) && !f.kills {
					r.one(t, table, f)
				}
			}
		})
	}
	wg.Go(func() {
		r := &compatRun{c: c, cl: tools.clients[0], shared: shared}
		for _, f := range compatTools {
			if wanted(r.cl, f) {
				r.one(t, tools, f)
			}
		}
	})
	wg.Wait()
	round := 0
	for some := range slices.Chunk(runs, 3) {
		throughAKill(t, c, table, round%len(c.nodes)+1, some, wanted)
		round++
	}
	table.judge(t)
	tools.judge(t)
	t.Logf("%s, in %s\n%s\n%s", table.count(), time.Since(begin).Round(time.Second), table.markdown(), tools.markdown())
	if path := os.Getenv("COMPAT_TABLE"); path != "" && !quick && os.Getenv("COMPAT_ONLY") == "" {
		if err := os.WriteFile(path, []byte(compatDocument(commit, table, tools)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// compatRun is one client's way through the features; it belongs to one
// goroutine at a time.
type compatRun struct {
	c      *cluster
	cl     *compatClient
	s      *session
	shared []fullRecord  // what stands in sharedTopic
	ticket *compatTicket // of the kill that a feature waits for
}

// compatFeature is one row of the table. run returns nil when it worked, by the
// brokers' own word; errClientCannot when the client has no such thing.
type compatFeature struct {
	name  string
	quick bool
	kills bool // takes a node away for a while
	group bool // with kills: about a group, not about a partition
	run   func(ctx context.Context, r *compatRun) error
}

func (r *compatRun) one(t *testing.T, table *compatTable, f *compatFeature) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	begin := time.Now()
	err := f.run(ctx, r)
	table.set(r.cl, f, err)
	said := "works"
	if err != nil {
		said = "fails: " + err.Error()
	}
	if errors.Is(err, errClientCannot) {
		said = err.Error()
	}
	t.Logf("%s, %s (%s): %s", r.cl.id(), f.name, time.Since(begin).Round(100*time.Millisecond), said)
}

// topic is a name of this client's own.
func (r *compatRun) topic(what string) string {
	return strings.ReplaceAll(r.cl.name, " ", "") + "." + strings.SplitN(r.cl.version, " ", 2)[0] + "." + what
}

// withTopic has a topic created by other means than the client's.
func (r *compatRun) withTopic(ctx context.Context, what string, partitions int32, config ...string) (string, error) {
	topic := r.topic(what)
	if err := createConfigured(ctx, r.c.node(1).kafkaAddr(), topic, partitions, config...); err != nil {
		return "", err
	}
	return topic, r.led(ctx, topic, partitions)
}

// led returns when every proxy announces leaders for exactly these partitions.
func (r *compatRun) led(ctx context.Context, topic string, partitions int32) error {
	return soon(ctx, 30*time.Second, func(ctx context.Context) error {
		for _, n := range r.c.nodes {
			if _, err := partitionLeaders(ctx, n, topic, partitions); err != nil {
				return err
			}
		}
		return nil
	})
}

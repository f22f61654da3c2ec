//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// scaleCase is one size of a cluster.
type scaleCase struct{ topics, partitions, connections int }

// TestScale measures what many topics, partitions and client connections cost,
// beside a small case: starts, failover, Metadata, memory, CPU of a node that
// does nothing. SCALE_TOPICS (1000) of 10 partitions, SCALE_CONNECTIONS (2000),
// SCALE_BROKER=kafka for real brokers in place of embedded ones, SCALE_IDLE (20)
// seconds.
func TestScale(t *testing.T) {
	small := scaleCase{1, 10, 3}
	large := scaleCase{envInt(t, "SCALE_TOPICS", 1000), 10, envInt(t, "SCALE_CONNECTIONS", 2000)}
	var w strings.Builder
	w.WriteString("\n| topics × partitions, connections | topics made | start of all | start of one | failover | Metadata p50 | largest proxy | idle, % of a core | with connections |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range []scaleCase{small, large} {
		c := newClusterWith(t, clusterOpts{embedded: os.Getenv("SCALE_BROKER") != "kafka"})
		w.WriteString(scale(t, c, s))
		for _, n := range c.nodes {
			n.stopProxy(t)
		}
	}
	t.Log(w.String())
}

func scale(t *testing.T, c *cluster, s scaleCase) string {
	t.Helper()
	begin := time.Now()
	for i := 0; i < s.topics; i += 50 {
		scaleTopics(t, c.node(1), i, min(i+50, s.topics), s.partitions)
	}
	c.waitHealthyWithin(10 * time.Minute)
	made := time.Since(begin)
	t.Logf("%d topics made in %s", s.topics, made.Round(time.Millisecond))

	for _, n := range c.nodes {
		n.stopProxy(t)
	}
	begin = time.Now()
	for _, n := range c.nodes {
		n.startProxy(t)
	}
	c.waitHealthyWithin(10 * time.Minute)
	all := time.Since(begin)

	led, one := scaleFailover(t, c)
	idle := idleCPU(t, c)
	hold := scaleConnections(t, c, s.connections)
	busy := idleCPU(t, c)
	metadata := scaleMetadata(t, c.node(2))
	var memory int64
	for _, n := range c.nodes {
		memory = max(memory, residentBytes(n.proc.pid))
	}
	for _, conn := range hold {
		conn.Close()
	}
	return fmt.Sprintf("| %d × %d, %d | %s | %s | %s | %s | %s | %d MiB | %.1f | %.1f |\n", s.topics, s.partitions, s.connections,
		made.Round(100*time.Millisecond), all.Round(100*time.Millisecond), one.Round(100*time.Millisecond), led.Round(time.Millisecond),
		metadata.Round(10*time.Microsecond), memory>>20, idle, busy)
}

func scaleTopics(t *testing.T, n *node, from, to, partitions int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis = 5, 120_000
	for i := from; i < to; i++ {
		rt := kmsg.NewCreateTopicsRequestTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = fmt.Sprintf("scale-%04d", i), int32(partitions), 3
		req.Topics = append(req.Topics, rt)
	}
	resp, err := rawCall[*kmsg.CreateTopicsResponse](ctx, n.kafkaAddr(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range resp.Topics {
		if rt.ErrorCode != 0 {
			t.Fatalf("make %s: error %d", rt.Topic, rt.ErrorCode)
		}
	}
}

// scaleFailover kills a proxy and returns after how long another leads what it
// led, and how long the killed one takes to be well again.
func scaleFailover(t *testing.T, c *cluster) (failover, start time.Duration) {
	t.Helper()
	const victim = 3
	var groups map[int]int
	waitFor(t, "one word about the leaders", time.Minute, func(ctx context.Context) (err error) {
		groups, err = c.leaders(ctx)
		return err
	})
	n := c.node(victim)
	begin := time.Now()
	if err := n.proc.kill9(); err != nil {
		t.Fatal(err)
	}
	via := c.node(1)
	waitFor(t, "other leaders", time.Minute, func(ctx context.Context) error {
		resp, err := rawCall[*kmsg.MetadataResponse](ctx, via.kafkaAddr(), scaleMetadataRequest())
		if err != nil {
			return err
		}
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if p.Leader == victim || p.ErrorCode != 0 {
					return fmt.Errorf("%s/%d: leader %d, error %d", *topic.Topic, p.Partition, p.Leader, p.ErrorCode)
				}
			}
		}
		return nil
	})
	failover = time.Since(begin)
	t.Logf("leaders before: %v; all partitions led by others after %s", groups, failover.Round(time.Millisecond))
	begin = time.Now()
	n.startProxy(t)
	c.waitHealthyWithin(10 * time.Minute)
	return failover, time.Since(begin)
}

// scaleMetadataRequest asks for everything.
func scaleMetadataRequest() *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.Topics = 9, nil
	return req
}

func scaleMetadata(t *testing.T, n *node) time.Duration {
	t.Helper()
	var took []float64
	for range 21 {
		begin := time.Now()
		if _, err := rawCall[*kmsg.MetadataResponse](t.Context(), n.kafkaAddr(), scaleMetadataRequest()); err != nil {
			t.Fatal(err)
		}
		took = append(took, float64(time.Since(begin)))
	}
	return time.Duration(medianOf(took))
}

// scaleConnections opens connections to all nodes, each of which asks once what
// the node speaks.
func scaleConnections(t *testing.T, c *cluster, count int) (hold []net.Conn) {
	t.Helper()
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("scale")).AppendRequest(nil, &kmsg.ApiVersionsRequest{Version: 2}, 1)
	for i := range count {
		conn, err := net.DialTimeout("tcp", c.nodes[i%len(c.nodes)].kafkaAddr(), 10*time.Second)
		if err == nil {
			hold = append(hold, conn)
			t.Cleanup(func() { conn.Close() })
			_, err = conn.Write(frame)
		}
		if err == nil {
			_, err = readInstant(conn)
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
	}
	return hold
}

// idleCPU is what the busiest proxy uses of a core, in percent, while nobody asks
// for anything.
func idleCPU(t *testing.T, c *cluster) float64 {
	t.Helper()
	settle := time.NewTimer(5 * time.Second)
	defer settle.Stop()
	<-settle.C
	span := time.Duration(envInt(t, "SCALE_IDLE", 20)) * time.Second
	var before []float64
	for _, n := range c.nodes {
		before = append(before, used([]*process{n.proc}).CPU)
	}
	end := time.NewTimer(span)
	defer end.Stop()
	<-end.C
	var worst []float64
	for i, n := range c.nodes {
		if n.proc.exited() {
			t.Fatal(errors.New("a proxy ended"))
		}
		worst = append(worst, (used([]*process{n.proc}).CPU-before[i])/span.Seconds()*100)
	}
	t.Logf("idle: %.2f %% of a core", worst)
	return slices.Max(worst)
}

package drill

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

const ms = time.Millisecond

func TestLongestPause(t *testing.T) {
	acks := []time.Duration{10 * ms, 15 * ms, 35 * ms, 500 * ms, 505 * ms, 600 * ms}
	for _, tt := range []struct{ from, to, want time.Duration }{
		{0, 100 * ms, 20 * ms},
		{100 * ms, time.Hour, 465 * ms}, // it began before the kill
		{500 * ms, time.Hour, 95 * ms},
		{time.Hour, 2 * time.Hour, 0},
	} {
		if got := longestPause(acks, tt.from, tt.to); got != tt.want {
			t.Errorf("from %s to %s: %s, want %s", tt.from, tt.to, got, tt.want)
		}
	}
}

func TestTally(t *testing.T) {
	written := []record{{acked: true}, {acked: true}, {}, {acked: true}, {acked: true}, {}}
	seen := tally{copies: make([]uint8, len(written))}
	for _, n := range []int{0, 4, 3, 3, 5} {
		seen.add(0, n)
	}
	want := BrokerCount{Records: 4, Lost: 1, Duplicated: 1, OutOfOrder: 2}
	if got := seen.count(written); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, tt := range []struct {
		r  Result
		ok bool
	}{
		{Result{}, false}, // nothing was acknowledged: nothing is shown
		{Result{Acknowledged: 1}, true},
		{Result{Acknowledged: 1, Lost: 1}, false},
		{Result{Acknowledged: 1, Duplicated: 1}, false},
		{Result{Acknowledged: 1, OutOfOrder: 1}, false},
	} {
		if tt.r.OK() != tt.ok {
			t.Errorf("%+v counts as good: %t", tt.r, !tt.ok)
		}
	}
}

// fakeNodes notes what is asked for.
type fakeNodes struct {
	calls []string
	err   error // of Recovered
	late  error // of Recovered, after Start
}

func (n *fakeNodes) Kill(context.Context, int32) error {
	n.calls = append(n.calls, "kill")
	return nil
}

func (n *fakeNodes) Start(context.Context, int32) error {
	n.calls, n.err = append(n.calls, "start"), n.late
	return nil
}

func (n *fakeNodes) Recovered(context.Context) error {
	n.calls = append(n.calls, "recovered")
	return n.err
}

func fakeBroker(t *testing.T) string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()[0]
}

func testDrill(t *testing.T, nodes Nodes, brokers ...string) (*Result, error) {
	t.Helper()
	cfg := Config{Topic: "t", Rate: 300, Timeout: 2 * time.Second, Say: t.Logf}
	for i, b := range brokers {
		cfg.Nodes = append(cfg.Nodes, Node{ID: int32(i), Kafka: brokers[0], Broker: b})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d := &drill{cfg: cfg, nodes: nodes, phases: phases{before: 200 * ms, down: 100 * ms, after: 100 * ms}}
	return d.run(ctx)
}

// A broker that holds everything, twice: the second run must tell its records
// from the first's.
func TestDrillCountsWhatIsThere(t *testing.T) {
	addr := fakeBroker(t)
	for range 2 {
		nodes := &fakeNodes{}
		r, err := testDrill(t, nodes, addr, addr)
		if err != nil {
			t.Fatal(err)
		}
		if !r.OK() || r.Acknowledged < partitions || r.Acknowledged != r.Written || len(r.Brokers) != 2 || r.Brokers[1].Records != r.Acknowledged {
			t.Errorf("%+v", r)
		}
		if got := strings.Join(nodes.calls, " "); got != "recovered kill start recovered" {
			t.Errorf("the nodes were asked to %s", got)
		}
		if r.PauseBefore <= 0 || r.Pause <= 0 || r.Pause > 10*time.Second {
			t.Errorf("pauses %s and %s", r.PauseBefore, r.Pause)
		}
	}
}

// Brokers that replicate nothing: what is acknowledged is missing on the second.
func TestDrillFindsWhatIsLost(t *testing.T) {
	r, err := testDrill(t, &fakeNodes{}, fakeBroker(t), fakeBroker(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.OK() || r.Lost != r.Acknowledged || r.Brokers[0].Lost != 0 || r.Brokers[1].Lost != r.Acknowledged {
		t.Errorf("%+v", r)
	}
}

// What is not known is not told.
func TestDrillNotFinished(t *testing.T) {
	broken := errors.New("it stays away")
	nodes := &fakeNodes{err: broken}
	if r, err := testDrill(t, nodes, fakeBroker(t)); !errors.Is(err, broken) || r != nil || len(nodes.calls) != 1 {
		t.Errorf("%+v, %v after %q: nobody is killed while a node is away", r, err, nodes.calls)
	}
	nodes = &fakeNodes{late: broken}
	if r, err := testDrill(t, nodes, fakeBroker(t)); !errors.Is(err, broken) || r != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := testDrill(t, &fakeNodes{}, "127.0.0.1:1"); !errors.Is(err, syscall.ECONNREFUSED) || r != nil {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
}

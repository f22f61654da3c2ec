package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"lockstep/internal/apply"
	"lockstep/internal/cluster"
)

func sampleStatus() cluster.Status {
	return cluster.Status{ClusterID: "demo", NodeID: 2, Healthy: true, Topics: 4,
		Nodes: []cluster.NodeStatus{
			{ID: 1, Alive: true, Kafka: map[string]string{"PLAINTEXT": "a:9092"}, Raft: "a:7400", Incarnation: "0123456789abcdef", Broker: cluster.BrokerStatus{State: "up", Kind: "kafka"}},
			{ID: 2, Alive: true, Kafka: map[string]string{"IN": "b:1", "EX": "b:2"}, Raft: "b:7400", Broker: cluster.BrokerStatus{State: "up"}},
			{ID: 3, Alive: true, Raft: "c:7400", Broker: cluster.BrokerStatus{State: "up"}, Recovery: &cluster.RecoveryReport{
				Log:   cluster.LogReport{Bytes: 700 << 20, Held: 3 << 20, Limit: 4 << 30, Disk: 900 << 20},
				Copy:  &cluster.CopyReport{Partitions: 5, Percent: 41.6, BytesPerSecond: 32 << 20, Seconds: 75},
				Scrub: apply.ScrubStatus{Partitions: 9, Verified: 4}}},
		},
		Groups: []cluster.GroupStatus{
			{Group: 0, Leader: 1, Term: 7, Members: []cluster.MemberStatus{
				{Node: 1, Role: "leader", Commit: 100, Applied: 99, Broker: 98, Lag: 1}, {Node: 2, Role: "follower", Commit: 90, Applied: 90, Broker: 90, Lag: 9, LagReport: cluster.LagReport{LagBytes: 5 << 20, LagSeconds: 12.34}}}},
			{Group: 1, Term: 3},
		}}
}

// serveStatus answers like a node's admin port.
func serveStatus(t *testing.T, st *cluster.Status) (addr string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(st)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// runCommand returns what a command prints and its exit code.
func runCommand(cmd *cobra.Command, args ...string) (out string, code int, err error) {
	var b bytes.Buffer
	cmd.SetOut(&b)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.Execute()
	var f *failure
	switch {
	case err == nil:
	case errors.As(err, &f):
		code = exitFailed
	default:
		code = exitUsage
	}
	return b.String(), code, err
}

func TestStatusTable(t *testing.T) {
	st := sampleStatus()
	out, code, err := runCommand(statusCommand(), "--admin", serveStatus(t, &st))
	if code != 0 || err != nil {
		t.Fatalf("exit %d: %v", code, err)
	}
	want := `cluster demo  healthy  catalog led by node 1  3/3 nodes, tolerates 1 failure  topics 4  (asked node 2)

NODE  KAFKA              RAFT    BROKER      STATE  INCARNATION  PROBLEM
1     a:9092             a:7400  up (kafka)  alive  01234567     -
2     EX://b:2,IN://b:1  b:7400  up          alive  -            -
3     -                  c:7400  up          alive  -            -

GROUP  LEADER  TERM  NODE  ROLE      COMMIT  APPLIED  BROKER  LAG  BEHIND
0      1       7     1     leader    100     99       98      1    -
                     2     follower  90      90       90      9    12.3s 5MiB
1      -       3     -     -         -       -        -       -    -

NODE  RAFT LOG  UNFLUSHED/LIMIT  DISK    COPYING                                     VERIFIED
1     -         -                -       -                                           -
2     -         -                -       -                                           -
3     700MiB    3MiB/4096MiB     900MiB  42% of 5 partitions, 32.0MiB/s, 1m15s left  4/9 partitions
`
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestStatusOfAnUnhealthyCluster(t *testing.T) {
	st := sampleStatus()
	st.Healthy, st.Problems = false, []string{"node 3 is not heard of"}
	st.Nodes[2].Alive, st.Groups[0].Leader = false, 0
	addr := serveStatus(t, &st)
	out, code, err := runCommand(statusCommand(), "--admin", "127.0.0.1:1", "--admin", addr)
	if code != exitFailed || !errors.Is(err, errNotHealthy) {
		t.Errorf("exit %d: %v", code, err)
	}
	for _, s := range []string{"NOT HEALTHY", "no catalog leader", "2/3 nodes, tolerates 0 failures", "! node 3 is not heard of", "not heard of  "} {
		if !strings.Contains(out, s) {
			t.Errorf("no %q in\n%s", s, out)
		}
	}
	out, code, _ = runCommand(statusCommand(), "--admin", "127.0.0.1:1,"+addr, "-o", "json")
	var back cluster.Status
	if err := json.Unmarshal([]byte(out), &back); err != nil || code != exitFailed || back.Problems[0] != st.Problems[0] {
		t.Errorf("-o json: exit %d, %v\n%s", code, err, out)
	}
	st.Nodes[1].Problem = "kept out"
	if got := tolerance(&st); !strings.Contains(got, "1/3 nodes, no majority") {
		t.Errorf("one node of three: %s", got)
	}
}

func TestExitCodesOfAdminCommands(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--admin", "127.0.0.1:1"}, exitFailed, "no node answers"},
		{[]string{"--admin", "127.0.0.1"}, exitUsage, "it is host:port"},
		{[]string{"--admin", ":7501"}, exitUsage, "it is host:port"},
		{[]string{"--admin", "a:70000"}, exitUsage, "not between 1 and 65535"},
		{[]string{"-o", "xml"}, exitUsage, "it is table or json"},
		{[]string{"extra"}, exitUsage, "unknown command"},
		{[]string{"--nope"}, exitUsage, "unknown flag"},
	} {
		for _, cmd := range []*cobra.Command{statusCommand(), verifyCommand()} {
			_, code, err := runCommand(cmd, tt.args...)
			if code != tt.code || err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s %q: exit %d: %v; want %d and %q", cmd.Name(), tt.args, code, err, tt.code, tt.says)
			}
		}
	}
	if _, code, err := runCommand(verifyCommand(), "--wait", "0s"); code != exitUsage {
		t.Errorf("verify --wait 0s: exit %d: %v", code, err)
	}
}

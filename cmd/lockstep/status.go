package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
)

const (
	outputTable = "table"
	outputJSON  = "json"
)

// defaultAdmin is a node's default admin port, then the demo's others.
var defaultAdmin = []string{"127.0.0.1:7501", "127.0.0.1:7502", "127.0.0.1:7503"}

// errNotHealthy ends status with exit code 1; the problems are in the output.
var errNotHealthy = errors.New("the cluster is not healthy")

// adminFlags are the flags of every command that asks nodes.
type adminFlags struct {
	addrs  []string
	output string
}

func (f *adminFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.addrs, "admin", defaultAdmin,
		"admin addresses of nodes, host:port or https://host:port; one that answers is enough (may be repeated)")
	cmd.Flags().StringVarP(&f.output, "output", "o", outputTable, "table or json")
	adminTLSFlags(cmd)
}

func (f *adminFlags) check() error {
	if f.output != outputTable && f.output != outputJSON {
		return fmt.Errorf("-o %q: it is table or json", f.output)
	}
	if len(f.addrs) == 0 {
		return errors.New("--admin: no address given")
	}
	for _, a := range f.addrs {
		if err := checkAdminAddress(a); err != nil {
			return fmt.Errorf("--admin %q: %w", a, err)
		}
	}
	return nil
}

// interruptible ends with SIGINT or SIGTERM.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

func statusCommand() *cobra.Command {
	var f adminFlags
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, groups, leaders and lag, as one node knows them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if err := checkStatusWait(wait); err != nil {
				return err
			}
			client, err := adminClient(cmd)
			if err != nil {
				return failed(err)
			}
			defer client.Close()
			ctx, cancel := interruptible()
			defer cancel()
			if err := awaitHealthy(ctx, client, &f, wait, cmd.ErrOrStderr()); err != nil {
				return failed(err)
			}
			return failed(showStatus(ctx, client, &f, cmd.OutOrStdout()))
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "first wait for so long until the cluster is healthy and nothing is copied any more")
	return cmd
}

func showStatus(ctx context.Context, client *admin.Client, f *adminFlags, w io.Writer) error {
	st, raw, err := anyStatus(ctx, client, f.addrs)
	if err != nil {
		return err
	}
	if f.output == outputJSON {
		_, err = w.Write(raw)
	} else {
		err = printStatus(w, &st)
	}
	if err == nil && !st.Healthy {
		err = errNotHealthy
	}
	return err
}

// anyStatus asks the nodes one after the other until one answers.
func anyStatus(ctx context.Context, client *admin.Client, addrs []string) (cluster.Status, []byte, error) {
	var errs []error
	for _, addr := range addrs {
		st, raw, err := client.Status(ctx, addr)
		if err == nil {
			return st, raw, nil
		}
		errs = append(errs, err)
	}
	return cluster.Status{}, nil, fmt.Errorf("no node answers\n%w", errors.Join(errs...))
}

// printStatus writes the tables for people.
func printStatus(w io.Writer, st *cluster.Status) error {
	fmt.Fprintln(w, headline(st))
	for _, p := range st.Problems {
		fmt.Fprintf(w, "  ! %s\n", p)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tKAFKA\tRAFT\tBROKER\tSTATE\tINCARNATION\tPROBLEM")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, dash(listeners(n.Kafka)), dash(n.Raft),
			brokerText(n.Broker), nodeState(&n), dash(short(n.Incarnation)), dash(n.Problem))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tLEADER\tTERM\tNODE\tROLE\tCOMMIT\tAPPLIED\tBROKER\tLAG\tBEHIND")
	for _, g := range st.Groups {
		group, leader, term := strconv.Itoa(int(g.Group)), dash(nodeName(g.Leader)), strconv.FormatUint(g.Term, 10)
		if len(g.Members) == 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\t-\t-\t-\t-\t-\t-\t-\n", group, leader, term)
		}
		for _, m := range g.Members {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\t%s\n", group, leader, term, m.Node, m.Role, m.Commit, m.Applied, m.Broker, m.Lag, behind(&m))
			group, leader, term = "", "", "" // once per group
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return printRecovery(w, st)
}

// behind says how far a broker is behind in time and bytes.
func behind(m *cluster.MemberStatus) string {
	if m.LagSeconds == 0 && m.LagBytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fs %s", m.LagSeconds, mib(m.LagBytes))
}

// printRecovery writes what each node's log takes and how far its copies are.
func printRecovery(w io.Writer, st *cluster.Status) error {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tRAFT LOG\tUNFLUSHED/LIMIT\tDISK\tCOPYING\tVERIFIED")
	for _, n := range st.Nodes {
		r := n.Recovery
		if r == nil {
			fmt.Fprintf(t, "%d\t-\t-\t-\t-\t-\n", n.ID)
			continue
		}
		fmt.Fprintf(t, "%d\t%s\t%s/%s\t%s\t%s\t%d/%d partitions\n", n.ID, mib(r.Log.Bytes), mib(r.Log.Held), mib(r.Log.Limit),
			mib(r.Log.Disk), copyText(r.Copy), r.Scrub.Verified, r.Scrub.Partitions)
	}
	return t.Flush()
}

func mib(n int64) string { return fmt.Sprintf("%.0fMiB", float64(n)/(1<<20)) }

// copyText says how far copying is: percent, rate and time left.
func copyText(c *cluster.CopyReport) string {
	if c == nil {
		return "-"
	}
	left := "time left unknown"
	if c.Seconds >= 0 {
		left = (time.Duration(c.Seconds) * time.Second).String() + " left"
	}
	return fmt.Sprintf("%.0f%% of %d partitions, %.1fMiB/s, %s", c.Percent, c.Partitions, c.BytesPerSecond/(1<<20), left)
}

func headline(st *cluster.Status) string {
	health := "healthy"
	if !st.Healthy {
		health = "NOT HEALTHY"
	}
	catalog := "no catalog leader"
	if len(st.Groups) > 0 && st.Groups[0].Leader > 0 {
		catalog = fmt.Sprintf("catalog led by node %d", st.Groups[0].Leader)
	}
	return fmt.Sprintf("cluster %s  %s  %s  %s  topics %d  (asked node %d)",
		st.ClusterID, health, catalog, tolerance(st), st.Topics, st.NodeID)
}

// tolerance says how many more nodes may fail before writes stop.
func tolerance(st *cluster.Status) string {
	alive := 0
	for _, n := range st.Nodes {
		if n.Alive && n.Problem == "" {
			alive++
		}
	}
	spare := alive - (len(st.Nodes)/2 + 1)
	of := fmt.Sprintf("%d/%d nodes", alive, len(st.Nodes))
	switch {
	case spare < 0:
		return of + ", no majority: nothing can be written"
	case spare == 1:
		return of + ", tolerates 1 failure"
	}
	return fmt.Sprintf("%s, tolerates %d failures", of, spare)
}

// listeners lists the advertised addresses, by listener name if there are
// several.
func listeners(m map[string]string) string {
	var out []string
	for name, addr := range m {
		if len(m) > 1 {
			addr = name + "://" + addr
		}
		out = append(out, addr)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func brokerText(b cluster.BrokerStatus) string {
	text := b.State
	if b.Kind != "" {
		text += " (" + b.Kind + ")"
	}
	if b.Error != "" {
		text += ": " + b.Error
	}
	return text
}

func nodeState(n *cluster.NodeStatus) string {
	if n.Alive {
		return "alive"
	}
	return "not heard of"
}

func nodeName(id int32) string {
	if id <= 0 {
		return ""
	}
	return strconv.Itoa(int(id))
}

func short(id string) string { return id[:min(len(id), 8)] }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

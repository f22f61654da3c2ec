package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/drill"
	"lockstep/internal/progress"
)

// errRecordsAtFault ends kill-leader with exit code 1; the counts are in the output.
var errRecordsAtFault = errors.New("records are lost, repeated or out of order: keep the data directory, and report it with the files in it")

// killConfig is what the flags of kill-leader say.
type killConfig struct {
	topic   string
	rate    int
	timeout time.Duration
	output  string
}

func killLeaderCommand(demo *demoConfig) *cobra.Command {
	var cfg killConfig
	cmd := &cobra.Command{
		Use:   "kill-leader",
		Short: "Kill a leader of the demo under load with kill -9, and count what was lost",
		Long: `Kill a leader of the demo under load, and count what was lost.

Numbered records are written through the proxies all the time. The node that
leads partition 0 and its broker are killed with kill -9 and started again some
seconds later. Then every broker is read from its beginning, past the proxies,
and what was acknowledged is looked for on each.

It uses the demo that runs in --data-dir, and starts one for itself if none does.
Exit code 1: something is lost, repeated or out of order, or it could not be
finished.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(demo.check(), cfg.check()); err != nil {
				return err
			}
			ctx, cancel := stopSignals()
			defer cancel()
			return failed(killLeader(ctx, demo, &cfg, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&cfg.topic, "topic", "kill-leader", "topic to write to; it is made with three partitions")
	cmd.Flags().IntVar(&cfg.rate, "rate", drill.DefaultRate, "records a second")
	cmd.Flags().DurationVar(&cfg.timeout, "timeout", time.Minute, "how long the cluster may take for each step")
	cmd.Flags().StringVarP(&cfg.output, "output", "o", outputTable, "table or json")
	return cmd
}

func (c *killConfig) check() error {
	switch {
	case c.output != outputTable && c.output != outputJSON:
		return fmt.Errorf("-o %q: it is table or json", c.output)
	case c.topic == "":
		return errors.New("--topic is empty: name one")
	case c.rate < 1 || c.rate > drill.MaxRate:
		return fmt.Errorf("--rate %d: it is between 1 and %d", c.rate, drill.MaxRate)
	case c.timeout <= 0 || c.timeout > time.Hour:
		return fmt.Errorf("--timeout %s: it is above 0 and at most 1h", c.timeout)
	}
	return nil
}

// killLeader uses the demo that runs, or starts one. What happens goes to
// steps, the result to out.
func killLeader(ctx context.Context, demo *demoConfig, cfg *killConfig, out, steps io.Writer) error {
	bar := progress.Start(steps, "kill-leader")
	defer bar.Done()
	_, _, err := findDemo(ctx, demo.dir)
	if !errors.Is(err, errNoDemo) {
		if err != nil {
			return err
		}
		return killOnce(ctx, demo.dir, cfg, out, bar)
	}
	bar.Printf("no demo runs in %s: starting one", demo.dir)
	return runDemo(ctx, *demo, bar, func(ctx context.Context) error {
		return killOnce(ctx, demo.dir, cfg, out, bar)
	})
}

// killOnce carries out a drill on the demo that runs in dir.
func killOnce(ctx context.Context, dir string, cfg *killConfig, out io.Writer, bar *progress.Bar) error {
	control, members, err := findDemo(ctx, dir)
	if err != nil {
		return err
	}
	nodes := &killable{control: control, members: members, client: admin.NewClient()}
	defer nodes.client.Close()
	d := drill.Config{Topic: cfg.topic, Rate: cfg.rate, Timeout: cfg.timeout, Say: bar.Printf,
		Progress: func(step int, what string) { bar.SetStep(step, drill.Steps, what) }}
	for _, m := range members {
		d.Nodes = append(d.Nodes, drill.Node{ID: m.ID, Kafka: m.Kafka, Broker: m.Broker})
	}
	if err := nodes.startDead(ctx, bar); err != nil {
		return err
	}
	result, err := drill.Run(ctx, d, nodes)
	bar.Done()
	if err != nil {
		nodes.startAgain(bar)
		return fmt.Errorf("not finished, so nothing is said about what was lost: %w", err)
	}
	if cfg.output == outputJSON {
		err = json.NewEncoder(out).Encode(result)
	} else {
		err = printDrill(out, result)
	}
	if err == nil && !result.OK() {
		err = errRecordsAtFault
	}
	return err
}

// killable kills and starts nodes of a running demo. It belongs to one goroutine.
type killable struct {
	control *controlClient
	members []demoMember
	client  *admin.Client
	dead    int32 // the node that is dead; 0: none
}

var _ drill.Nodes = (*killable)(nil)

// Kill implements drill.Nodes.
func (n *killable) Kill(ctx context.Context, id int32) error {
	n.dead = id
	_, err := n.control.do(ctx, "kill", id)
	return err
}

// Start implements drill.Nodes.
func (n *killable) Start(ctx context.Context, id int32) error {
	_, err := n.control.do(ctx, "start", id)
	if err == nil {
		n.dead = 0
	}
	return err
}

// startDead starts nodes that are dead, as one that a killed drill left: there
// would be no majority without the next.
func (n *killable) startDead(ctx context.Context, bar *progress.Bar) error {
	for _, m := range n.members {
		if !m.Dead {
			continue
		}
		bar.Printf("node %d or its broker is dead: starting it", m.ID)
		if err := n.Start(ctx, m.ID); err != nil {
			return fmt.Errorf("start node %d: %w", m.ID, err)
		}
	}
	return nil
}

// startAgain brings back a node that an interrupted drill left dead.
func (n *killable) startAgain(bar *progress.Bar) {
	if n.dead == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), brokerStart)
	defer cancel()
	if _, err := n.control.do(ctx, "start", n.dead); err != nil {
		bar.Printf("node %d stays dead: %v", n.dead, err)
		return
	}
	bar.Printf("started node %d again", n.dead)
}

// Recovered implements drill.Nodes: what `ready` means at the demo's start.
func (n *killable) Recovered(ctx context.Context) error {
	tick := time.NewTicker(demoAskEvery)
	defer tick.Stop()
	for {
		var why error
		for _, m := range n.members {
			if err := notServing(ctx, n.client, m.Admin, m.Kafka); err != nil {
				why = fmt.Errorf("node %d: %w", m.ID, err)
				break
			}
		}
		if why == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return why
		}
	}
}

func printDrill(w io.Writer, r *drill.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nBROKER OF\tRECORDS\tLOST\tDUPLICATED\tOUT OF ORDER")
	for _, b := range r.Brokers {
		fmt.Fprintf(t, "node %d\t%d\t%d\t%d\t%d\n", b.Node, b.Records, b.Lost, b.Duplicated, b.OutOfOrder)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	unknown := ""
	if r.Unacknowledged > 0 {
		unknown = fmt.Sprintf(" (%d more got no answer)", r.Unacknowledged)
	}
	_, err := fmt.Fprintf(w, `
acknowledged %d%s, lost %d, duplicated %d, out of order %d
longest pause between two acknowledgements of a partition: %d ms where node %d led, %d ms elsewhere, %d ms before the kill
`, r.Acknowledged, unknown, r.Lost, r.Duplicated, r.OutOfOrder,
		r.Pause.Milliseconds(), r.Killed, r.PauseOthers.Milliseconds(), r.PauseBefore.Milliseconds())
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/progress"
	"lockstep/internal/verify"
)

// errNotIdentical ends verify with exit code 1; what differs is in the output.
var errNotIdentical = errors.New("the brokers' logs are not proven identical")

func verifyCommand() *cobra.Command {
	var f adminFlags
	cfg := verify.Config{}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare all brokers' logs batch by batch, with each other and with what was committed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if cfg.Wait <= 0 || cfg.Wait > time.Hour {
				return fmt.Errorf("--wait %s: it is above 0 and at most 1h", cfg.Wait)
			}
			cfg.Addrs = f.addrs
			client, err := adminClient(cmd)
			if err != nil {
				return failed(err)
			}
			defer client.Close()
			ctx, cancel := interruptible()
			defer cancel()
			return failed(runVerify(ctx, client, cfg, f.output, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&cfg.Topic, "topic", "", "compare only this topic")
	cmd.Flags().BoolVar(&cfg.AllowMissing, "allow-missing", false, "compare the nodes that are there, and do not fail because others are not")
	cmd.Flags().DurationVar(&cfg.Wait, "wait", verify.DefaultWait, "how long a node may take to catch up")
	return cmd
}

func runVerify(ctx context.Context, client *admin.Client, cfg verify.Config, output string, w, errs io.Writer) error {
	bar := progress.Start(errs, "verify")
	defer bar.Done()
	cfg.Progress = bar.Set
	report, err := verify.Run(ctx, client, cfg)
	bar.Done()
	if err != nil {
		return err
	}
	if output == outputJSON {
		err = json.NewEncoder(w).Encode(report)
	} else {
		err = printReport(w, report)
	}
	if err == nil && !report.Identical {
		err = errNotIdentical
	}
	return err
}

func printReport(w io.Writer, r *verify.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TOPIC\tPARTITION\tOFFSETS\tBATCHES\tDIGEST\tNODES\tRESULT")
	for _, p := range r.Partitions {
		fmt.Fprintf(t, "%s\t%d\t%d..%d\t%d\t%s\t%s\t%s\n", p.Topic, p.Partition, p.Start, p.End, p.Batches,
			dash(p.Digest), dash(nodeList(p.Nodes)), p.Result)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "! %s\n", p)
	}
	verdict := "identical"
	if !r.Identical {
		verdict = "NOT identical"
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

func nodeList(ids []int32) string {
	var out []string
	for _, id := range ids {
		out = append(out, strconv.Itoa(int(id)))
	}
	return strings.Join(out, ",")
}

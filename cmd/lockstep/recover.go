package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lockstep/configs"
	"lockstep/internal/node"
)

// errNotAccepted ends a recovery that nobody has agreed to.
var errNotAccepted = errors.New("nothing was done: read what it risks with --help, then say --accept-data-loss")

func recoverCommand() *cobra.Command {
	var file, output string
	var sets []string
	var accepted bool
	cmd := &cobra.Command{
		Use:   "recover --config FILE --accept-data-loss",
		Short: "Make a cluster of this one stopped node, after the majority was lost for good",
		Long: `Make a cluster of this one node, after the majority was lost for good.

It is for the day on which most nodes' disks are gone. As long as a majority can
be started, start it instead.

What it risks: records that were acknowledged and had not reached this node are
lost. Take the node whose log is longest; each node's last index and term are
printed here and in its log at start. Entries of this node that were never
acknowledged become part of the log.

What it does: every group's log gets a configuration of this node alone, and the
cluster a new recovery number. All that is written from there on carries the
number, so that nothing of the old cluster can be mistaken for it. The other
nodes, should they come back, are refused by their number and stop; empty their
data_dir and their brokers.

The node must be stopped. Start it afterwards with the same configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != outputTable && output != outputJSON {
				return fmt.Errorf("-o %q: it is table or json", output)
			}
			cfg, err := configs.Load(file, sets, os.Environ())
			if err != nil {
				return fmt.Errorf("configuration: %w", err)
			}
			if !accepted {
				return errNotAccepted
			}
			return failed(recoverNode(cfg, output, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the node's configuration")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "set one key (may be repeated)")
	cmd.Flags().BoolVar(&accepted, "accept-data-loss", false, "go on although acknowledged records may be lost")
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table or json")
	return cmd
}

func recoverNode(cfg configs.Config, output string, w io.Writer) error {
	nodeCfg, err := nodeConfig(cfg, newLogger(cfg.Log, os.Stderr))
	if err != nil {
		return err
	}
	r, err := node.Recover(nodeCfg)
	if err != nil {
		return err
	}
	if output == outputJSON {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "node %d is a cluster of its own now, recovery number %d; start it again\n\n", cfg.Node.ID, r.Number)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tLAST INDEX\tLAST TERM\tSNAPSHOT\tVOTERS BEFORE")
	for _, g := range r.Groups {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\n", g.Group, g.LastIndex, g.LastTerm, g.SnapshotIndex, g.Servers)
	}
	return t.Flush()
}

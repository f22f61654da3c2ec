package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
	"lockstep/internal/progress"
)

const placementAskEvery = 500 * time.Millisecond

func rebalanceCommand() *cobra.Command {
	var f adminFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Place each Raft group on replication.factor nodes, and spread the groups over all nodes",
		Long: `Place each Raft group, and so each partition, on replication.factor nodes, and spread
the groups over all nodes, the copies of a group in different racks (node.rack)
where there are several. The catalog's group stays on every node.

Groups move one after the other: a node that comes has no vote until its broker
holds everything, at most recovery.copy_bytes_per_second; only then another one
gives the group up. Its broker keeps what it has. A rebalance that is interrupted
leaves one group on its way, which arrives by itself; give the command again for
the others. On as many nodes as replication.factor nothing moves, but nodes that
are added afterwards get no group before the next rebalance.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				r, raw, err := client.Placement(ctx, addr)
				if err != nil {
					return err
				}
				if f.output == outputJSON {
					_, err = cmd.OutOrStdout().Write(raw)
				} else {
					err = printPlacement(cmd.OutOrStdout(), &r)
				}
				if err != nil || dryRun {
					return err
				}
				return rebalance(ctx, client, addr, cmd.ErrOrStderr())
			})
		},
	}
	f.add(cmd)
	tokenFlag(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would move")
	return cmd
}

func printPlacement(w io.Writer, r *cluster.PlacementReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tNODES\tTHEN\tCOPIES")
	for i := range r.Groups {
		g := &r.Groups[i]
		then := "the same"
		if g.Again || g.Moving {
			then = nodeList(g.Target)
		}
		var copies []int32
		for _, id := range g.Target {
			if !slices.Contains(g.Votes, id) {
				copies = append(copies, id)
			}
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", g.Group, dash(nodeList(g.Votes)), then, dash(nodeList(copies)))
	}
	return t.Flush()
}

// rebalance orders one group after the other and waits for each.
func rebalance(ctx context.Context, client *admin.Client, addr string, w io.Writer) error {
	bar := progress.Start(w, "rebalance")
	defer bar.Done()
	tick := time.NewTicker(placementAskEvery)
	defer tick.Stop()
	var last error
	for {
		r, _, err := client.Placement(ctx, addr)
		if err != nil {
			last = err // a node that is restarted comes back
			bar.Set(0, 0, err.Error())
		} else if len(r.Groups) == 0 {
			return errors.New("there is only the catalog's group, which stays on every node: raft.groups is 1, fixed when the cluster was first started")
		} else if done, what, err := step(ctx, client, addr, &r); err != nil {
			if last == nil || last.Error() != err.Error() {
				bar.Printf("waits: %v\n", err)
			}
			last = err
		} else if what == "" {
			return nil
		} else {
			bar.Set(done, int64(len(r.Groups)), what)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), last)
		}
	}
}

// step orders the next group, unless one is on its way. It returns how many are
// where they should be, and what is waited for; nothing when all are.
func step(ctx context.Context, client *admin.Client, addr string, r *cluster.PlacementReport) (done int64, what string, err error) {
	var next *cluster.GroupPlacement
	for i := range r.Groups {
		g := &r.Groups[i]
		switch {
		case g.Moving:
			what = fmt.Sprintf("group %d goes to nodes %s: nodes %s vote, %s copy", g.Group, nodeList(g.Ordered), dash(nodeList(g.Votes)), dash(nodeList(g.Learns)))
		case !g.Again:
			done++
		case next == nil:
			next = g
		}
	}
	if what != "" || next == nil {
		return done, what, nil
	}
	what = fmt.Sprintf("group %d is ordered to nodes %s", next.Group, nodeList(next.Target))
	return done, what, client.PlaceGroup(ctx, addr, next.Group, next.Target, next.Since)
}

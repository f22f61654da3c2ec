package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
)

func membersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "Show, add, remove and replace nodes of a running cluster",
		Long: `Show, add, remove and replace nodes of a running cluster.

Changes go one at a time: while one node joins or leaves, orders about others are
refused. If that change cannot go on, because yet another node is lost, take it back
first: members add NODE for a node that is leaving, members remove NODE for one that
is joining; then replace the lost one. A node that comes has no vote until its broker holds
everything; a node that goes hands its leaders over first. Any node that runs
takes the order, and lockstep members list shows how far it is.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(membersListCommand(), membersAddCommand(),
		memberOrder("remove NODE", admin.OrderRemove, "Take a node out for good",
			`Take a node out for good: it hands its leaders over and leaves every group. Refused
unless a majority of the others is well and holds sound copies of everything. Its
broker keeps what it has; stop the node's proxy when it is gone from the list.`,
			"ordered: node %d leaves; when lockstep members list calls it gone, stop it\n"),
		memberOrder("replace NODE", admin.OrderReplace, "Let a node in again that lost its disk, or moved to a new machine",
			`Let a node in again under its id, with an empty data_dir: what it was is taken out of
every group, and the next start with an empty data_dir is let in as a new one. Empty
its broker too: it is filled from the others, and without the old data_dir nobody can
tell that records which it holds are the cluster's; such topics would be quarantined.`,
			"ordered: what node %[1]d was leaves the groups; start node %[1]d with an empty data_dir and an empty broker\n"))
	return cmd
}

func membersListCommand() *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show every node's place in the cluster and how far it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				ms, raw, err := client.Members(ctx, addr)
				if err != nil {
					return err
				}
				if f.output == outputJSON {
					_, err = cmd.OutOrStdout().Write(raw)
					return err
				}
				return printMembers(cmd.OutOrStdout(), ms)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func printMembers(w io.Writer, ms []cluster.MemberReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATE\tALIVE\tRAFT\tINCARNATION\tLEADS\tVOTES\tLEARNS\tLAG\tUNSOUND\tPROBLEM")
	for _, m := range ms {
		alive := "no"
		if m.Alive {
			alive = "yes"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", m.ID, m.State, alive, dash(m.Raft), dash(short(m.Incarnation)),
			dash(groupList(m.Leads)), dash(groupList(m.Votes)), dash(groupList(m.Learns)), m.Lag, m.Unsound, dash(m.Problem))
	}
	return t.Flush()
}

func groupList(groups []uint32) string {
	var out []string
	for _, g := range groups {
		out = append(out, strconv.Itoa(int(g)))
	}
	return strings.Join(out, ",")
}

func membersAddCommand() *cobra.Command {
	var f adminFlags
	var address string
	cmd := &cobra.Command{
		Use:   "add NODE [--address HOST:PORT]",
		Short: "Let a new node in, or one that was removed, or one stay that is leaving",
		Long: `Let a new node in, or one that was removed. Then start it, with an empty data_dir, a
broker beside it, raft.join: true, and raft.peers with itself and at least one node
that runs.

Without --address: take the removal of a node back that is still leaving. It stays
as it is; groups that it has left already take it in again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := nodeArg(args[0])
			if err != nil {
				return err
			}
			if address != "" {
				if err := checkHostPort(address); err != nil {
					return fmt.Errorf("--address %q: %w", address, err)
				}
			}
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				warnings, err := client.OrderMember(ctx, addr, admin.OrderAdd, id, address)
				if err != nil {
					return err
				}
				warn(cmd, warnings)
				if address == "" {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "ordered: node %d stays; lockstep members list calls it a member when every group has it\n", id)
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "ordered: node %d is awaited; start it with an empty data_dir and raft.join: true\n", id)
				return err
			})
		},
	}
	f.add(cmd)
	tokenFlag(cmd)
	cmd.Flags().StringVar(&address, "address", "", "the raft.advertise, host:port, of a node that comes")
	return cmd
}

// warn prints what a node wants the operator to know of an order that it took.
func warn(cmd *cobra.Command, warnings []string) {
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
}

func memberOrder(use, order, short, long, done string) *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := nodeArg(args[0])
			if err != nil {
				return err
			}
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				warnings, err := client.OrderMember(ctx, addr, order, id, "")
				if err != nil {
					return err
				}
				warn(cmd, warnings)
				_, err = fmt.Fprintf(cmd.OutOrStdout(), done, id)
				return err
			})
		},
	}
	f.add(cmd)
	tokenFlag(cmd)
	return cmd
}

func transferCommand() *cobra.Command {
	var f adminFlags
	var group uint32
	var to int32
	cmd := &cobra.Command{
		Use:   "transfer --group GROUP [--to NODE]",
		Short: "Hand a group's leadership to another node",
		Long: `Hand a group's leadership to another node. A group goes home, to the node that leads
it when all are well, after raft.leader_rebalance_delay.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				if err := client.Transfer(ctx, addr, group, to); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "group %d was handed over\n", group)
				return err
			})
		},
	}
	f.add(cmd)
	tokenFlag(cmd)
	cmd.Flags().Uint32Var(&group, "group", 0, "the Raft group")
	cmd.Flags().Int32Var(&to, "to", 0, "the node that is to lead; 0: whoever is best placed")
	return cmd
}

func logLevelCommand() *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:       "log-level LEVEL",
		Short:     "Change how much a running node logs: trace, debug, info, warn or error",
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"trace", "debug", "info", "warn", "error"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAdminAddress(addr); err != nil {
				return fmt.Errorf("--admin %q: %w", addr, err)
			}
			ctx, cancel := interruptible()
			defer cancel()
			client, err := adminClient(cmd)
			if err != nil {
				return failed(err)
			}
			defer client.Close()
			if err := client.LogLevel(ctx, addr, args[0]); err != nil {
				return failed(err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the node at %s logs at %s until it is started again\n", addr, args[0])
			return failed(err)
		},
	}
	tokenFlag(cmd)
	adminTLSFlags(cmd)
	cmd.Flags().StringVar(&addr, "admin", defaultAdmin[0], "admin address, host:port, of the node that is meant")
	return cmd
}

func nodeArg(s string) (int32, error) {
	id, err := strconv.ParseInt(s, 10, 32)
	if err != nil || id < 1 {
		return 0, fmt.Errorf("node %q: it is a node's id, a number from 1 up", s)
	}
	return int32(id), nil
}

// any gives an order to the first node that can be reached. One that answers
// with a refusal has answered.
func (f *adminFlags) any(cmd *cobra.Command, do func(ctx context.Context, client *admin.Client, addr string) error) error {
	if err := f.check(); err != nil {
		return err
	}
	client, err := adminClient(cmd)
	if err != nil {
		return failed(err)
	}
	defer client.Close()
	ctx, cancel := interruptible()
	defer cancel()
	var errs []error
	for _, addr := range f.addrs {
		err := do(ctx, client, addr)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) {
			return failed(err)
		}
		errs = append(errs, err)
	}
	return failed(fmt.Errorf("no node answers; is one running, and is --admin its admin.listen?\n%w", errors.Join(errs...)))
}

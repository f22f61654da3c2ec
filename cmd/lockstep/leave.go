package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
)

// errNotAllToldBrokers ends leave with exit code 1; which nodes and groups is in
// the output.
var errNotAllToldBrokers = errors.New("not every broker has every group's offsets: see above, and give the command again; it changes nothing that was right")

func leaveCommand() *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Give every broker the committed offsets of all consumer groups, before the proxies are stopped for good",
		Long: `Give every broker the committed offsets of all consumer groups, before the proxies
are stopped for good.

Each broker has every record at the same offset, but what consumer groups have
committed is kept by lockstep, and a broker knows of it only what it accepted itself.
Stop the clients first: groups with members are left out, and named. Then stop the
proxies, and point the clients at a broker: consumers go on where they were.

The order goes to any node, which passes it on to the others. It may be given again,
and the cluster works on as before.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.any(cmd, func(ctx context.Context, client *admin.Client, addr string) error {
				told, err := client.Leave(ctx, addr)
				if err != nil {
					return err
				}
				return printLeave(cmd.OutOrStdout(), told, f.output)
			})
		},
	}
	f.add(cmd)
	tokenFlag(cmd)
	return cmd
}

func printLeave(w io.Writer, told map[int32]cluster.LeaveReport, output string) error {
	bad := false
	for _, r := range told {
		bad = bad || r.Error != "" || len(r.Occupied) > 0
	}
	if output == outputJSON {
		if err := json.NewEncoder(w).Encode(told); err != nil {
			return err
		}
	} else if err := tableLeave(w, told); err != nil {
		return err
	}
	if bad {
		return errNotAllToldBrokers
	}
	return nil
}

func tableLeave(w io.Writer, told map[int32]cluster.LeaveReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BROKER OF\tGROUPS\tOFFSETS\tPARTITIONS IT HAS NOT")
	ids := slices.Sorted(maps.Keys(told))
	for _, id := range ids {
		fmt.Fprintf(t, "node %d\t%d\t%d\t%d\n", id, told[id].Groups, told[id].Offsets, told[id].Missing)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, id := range ids {
		r := told[id]
		if r.Error != "" {
			fmt.Fprintf(w, "! node %d: %s\n", id, r.Error)
		}
		if len(r.Occupied) > 0 {
			fmt.Fprintf(w, "! node %d: groups with members, stop their consumers: %s\n", id, strings.Join(r.Occupied, ", "))
		}
	}
	return nil
}

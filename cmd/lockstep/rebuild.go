package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func rebuildCommand() *cobra.Command {
	var addr string
	var force bool
	cmd := &cobra.Command{
		Use:   "rebuild TOPIC",
		Short: "Make a topic anew on the broker of the node that is asked, from its peers' copies",
		Long: `Make a topic anew on the broker of the node that is asked.

A topic of which that node's broker holds a wrong copy is quarantined there and
not served. A rebuild deletes that copy and copies the topic from the peers'
brokers, once a majority of the other nodes has read its own copy through and
found it complete. With recovery.rebuild: auto that happens by itself.

With --force one complete copy elsewhere is enough, and a topic with records
that lockstep did not make is deleted, too. What only this broker held is lost.`,
		Args: cobra.ExactArgs(1),
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
			if err := client.Rebuild(ctx, addr, args[0], force); err != nil {
				return failed(fmt.Errorf("%w (lockstep status names what is quarantined, and on which node)", err))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "ordered: topic %s is made anew as soon as the others' copies are verified; lockstep status --wait 1h shows how it goes\n", args[0])
			return failed(err)
		},
	}
	cmd.Flags().StringVar(&addr, "admin", defaultAdmin[0], "admin address, host:port, of the node whose broker is meant")
	cmd.Flags().BoolVar(&force, "force", false, "be content with one complete copy elsewhere, and delete what lockstep did not make")
	tokenFlag(cmd)
	adminTLSFlags(cmd)
	return cmd
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"lockstep/configs"
	"lockstep/internal/embedded"
)

// embeddedBrokerCommand is the child process of the demo.
func embeddedBrokerCommand() *cobra.Command {
	var listen, dataDir string
	var withParent bool
	cmd := &cobra.Command{
		Use:    "embedded-broker --listen HOST:PORT --data-dir DIR",
		Short:  "Run the demo's broker: a fake, not for data one cares about",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkHostPort(listen); err != nil {
				return fmt.Errorf("--listen %q: %w", listen, err)
			}
			if dataDir == "" {
				return fmt.Errorf("--data-dir is not set: %w", embedded.ErrNoDataDir)
			}
			cfg := embedded.Config{Listen: listen, DataDir: dataDir, Ready: cmd.OutOrStdout(),
				Logger: newLogger(configs.Log{Level: "info", Format: configs.LogFormatText}, os.Stderr).Named("embedded-broker")}
			stopping := []os.Signal{syscall.SIGTERM}
			if withParent {
				// A key press reaches the parent too, which stops the proxies first.
				cfg.Parent = os.Stdin
				signal.Ignore(os.Interrupt, syscall.SIGHUP)
			} else {
				stopping = append(stopping, os.Interrupt)
			}
			ctx, cancel := signal.NotifyContext(context.Background(), stopping...)
			defer cancel()
			return failed(embedded.Run(ctx, cfg))
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "address, host:port")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "directory that holds everything")
	cmd.Flags().BoolVar(&withParent, "with-parent", false, "end when standard input does")
	return cmd
}

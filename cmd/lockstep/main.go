// Command lockstep runs beside a single-node Kafka-protocol broker and makes
// three of them one replicated cluster.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

// Exit codes: 0 is good, 1 says that the check failed, 2 that the command was
// used wrongly.
const (
	exitFailed = 1
	exitUsage  = 2
)

// failure is an error of a command that was used rightly.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(err error) error {
	if err == nil {
		return nil
	}
	return &failure{err}
}

// rootCommand has every command; docs/cli and the manual pages are made from it
// (make cli-docs).
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "lockstep",
		Short:         "Makes single-node Kafka-protocol brokers one replicated cluster",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		serveCommand(),
		demoCommand(),
		statusCommand(),
		verifyCommand(),
		doctorCommand(),
		bundleCommand(),
		rebuildCommand(),
		adoptCommand(),
		leaveCommand(),
		recoverCommand(),
		membersCommand(),
		transferCommand(),
		rebalanceCommand(),
		logLevelCommand(),
		versionCommand(),
		embeddedBrokerCommand(),
		manCommand(),
	)
	root.AddCommand(testCommands()...)
	completeAll(root)
	return root
}

func main() {
	cmd, err := rootCommand().ExecuteC()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "lockstep:", err)
	if next := nextStep(err); next != "" {
		fmt.Fprintln(os.Stderr, "next:", next)
	}
	var f *failure
	if errors.As(err, &f) {
		os.Exit(exitFailed)
	}
	fmt.Fprintf(os.Stderr, "see %s --help\n", cmd.CommandPath())
	os.Exit(exitUsage)
}

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

func main() {
	root := &cobra.Command{
		Use:           "lockstep",
		Short:         "Makes single-node Kafka-protocol brokers one replicated cluster",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(serveCommand(), demoCommand(), statusCommand(), verifyCommand(), rebuildCommand(), adoptCommand(), recoverCommand(), versionCommand(), embeddedBrokerCommand())
	root.AddCommand(testCommands()...)
	err := root.Execute()
	var f *failure
	switch {
	case err == nil:
	case errors.As(err, &f):
		fmt.Fprintln(os.Stderr, "lockstep:", err)
		os.Exit(exitFailed)
	default:
		fmt.Fprintln(os.Stderr, "lockstep:", err)
		fmt.Fprintln(os.Stderr, "see lockstep --help")
		os.Exit(exitUsage)
	}
}

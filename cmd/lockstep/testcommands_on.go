//go:build failpoints

package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"lockstep/internal/failpoint"
	"lockstep/internal/mutant"
)

// testCommands tell a test what this build can be made to do.
func testCommands() []*cobra.Command {
	list := func(name string, what any) *cobra.Command {
		return &cobra.Command{Use: name, Args: cobra.NoArgs, Hidden: true, RunE: func(cmd *cobra.Command, _ []string) error {
			return failed(json.NewEncoder(cmd.OutOrStdout()).Encode(what))
		}}
	}
	return []*cobra.Command{list("failpoints", failpoint.List()), list("mutants", mutant.List())}
}

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

const (
	formatMan      = "man"
	formatMarkdown = "markdown"
)

// manCommand is for packagers (make man) and for docs/cli (make cli-docs).
func manCommand() *cobra.Command {
	var dir, format string
	cmd := &cobra.Command{
		Use:    "man --dir DIR",
		Short:  "Write a manual page for each command",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fmt.Errorf("--dir is not set: name the directory to write to")
			}
			if format != formatMan && format != formatMarkdown {
				return fmt.Errorf("--format %q: it is man or markdown", format)
			}
			return failed(writeManual(cmd.Root(), dir, format))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to write to")
	cmd.Flags().StringVar(&format, "format", formatMan, "man or markdown")
	return cmd
}

// writeManual writes one file per command that is not hidden. The same program
// always writes the same.
func writeManual(root *cobra.Command, dir, format string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the manual: %w", err)
	}
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	var err error
	if format == formatMan {
		err = doc.GenManTree(root, &doc.GenManHeader{Title: "LOCKSTEP", Section: "1", Source: "Lockstep"}, dir)
	} else {
		err = doc.GenMarkdownTree(root, dir)
	}
	if err != nil {
		return fmt.Errorf("write the manual: %w", err)
	}
	return nil
}

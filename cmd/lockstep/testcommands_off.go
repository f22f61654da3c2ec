//go:build !failpoints

package main

import "github.com/spf13/cobra"

// testCommands are those of a build with failpoints.
func testCommands() []*cobra.Command { return nil }

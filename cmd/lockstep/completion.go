package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lockstep/internal/admin"
)

// completionTimeout bounds what a key press waits for a node's answer.
const completionTimeout = time.Second

// completion offers words for a shell; nothing of it may fail loudly.
type completion func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// flagCompletions are by the name of the flag, which means the same in every
// command.
var flagCompletions = map[string]completion{
	"admin-ca":    files("pem", "crt"),
	"admin-cert":  files("pem", "crt"),
	"admin-key":   files("pem", "key"),
	"admin":       offer("127.0.0.1:7501", "127.0.0.1:7502", "127.0.0.1:7503"),
	"config":      files("yaml", "yml"),
	"data-dir":    directories,
	"dir":         directories,
	"log-level":   offer("trace", "debug", "info", "warn", "error"),
	"node":        nodeIDs,
	"output":      offer(outputTable, outputJSON),
	"to":          nodeIDs,
	"topic":       topics,
	"admin-ports": offer(), "kafka-ports": offer(), "set": offer(),
}

// argCompletions are by the word that stands for the first argument in Use.
var argCompletions = map[string]completion{"TOPIC": topics, "NODE": nodeIDs, "ID": nodeIDs, "NODE_ID": nodeIDs}

// completeAll tells the shell about every command below and at cmd. A command
// that has completions of its own keeps them.
func completeAll(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		complete, ok := flagCompletions[f.Name]
		if _, own := cmd.GetFlagCompletionFunc(f.Name); !ok || own {
			return
		}
		if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
			panic(fmt.Sprintf("%s --%s: %v", cmd.CommandPath(), f.Name, err)) // a flag that was just seen
		}
	})
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
		cmd.ValidArgsFunction = argument(cmd)
	}
	for _, sub := range cmd.Commands() {
		completeAll(sub)
	}
}

// argument completes the first argument by its name in Use.
func argument(cmd *cobra.Command) completion {
	none := offer()
	words := strings.Fields(cmd.Use)
	if len(words) < 2 {
		return none
	}
	complete, ok := argCompletions[strings.Trim(words[1], "[]<>.")]
	if !ok {
		return none
	}
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return none(cmd, args, toComplete)
		}
		return complete(cmd, args, toComplete)
	}
}

func offer(words ...string) completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func files(extensions ...string) completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return extensions, cobra.ShellCompDirectiveFilterFileExt
	}
}

func directories(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// topics are those that a node knows.
func topics(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return fromNode(cmd, func(ctx context.Context, client *admin.Client, addr string) ([]string, error) {
		infos, err := client.Partitions(ctx, addr)
		var out []string
		for _, i := range infos {
			out = append(out, i.Topic)
		}
		return out, err
	})
}

// nodeIDs are the members', each with its Kafka address.
func nodeIDs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return fromNode(cmd, func(ctx context.Context, client *admin.Client, addr string) ([]string, error) {
		st, _, err := client.Status(ctx, addr)
		var out []string
		for _, n := range st.Nodes {
			out = append(out, strconv.Itoa(int(n.ID))+"\t"+listeners(n.Kafka))
		}
		return out, err
	})
}

// fromNode asks the first node that answers.
func fromNode(cmd *cobra.Command, ask func(context.Context, *admin.Client, string) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	client, err := adminClient(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	for _, addr := range adminAddrs(cmd) {
		if out, err := ask(ctx, client, addr); err == nil {
			slices.Sort(out)
			return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// adminAddrs is what --admin says, which takes one address or several.
func adminAddrs(cmd *cobra.Command) []string {
	if several, err := cmd.Flags().GetStringSlice("admin"); err == nil {
		return several
	}
	if one, err := cmd.Flags().GetString("admin"); err == nil {
		return []string{one}
	}
	return defaultAdmin
}

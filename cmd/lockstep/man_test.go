package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const (
	cliDocs     = "../../docs/cli"
	makeCLIDocs = "run: make cli-docs"
)

// docs/cli is what the commands say of themselves.
func TestCLIDocsAreInStep(t *testing.T) {
	dir := t.TempDir()
	if err := writeManual(rootCommand(), dir, formatMarkdown); err != nil {
		t.Fatal(err)
	}
	want, have := fileNames(t, dir), fileNames(t, cliDocs)
	for name := range have {
		if !want[name] {
			t.Errorf("docs/cli/%s is of a command that is not there any more; %s", name, makeCLIDocs)
		}
	}
	for name := range want {
		made, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(filepath.Join(cliDocs, name))
		if err != nil || !bytes.Equal(made, kept) {
			t.Errorf("docs/cli/%s is not what the command says; %s", name, makeCLIDocs)
		}
	}
}

func fileNames(t *testing.T, dir string) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("%v; %s", err, makeCLIDocs)
	}
	out := make(map[string]bool)
	for _, e := range entries {
		out[e.Name()] = true
	}
	return out
}

func TestManPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if out, code, err := runCommand(rootCommand(), "man", "--dir", dir); code != 0 {
		t.Fatalf("exit %d: %v\n%s", code, err, out)
	}
	page, err := os.ReadFile(filepath.Join(dir, "lockstep-demo-kill-leader.1"))
	if err != nil || !bytes.Contains(page, []byte(".TH")) || !bytes.Contains(page, []byte("--data-dir")) {
		t.Errorf("%v:\n%s", err, page)
	}
	for _, hidden := range []string{"lockstep-man.1", "lockstep-embedded-broker.1"} {
		if _, err := os.Stat(filepath.Join(dir, hidden)); err == nil {
			t.Errorf("%s was written", hidden)
		}
	}
	for _, args := range [][]string{{}, {"--dir", dir, "--format", "pdf"}, {"--dir", dir, "x"}} {
		if _, code, err := runCommand(rootCommand(), append([]string{"man"}, args...)...); code != exitUsage || err == nil {
			t.Errorf("%q: exit %d, %v", args, code, err)
		}
	}
	if _, code, err := runCommand(rootCommand(), "man", "--dir", "/dev/null/x"); code != exitFailed || err == nil {
		t.Errorf("a directory that cannot be made: exit %d, %v", code, err)
	}
}

// Every command and every flag says what it is for.
func TestEveryFlagIsExplained(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		if c.Short == "" && !c.Hidden || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		for _, line := range strings.Split(c.NonInheritedFlags().FlagUsages(), "\n") {
			if words := strings.Fields(line); len(words) == 1 {
				t.Errorf("%s: %s is not explained", c.CommandPath(), words[0])
			}
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(rootCommand())
}

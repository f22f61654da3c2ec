package main

import (
	"bytes"
	"os"
	"strings"
)

// command is how this program was called, with other arguments, for a shell.
func command(args ...string) string {
	words := []string{shellWord(os.Args[0])}
	for _, a := range args {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:,=@%+", r))
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func howEnded(m member) string {
	if err := m.Err(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}

// lastOf returns the end of a log file for a message.
func lastOf(file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(raw) > logTail {
		raw = raw[len(raw)-logTail:]
		if _, rest, ok := bytes.Cut(raw, []byte("\n")); ok {
			raw = rest
		}
	}
	return file + " ends with:\n" + strings.TrimSpace(string(raw))
}

// hints says what to type next.
func (d *demo) hints() {
	// The one to kill is neither of those that the commands use.
	first, victim, last := d.nodes[0], 1, d.nodes[demoNodes-1]
	flags, killLeader := []string(nil), []string{"demo", "kill-leader"}
	if d.cfg.dir != defaultDemoDir {
		killLeader = append(killLeader, "--data-dir", d.cfg.dir)
	}
	if first.admin != defaultAdmin[0] {
		flags = []string{"--admin", first.admin}
	}
	d.say(`
in another terminal:
  kcat -b %[1]s -L
  seq 1000 | kcat -b %[1]s -t numbers -P
  kcat -b %[2]s -t numbers -C -e -o beginning
  %[3]s
  %[4]s
kill a leader with its broker under load, and have everything read back and counted:
  %[8]s
or kill node %[7]d yourself and do all of it again (verify --allow-missing):
  kill -9 %[5]d %[6]d
Ctrl-C stops everything and keeps the data`,
		first.kafka, last.kafka, command(append([]string{"status"}, flags...)...), command(append([]string{"verify"}, flags...)...),
		d.proxies[victim].PID(), d.brokers[victim].PID(), d.nodes[victim].id,
		command(killLeader...))
}

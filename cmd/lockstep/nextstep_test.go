package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mistake is what an operator does wrong, and what the program must say.
type mistake struct {
	name string
	args []string
	code int
	says []string // the cause, then the next step
}

// check runs the program and checks what it says.
func (m *mistake) check(t *testing.T, bin string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, m.args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run() // the exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != m.code {
		t.Errorf("lockstep %s: exit %d, want %d", strings.Join(m.args, " "), code, m.code)
	}
	for _, s := range m.says {
		if !strings.Contains(stderr.String(), s) {
			t.Errorf("lockstep %s: it does not say %q:\n%s", strings.Join(m.args, " "), s, &stderr)
		}
	}
	for _, s := range []string{"panic", "goroutine ", "%!"} {
		if strings.Contains(stderr.String(), s) {
			t.Errorf("lockstep %s says %q:\n%s", strings.Join(m.args, " "), s, &stderr)
		}
	}
}

// with are the arguments that serve another node beside a running one, whose
// ports and directory it does not share unless the test says so.
func (n *loneNode) with(t *testing.T, sets ...string) []string {
	t.Helper()
	ports := testPorts(t, 3)
	args := []string{"serve", "--config", n.config, "--set", "data_dir=" + t.TempDir(),
		"--set", "listeners=PLAINTEXT://" + loopback(ports[0]), "--set", "admin.listen=" + loopback(ports[1]),
		"--set", "raft.listen=" + loopback(ports[2]), "--set", "raft.peers=1=" + loopback(ports[2])}
	for _, s := range sets {
		args = append(args, "--set", s)
	}
	return args
}

// TestErrorsSayTheNextStep provokes each with the real program.
func TestErrorsSayTheNextStep(t *testing.T) {
	bin := buildLockstep(t)
	n := newLoneNode(t, bin)
	n.start()
	n.out.await(t, 30*time.Second, `leader changed: group=0`)
	free := loopback(testPorts(t, 1)[0])
	dir := t.TempDir()
	file := func(name, text string) string {
		writeFile(t, filepath.Join(dir, name), []byte(text))
		return filepath.Join(dir, name)
	}
	const noAdmin, otherPort = "next: start the node", "next: check that --admin is a node's admin.listen"
	const taken, wrongPath = "next: end what listens there", "next: name a path that can be what is asked for"
	for _, m := range []mistake{
		{"status, nobody there", []string{"status", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"verify, nobody there", []string{"verify", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"rebuild, nobody there", []string{"rebuild", "orders", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"members, nobody there", []string{"members", "list", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"members add, nobody there", []string{"members", "add", "4", "--address", "node-4.example:7400", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"transfer, nobody there", []string{"transfer", "--group", "0", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"log-level, nobody there", []string{"log-level", "debug", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"adopt, nobody there", []string{"adopt", "--admin", free}, 1, []string{"refused", free, noAdmin}},
		{"status, Kafka port", []string{"status", "--admin", n.kafka}, 1, []string{n.kafka, otherPort}},
		{"status, Raft port", []string{"status", "--admin", n.raft}, 1, []string{n.raft, otherPort}},
		{"status, no port", []string{"status", "--admin", "localhost"}, 2, []string{"it is host:port", "see lockstep status --help"}},
		{"status, no such host", []string{"status", "--admin", "no-such-host.invalid:7501"}, 1, []string{"no-such-host.invalid", "next: check the spelling"}},
		{"verify, unknown topic", []string{"verify", "--admin", n.admin, "--topic", "nope"}, 1, []string{`"nope"`, "verify without --topic shows all"}},
		{"rebuild, sound topic", []string{"rebuild", "nope", "--admin", n.admin}, 1, []string{"no quarantined partition", "lockstep status"}},

		{"no configuration", []string{"serve"}, 2, []string{"node.id is not set", "--config", "see lockstep serve --help"}},
		{"configuration missing", []string{"serve", "--config", filepath.Join(dir, "nope.yaml")}, 2, []string{"nope.yaml", "next: check the path's spelling"}},
		{"configuration a directory", []string{"serve", "--config", dir}, 2, []string{"is a directory", wrongPath}},
		{"configuration no YAML", []string{"serve", "--config", file("bad.yaml", "node: {id: 1\n")}, 2, []string{"line 1", "mend the line", "configs/reference.yaml"}},
		{"unknown key", []string{"serve", "--config", file("key.yaml", "raft: {lissten: 0.0.0.0:7400}\n")}, 2, []string{"raft.lissten", "line 1", "did you mean raft.listen?"}},
		{"unknown --set", []string{"serve", "--set", "raft.grops=1"}, 2, []string{"raft.grops", "did you mean raft.groups?"}},
		{"value out of range", n.with(t, "raft.groups=0"), 2, []string{"raft.groups", "set it to at least 1"}},
		{"unencrypted and open", n.with(t, "raft.listen=0.0.0.0:1"), 2, []string{"raft.listen", "raft.tls"}},

		{"data_dir in use", n.with(t, "data_dir="+n.dataDir), 1, []string{n.dataDir, "does another lockstep use this data_dir?"}},
		{"data_dir a file", n.with(t, "data_dir="+n.config), 1, []string{n.config, wrongPath}},
		{"data_dir cannot be made", n.with(t, "data_dir=/dev/null/x"), 1, []string{"/dev/null", wrongPath}},
		{"Kafka port in use", n.with(t, "listeners=PLAINTEXT://"+n.kafka), 1, []string{n.kafka, "in use", taken}},
		{"Raft port in use", n.with(t, "raft.listen="+n.raft, "raft.peers=1="+n.raft), 1, []string{n.raft, "in use", taken}},
		{"admin port in use", n.with(t, "admin.listen="+n.admin), 1, []string{n.admin, "in use", taken}},
		{"not an address of ours", n.with(t, "admin.listen=192.0.2.1:7501", "admin.insecure=true"), 1, []string{"192.0.2.1", "next: use an address that this machine has"}},
		{"no such certificate", n.with(t, "raft.tls.cert_file=/nope.pem", "raft.tls.key_file=/nope.key", "raft.tls.ca_file=/ca.pem"), 1,
			[]string{"/nope", "raft.tls", "next: check the path's spelling"}},

		{"recover without consent", []string{"recover", "--config", n.config}, 2, []string{"nothing was done", "--accept-data-loss"}},
		{"recover beside a running node", []string{"recover", "--config", n.config, "--accept-data-loss"}, 1, []string{n.dataDir, "does another lockstep use this data_dir?"}},

		{"unknown command", []string{"serv"}, 2, []string{`unknown command "serv"`, "serve", "see lockstep --help"}},
		{"unknown flag", []string{"verify", "--nope"}, 2, []string{"--nope", "see lockstep verify --help"}},
		{"demo, a file", []string{"demo", "--data-dir", n.config}, 1, []string{n.config, wrongPath}},
		{"kill-leader, no rate", []string{"demo", "kill-leader", "--rate", "0"}, 2, []string{"--rate 0", "between 1 and", "see lockstep demo kill-leader --help"}},
	} {
		t.Run(m.name, func(t *testing.T) { m.check(t, bin) })
	}
	n.stop()
	for _, m := range []mistake{ // with the directory that the node has left
		{"another cluster's data_dir", n.with(t, "data_dir="+n.dataDir, "cluster.id=other"), 1, []string{`"lone"`, `"other"`, "set data_dir or cluster.id right"}},
		{"another node's data_dir", n.with(t, "data_dir="+n.dataDir, "node.id=2", "raft.peers=2="+n.raft, "raft.listen="+n.raft), 1, []string{"node 1", "set data_dir or node.id right"}},
		{"other number of groups", n.with(t, "data_dir="+n.dataDir, "raft.groups=5"), 1, []string{"raft.groups is 5", "cannot be changed"}},
	} {
		t.Run(m.name, func(t *testing.T) { m.check(t, bin) })
	}
	writeFile(t, filepath.Join(n.dataDir, "identity.json"), []byte("{"))
	damaged := mistake{"", n.with(t, "data_dir="+n.dataDir), 1, []string{"identity.json is damaged", "empty data_dir and readmit the node"}}
	damaged.check(t, bin)
}

// A node that its peers refuse says so in its log, and why.
func TestRefusedByPeersSaysTheNextStep(t *testing.T) {
	bin := buildLockstep(t)
	first := newLoneNode(t, bin)
	first.start()
	first.out.await(t, 30*time.Second, `leader changed: group=0`)
	for _, tt := range []struct{ name, set, says string }{
		{"another cluster", "cluster.id=other", `cluster ids differ.*check cluster\.id`},
		{"other groups", "raft.groups=5", `numbers of raft groups differ.*check raft\.groups`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			second := newLoneNode(t, bin)
			args := second.with(t, "node.id=2", "raft.listen="+second.raft, "raft.peers=1="+first.raft+",2="+second.raft, tt.set)
			second.startWith(args)
			second.out.await(t, 30*time.Second, tt.says)
			second.stop()
		})
	}
}

func TestNextStep(t *testing.T) {
	for _, tt := range []struct {
		err  error
		says string
	}{
		{fmt.Errorf("a: %w", &os.PathError{Op: "open", Path: "x", Err: syscall.EROFS}), "the right to it"},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, "the right to it"},
		{fmt.Errorf("a: %w", syscall.ENOSPC), "make room"},
		{fmt.Errorf("a: %w", syscall.EMFILE), "open files"},
		{errors.Join(errors.New("b"), fmt.Errorf("a: %w", context.DeadlineExceeded)), "the node's log"},
		{&net.DNSError{Name: "kafka-1"}, "the spelling of kafka-1"},
		{fmt.Errorf("a: %w", io.EOF), "admin.listen"},
		{errors.New("what it says itself"), ""},
		{context.Canceled, ""},
	} {
		if got := nextStep(tt.err); !strings.Contains(got, tt.says) || tt.says == "" && got != "" {
			t.Errorf("%v: %q does not say %q", tt.err, got, tt.says)
		}
	}
}

// A directory that may not be written to. Root may write everywhere, so the
// program runs as nobody then.
func TestReadOnlyDirectory(t *testing.T) {
	dir := shortDir(t)
	raw, err := os.ReadFile(buildLockstep(t))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "lockstep") // where nobody can read it
	if err := os.WriteFile(bin, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	ports := testPorts(t, 6)
	cmd := exec.CommandContext(t.Context(), bin, "demo", "--data-dir", filepath.Join(dir, "demo"),
		"--kafka-ports", commas(ports[:3]), "--admin-ports", commas(ports[3:]))
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "next: give the user") {
		t.Errorf("%v\n%s", err, out)
	}
}

const nobody = 65534 // the user and the group without rights

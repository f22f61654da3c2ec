//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAdminOverTLS: the admin ports of a cluster speak TLS. Reading is open, a
// change needs the token or a certificate of the right authority, and every command
// reaches the port. Files that are replaced count from the next connection on.
func TestAdminOverTLS(t *testing.T) {
	const token = "admin-token-7741-0123"
	dir := t.TempDir()
	nodes, people, strangers := newTestAuthority(t), newTestAuthority(t), newTestAuthority(t)
	place := func(name string) string { return filepath.Join(dir, name) }
	writeSecret(t, place("nodes.pem"), nodes.pem())
	writeSecret(t, place("people.pem"), people.pem())
	writeSecret(t, place("token"), []byte(token+"\n"))
	certFile, keyFile := nodes.issue(t, t.TempDir())
	rightCert, rightKey := people.issue(t, t.TempDir())
	wrongCert, wrongKey := strangers.issue(t, t.TempDir())
	trusts := &adminTLS{flags: []string{"--admin-ca", place("nodes.pem")}, client: &http.Client{Timeout: 3 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: nodes.pool}, DisableKeepAlives: true}}}
	c := newClusterWith(t, clusterOpts{embedded: true, settings: func(n *node) []string {
		n.secure = trusts
		return []string{"admin.token_file=" + place("token"), "admin.tls.cert_file=" + certFile, "admin.tls.key_file=" + keyFile, "admin.tls.ca_file=" + place("people.pem")}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	first := c.nodes[0]
	change := func(flags ...string) error {
		_, err := first.cli(ctx, append([]string{"log-level", "debug"}, flags...)...)
		return err
	}
	for _, test := range []struct {
		name  string
		flags []string
		want  string // a part of what is said; empty: it works
	}{
		{"nothing", nil, "--token-file FILE or LOCKSTEP_ADMIN_TOKEN), or a certificate"},
		{"the wrong authority's certificate", []string{"--admin-cert", wrongCert, "--admin-key", wrongKey}, "admin.tls.ca_file"},
		{"the nodes' own certificate", []string{"--admin-cert", certFile, "--admin-key", keyFile}, "admin.tls.ca_file"},
		{"the right certificate", []string{"--admin-cert", rightCert, "--admin-key", rightKey}, ""},
		{"the token", []string{"--token-file", place("token")}, ""},
	} {
		if err := change(test.flags...); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("a change with %s: %v, want %q", test.name, err, test.want)
		}
	}
	c.adminTLSReads(ctx, first)

	// Nobody is left who spoke plain HTTP, or trusts another authority, without
	// being told.
	for flags, want := range map[string]string{"": "this admin port speaks TLS", "--admin-ca=" + place("people.pem"): "the node's certificate is not trusted"} {
		args := strings.Fields("status --admin " + first.adminAddr() + " " + flags)
		if out, err := exec.CommandContext(ctx, first.bin, args...).CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	if lines := first.logLines("this port speaks TLS (admin.tls)"); len(lines) != 1 {
		t.Errorf("plain HTTP to the admin port stands %d times in the log", len(lines))
	}

	before := serialAt(t, nodes, first.adminAddr())
	nodes.issue(t, filepath.Dir(certFile))
	if after := serialAt(t, nodes, first.adminAddr()); after.Cmp(before) == 0 {
		t.Error("a new connection got the old certificate")
	}
	writeSecret(t, place("people.pem"), strangers.pem())
	if err := change("--admin-cert", rightCert, "--admin-key", rightKey); err == nil {
		t.Error("a certificate of an authority that was withdrawn changed something")
	}
	if err := change("--admin-cert", wrongCert, "--admin-key", wrongKey); err != nil {
		t.Errorf("a certificate of the new authority: %v", err)
	}
	c.verify()
	for _, n := range c.nodes {
		secretsAbsent(t, n, token)
	}
}

// adminTLSReads asks all that can be read without a certificate or a token.
func (c *cluster) adminTLSReads(ctx context.Context, n *node) {
	c.t.Helper()
	if out, err := n.cli(ctx, "members", "list"); err != nil || strings.Count(out, "\n") != 4 {
		c.t.Errorf("members list: %v\n%s", err, out)
	}
	bundle := filepath.Join(c.dir, "bundle.tar.gz")
	if _, err := n.cli(ctx, "bundle", "--out", bundle); err != nil {
		c.t.Error(err)
	}
	if out, err := exec.CommandContext(ctx, "tar", "tzf", bundle).CombinedOutput(); err != nil || strings.Count(string(out), "/status.txt") != len(c.nodes) {
		c.t.Errorf("a bundle made from one node does not hold the others: %v\n%s", err, out)
	}
	if found := n.doctor(ctx, c.t, 0, n.settings...); !found["ok certificate of admin.tls"] && !found["warning certificate of admin.tls"] || !found["ok node"] {
		c.t.Errorf("the doctor found %v", found)
	}
	resp, err := n.adminClient().Get(n.adminURL() + "/")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, other := range c.nodes {
		if link := fmt.Sprintf(`href="https://%s/"`, other.adminAddr()); !strings.Contains(string(page), link) {
			c.t.Errorf("the page has no %s", link)
		}
	}
}

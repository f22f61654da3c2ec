package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/internal/admin"
	"lockstep/proxy"
)

// A bundle has what every node says, found from one of them; neither records nor
// secrets are in it.
func TestBundle(t *testing.T) {
	t.Parallel()
	c := startInCluster(t)
	c.createTopic(1, "orders", 3)
	c.led(1, "orders")
	c.shown(1, "every node", func(v *proxy.View) bool { return len(v.Nodes) == 3 })
	cl := c.client(c.kafka(1))
	c.produce(cl, "orders", "planted-payload", 3, 5)
	dir := t.TempDir()
	config := filepath.Join(dir, "lockstep.yaml")
	if err := os.WriteFile(config, []byte("node: {id: 1}\nsasl_password: planted-secret\nadmin:\n  token: planted-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "bundle.tar.gz")
	var said bytes.Buffer
	b := &bundle{client: admin.NewClient(), addrs: []string{c.nodes[1].cfg.Admin.Listen}, config: config, say: &said}
	if err := writeBundle(c.ctx, b, out); err != nil {
		t.Fatal(err)
	}
	files := readBundle(t, out)
	for _, want := range []struct{ file, part string }{
		{"node-1/status.txt", `"healthy"`}, {"node-2/members.txt", `"votes"`}, {"node-3/partitions.txt", "orders"},
		{"node-2/metrics.txt", "lockstep_raft_term"}, {"node-3/goroutines.txt", "goroutine profile"}, {"node-1/livez.txt", "[+]process ok"},
		{"node-1/log.txt", "leader changed"}, {"node-2/log.txt", "serving"}, {"node-1/log.txt", "why="},
		{"config.yaml", "sasl_password: (left out)"}, {"config.yaml", "node: {id: 1}"}, {"lockstep.txt", version},
	} {
		if !strings.Contains(files["lockstep-bundle/"+want.file], want.part) {
			t.Errorf("%s does not have %q: %.200s", want.file, want.part, files["lockstep-bundle/"+want.file])
		}
	}
	for name, text := range files {
		if strings.Contains(text, "planted") {
			t.Errorf("%s holds a record or a secret", name)
		}
	}
	if err := writeBundle(c.ctx, b, out); err == nil {
		t.Error("a bundle that is there is written over")
	}
	nobody := filepath.Join(dir, "nobody.tar.gz")
	if err := writeBundle(c.ctx, &bundle{client: admin.NewClient(), addrs: []string{"127.0.0.1:1"}, say: io.Discard}, nobody); err == nil || !strings.Contains(err.Error(), "no node answers") {
		t.Errorf("without a node: %v", err)
	}
	if _, err := os.Stat(nobody); err == nil {
		t.Error("a bundle of nothing is left behind")
	}
}

func readBundle(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(raw)
	}
}

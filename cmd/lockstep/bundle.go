package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
)

// bundled is what is asked of every node. None of it has records in it, or
// secrets.
var bundled = []string{"livez", "readyz", "status", "members", "partitions", "metrics", "goroutines", "log"}

// secretLine is a line of a configuration that may hold a secret. Lockstep's own
// keys name files only, but a file may hold more than keys of ours.
var secretLine = regexp.MustCompile(`(?i)(password|secret|token|jaas)[^:=]*[:=]`)

func bundleCommand() *cobra.Command {
	var f adminFlags
	var file, out string
	cmd := &cobra.Command{
		Use:   "bundle --out FILE",
		Short: "Put what helps to find a fault into one archive: of every node that can be reached",
		Long: `Put what helps to find a fault into one archive (tar.gz): what every node that can be
reached says of itself and the cluster, its metrics, its partitions' offsets, its
goroutines and the newest lines of its log. With --config, that file too, without lines that may hold a secret. Names
of topics and addresses are in it; records are not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if out == "" {
				return errors.New("--out names no file to write")
			}
			client, err := adminClient(cmd)
			if err != nil {
				return failed(err)
			}
			defer client.Close()
			ctx, cancel := interruptible()
			defer cancel()
			return failed(writeBundle(ctx, &bundle{client: client, addrs: f.addrs, config: file, say: cmd.ErrOrStderr()}, out))
		},
	}
	cmd.Flags().StringSliceVar(&f.addrs, "admin", defaultAdmin, "admin addresses of nodes, host:port; the others are found from there")
	f.output = outputTable
	adminTLSFlags(cmd)
	cmd.Flags().StringVar(&file, "config", "", "configuration file of this machine's node, to be put in")
	cmd.Flags().StringVar(&out, "out", "", "file to write, which must not exist yet")
	return cmd
}

// bundle is one run of the command.
type bundle struct {
	addrs  []string
	config string
	say    io.Writer
	client *admin.Client
	tar    *tar.Writer
	now    time.Time
}

func writeBundle(ctx context.Context, b *bundle, out string) error {
	file, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	z := gzip.NewWriter(file)
	b.tar, b.now = tar.NewWriter(z), time.Now()
	nodes, err := b.collect(ctx)
	err = errors.Join(err, b.tar.Close(), z.Close(), file.Close())
	if err == nil && nodes == 0 {
		err = errors.New("no node answers; is one running, and is --admin its admin.listen?")
	}
	if err != nil {
		return errors.Join(err, os.Remove(out))
	}
	fmt.Fprintf(b.say, "wrote %s: %d nodes\n", out, nodes)
	return nil
}

// collect asks the nodes that were named, and those that they name.
func (b *bundle) collect(ctx context.Context) (nodes int, err error) {
	if err := b.add("lockstep.txt", fmt.Appendf(nil, "lockstep %s, %s, %s/%s\n%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, b.now.UTC().Format(time.RFC3339))); err != nil {
		return 0, err
	}
	if b.config != "" {
		raw, err := os.ReadFile(b.config)
		if err != nil {
			return 0, fmt.Errorf("read the configuration: %w", err)
		}
		if err := b.add("config.yaml", redact(raw)); err != nil {
			return 0, err
		}
	}
	asked := make(map[url.URL]bool)
	seen := make(map[int32]bool)
	for queue := slices.Clone(b.addrs); len(queue) > 0 && ctx.Err() == nil; queue = queue[1:] {
		addr := queue[0]
		at := b.client.URL(addr)
		if asked[at] {
			continue
		}
		asked[at] = true
		st, _, err := b.client.Status(ctx, addr)
		if err != nil {
			fmt.Fprintf(b.say, "%s does not answer: %v\n", addr, err)
			if err := b.add("away/"+strings.ReplaceAll(at.Host, ":", "_")+".txt", []byte(err.Error()+"\n")); err != nil {
				return nodes, err
			}
			continue
		}
		for _, n := range st.Nodes {
			if n.Admin != "" {
				queue = append(queue, admin.Registered(n.Admin))
			}
		}
		if seen[st.NodeID] {
			continue
		}
		seen[st.NodeID] = true
		nodes++
		fmt.Fprintf(b.say, "asking node %d at %s\n", st.NodeID, addr)
		if err := b.ask(ctx, addr, "node-"+strconv.Itoa(int(st.NodeID))); err != nil {
			return nodes, err
		}
	}
	return nodes, context.Cause(ctx)
}

// ask puts a node's answers in. One that does not come is told in its place.
func (b *bundle) ask(ctx context.Context, addr, dir string) error {
	for _, what := range bundled {
		raw, err := b.client.Raw(ctx, addr, "/"+what)
		if err != nil {
			raw = []byte(err.Error() + "\n")
		}
		if err := b.add(path.Join(dir, what+".txt"), raw); err != nil {
			return err
		}
	}
	return nil
}

func (b *bundle) add(name string, raw []byte) error {
	h := &tar.Header{Name: "lockstep-bundle/" + name, Mode: 0o600, Size: int64(len(raw)), ModTime: b.now}
	if err := b.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	if _, err := b.tar.Write(raw); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

// redact leaves out what stands behind a name that may be a secret's.
func redact(raw []byte) []byte {
	lines := strings.SplitAfter(string(raw), "\n")
	for i, l := range lines {
		if at := secretLine.FindStringIndex(l); at != nil {
			lines[i] = l[:at[1]] + " (left out)\n"
		}
	}
	return []byte(strings.Join(lines, ""))
}

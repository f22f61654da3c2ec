// Package embedded is the broker of `lockstep demo` and of fast tests: kfake,
// from franz-go, run as a child process.
//
// It is not a broker for data one cares about. It runs one goroutine for
// everything; after a crash (not after a clean stop) it has forgotten the
// producers' sequence windows and log starts moved by DeleteRecords. It runs
// in a process of its own so that a bug in it cannot take a node down.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

var (
	// ErrNoDataDir is returned when Config.DataDir is empty: without one,
	// kfake keeps everything in memory, twice.
	ErrNoDataDir = errors.New("embedded broker needs a data directory")
	// ErrNotReady is returned when a child ended or was given up before it
	// said that it listens.
	ErrNotReady = errors.New("embedded broker did not become ready")
)

// readyPrefix starts the line that tells the parent the address.
const readyPrefix = "ready "

// Config configures the broker in the child process.
type Config struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// DataDir holds all state. It is locked while in use; a second broker
	// waits for the first to end.
	DataDir string
	// ClusterID is shown in Metadata. Default "lockstep-embedded".
	ClusterID string
	// Ready gets one line, "ready host:port", when the broker listens.
	Ready io.Writer
	// Parent is the standard input the parent process keeps open; its end
	// stops the broker. May be nil.
	Parent io.Reader
	// Logger gets the broker's warnings. Default: none.
	Logger hclog.Logger
}

// Run runs the broker until ctx ends or Parent does, then closes it cleanly,
// which is what makes producer sequences survive. It installs no signal
// handler: the subcommand passes a context that SIGTERM ends. The node id is
// always 0.
func Run(ctx context.Context, cfg Config) error {
	if cfg.DataDir == "" {
		return ErrNoDataDir
	}
	if cfg.ClusterID == "" {
		cfg.ClusterID = "lockstep-embedded"
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if cfg.Parent != nil {
		// This read has no end but the parent's; the process is about to exit
		// when it is left behind.
		go func() {
			_, _ = io.Copy(io.Discard, cfg.Parent)
			cancel()
		}()
	}
	unlock, err := lockDir(ctx, cfg.DataDir)
	if err != nil {
		return fmt.Errorf("lock data directory %s: %w", cfg.DataDir, err)
	}
	defer unlock()

	cluster, err := open(cfg)
	if err != nil {
		return fmt.Errorf("start embedded broker: %w", err)
	}
	defer cluster.Close()
	if cfg.Ready != nil {
		if _, err := fmt.Fprintf(cfg.Ready, "%s%s\n", readyPrefix, cluster.ListenAddrs()[0]); err != nil {
			return fmt.Errorf("tell the parent: %w", err)
		}
	}
	<-ctx.Done()
	return nil
}

func open(cfg Config) (*kfake.Cluster, error) {
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID(cfg.ClusterID),
		kfake.DataDir(cfg.DataDir),
		// A released version also turns off a rule that refuses a first
		// sequence other than 0 on a new partition (KAFKA-15591), which would
		// break refilling a log.
		kfake.MaxVersions(kversion.V4_0_0()),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			return listen(network, cfg.Listen, cfg.Logger)
		}),
		kfake.WithLogger(brokerLog{cfg.Logger}),
	)
	if err != nil {
		return nil, err
	}
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req, ok := kreq.(*kmsg.OffsetFetchRequest)
		if !ok || !allUnknown(cluster, req) {
			return nil, nil, false
		}
		return nothingCommitted(req), nil, true
	})
	cluster.ControlKey(int16(kmsg.JoinGroup), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req, ok := kreq.(*kmsg.JoinGroupRequest)
		if !ok || !uncountable(req) {
			return nil, nil, false
		}
		return inconsistent(req), nil, true
	})
	return cluster, nil
}

// brokerLog takes kfake's log lines.
type brokerLog struct{ logger hclog.Logger }

// Logf implements kfake.Logger. The texts are kfake's own.
func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	to := hclog.Debug
	switch level {
	case kfake.LogLevelError:
		to = hclog.Error
	case kfake.LogLevelWarn:
		to = hclog.Warn
	}
	if l.logger.GetLevel() <= to {
		l.logger.Log(to, "embedded broker", "says", fmt.Sprintf(format, args...))
	}
}

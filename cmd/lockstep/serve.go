package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"lockstep/configs"
)

// stopTimeout bounds a graceful stop; a second signal ends the process at once.
const stopTimeout = 15 * time.Second

func serveCommand() *cobra.Command {
	var file string
	var sets []string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the proxy of one node",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := configs.Load(file, sets, os.Environ())
			if err != nil {
				return fmt.Errorf("configuration: %w", err)
			}
			return failed(serve(cfg))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the node's configuration")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "set one key, as in --set raft.groups=1 (may be repeated)")
	return cmd
}

// chatter is what hashicorp/raft repeats several times a second while a peer
// is away, and says five times of every snapshot. The transport and the status
// say it once.
var chatter = []string{
	"failed to heartbeat to", "failed to appendEntries to", "failed to contact", "failed to pipeline appendEntries",
	"failed to make requestVote RPC", "failed to get peer's address", "aborting pipeline replication", "pipelining replication",
	"starting snapshot up to", "creating new snapshot", "reaping snapshot", "compacting logs", "snapshot complete up to",
	"added peer, starting replication", "rejecting pre-vote request since we have a leader", "rejecting vote request since we have a leader",
}

// exclude keeps the chatter out of the log, unless it is at level debug.
func exclude(cfg configs.Log) func(hclog.Level, string, ...any) bool {
	if hclog.LevelFromString(cfg.Level) <= hclog.Debug {
		return nil
	}
	return func(_ hclog.Level, msg string, _ ...any) bool { return slices.Contains(chatter, msg) }
}

func newLogger(cfg configs.Log, out io.Writer) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Exclude:    exclude(cfg),
		Name:       "lockstep",
		Level:      hclog.LevelFromString(cfg.Level),
		JSONFormat: cfg.Format == configs.LogFormatJSON,
		Output:     out,
		TimeFormat: "2006-01-02T15:04:05.000Z07:00",
	})
}

// untilStopped returns when the node is told to stop, nil, or cannot go on, why.
// A hangup is neither: it reloads daemons that keep their settings apart from
// their state, and must not end one that leads.
func untilStopped(n *app, log hclog.Logger, signals <-chan os.Signal) error {
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				log.Warn("a hangup neither stops nor reloads this node", "next", "settings are read at the start: restart it; certificates are read again by themselves; lockstep log-level changes the log")
				continue
			}
			log.Info("stopping", "signal", s.String())
			return nil
		case <-n.node.Failed():
			return n.node.Err()
		case <-n.applier.Failed():
			return n.applier.Err()
		}
	}
}

// serve runs a node until it is told to stop or cannot go on.
func serve(cfg configs.Config) error {
	recent := new(recentLog)
	log := newLogger(cfg.Log, recent.tee(os.Stderr))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	n, err := newNode(cfg, log, recent)
	if err != nil {
		return err
	}
	if err := n.open(); err != nil {
		return errors.Join(err, n.close())
	}
	tell := func(state, status string) {
		if err := notifyManager(state, status); err != nil {
			log.Warn("the service manager does not hear this node", "error", err, "next", "check NotifyAccess and the unit's Type")
		}
	}
	tell(notifyReady, fmt.Sprintf("node %d serves %s; lockstep status --admin %s says how the cluster is", cfg.Node.ID, n.proxy.Addrs(), adminAddress(cfg)))
	why := untilStopped(n, log, signals)
	tell(notifyStopping, "handing over leaders and letting clients finish")
	done := make(chan error, 1)
	go func() {
		if why == nil {
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			n.drain(ctx)
		}
		done <- n.close()
	}()
	select {
	case err := <-done:
		return errors.Join(why, err)
	case s := <-signals:
		return errors.Join(why, fmt.Errorf("ended by a second signal: %s", s))
	case <-time.After(2 * stopTimeout):
		return errors.Join(why, errors.New("did not stop in time"))
	}
}

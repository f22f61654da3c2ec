package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// leftoverTimeout is longer than the processes of a demo that was killed take
// to end.
const leftoverTimeout = 2*stopTimeout + 5*time.Second

// errDemoRuns is returned when a demo is started in a directory of one that runs.
var errDemoRuns = errors.New("a demo runs there already")

// checkAlone refuses a directory in which a demo runs.
func (c *demoConfig) checkAlone(ctx context.Context) error {
	_, nodes, err := findDemo(ctx, c.dir)
	switch {
	case errors.Is(err, errNoDemo):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: %s, Kafka on %s; use that one, stop it with Ctrl-C, or name another --data-dir and other ports",
		errDemoRuns, c.dir, nodes[0].Kafka)
}

// awaitPorts returns when the ports can be had. Only for the processes of a
// demo of this directory that was killed, which end by themselves, it waits.
func (c *demoConfig) awaitPorts(ctx context.Context, own demoPorts, out io.Writer) error {
	err := c.checkPorts(own)
	if !errors.Is(err, errPortTaken) {
		return err
	}
	if _, gone := os.Stat(filepath.Join(c.dir, controlFile)); gone != nil {
		return err
	}
	fmt.Fprintf(out, "the demo in %s was killed: waiting until its processes have ended\n", c.dir)
	timeout, tick := time.NewTimer(leftoverTimeout), time.NewTicker(demoAskEvery)
	defer timeout.Stop()
	defer tick.Stop()
	for errors.Is(err, errPortTaken) {
		select {
		case <-tick.C:
			err = c.checkPorts(own)
		case <-timeout.C:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

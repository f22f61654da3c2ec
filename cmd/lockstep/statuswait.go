package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
	"lockstep/internal/progress"
)

const (
	maxStatusWait  = 7 * 24 * time.Hour
	statusAskEvery = 500 * time.Millisecond
)

func checkStatusWait(wait time.Duration) error {
	if wait < 0 || wait > maxStatusWait {
		return fmt.Errorf("--wait %s: it is from 0 to %s", wait, maxStatusWait)
	}
	return nil
}

// awaitHealthy shows what is waited for on w until a node says that the
// cluster is healthy and nothing is copied, or the time is over: the status
// that is shown next says which.
func awaitHealthy(ctx context.Context, client *admin.Client, f *adminFlags, wait time.Duration, w io.Writer) error {
	if wait == 0 {
		return nil
	}
	bar := progress.Start(w, "status")
	defer bar.Done()
	timeout, tick := time.NewTimer(wait), time.NewTicker(statusAskEvery)
	defer timeout.Stop()
	defer tick.Stop()
	for {
		st, _, err := anyStatus(ctx, client, f.addrs)
		if err != nil {
			bar.Set(0, 0, "no node answers")
		} else if percent, what := unfinished(&st); what == "" {
			return nil
		} else {
			bar.Set(percent, 100, what)
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unfinished says what is waited for, nothing if the cluster is as it should be.
func unfinished(st *cluster.Status) (percent int64, what string) {
	for _, n := range st.Nodes {
		if n.Recovery != nil && n.Recovery.Copy != nil {
			return int64(n.Recovery.Copy.Percent), fmt.Sprintf("node %d copies %s", n.ID, copyText(n.Recovery.Copy))
		}
	}
	if !st.Healthy {
		what = "not healthy"
		if len(st.Problems) > 0 {
			what = st.Problems[0]
		}
	}
	return 0, what
}

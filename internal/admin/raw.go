package admin

import (
	"context"
	"fmt"
	"net/http"
	"runtime/pprof"
	"time"
)

// goroutines answers what this process is doing: one stack for each group of
// goroutines that stand at the same place.
func (s *Server) goroutines(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = pprof.Lookup("goroutine").WriteTo(w, 1) // the client is gone: nobody to tell
}

// logReaders is how many read the log at a time, each of a copy, and logPatience
// how long one of them may take.
const (
	logReaders  = 4
	logPatience = 30 * time.Second
)

// log answers the newest lines of this process's log.
func (s *Server) log(w http.ResponseWriter, r *http.Request) {
	select {
	case s.logging <- struct{}{}:
		defer func() { <-s.logging }()
	case <-r.Context().Done():
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(logPatience)) // it can, but in tests
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(s.cfg.Log()) // the client is gone: nobody to tell
}

// Raw returns what a node answers at a path, as it was sent. Answers that say
// that something is wrong, as /readyz does, are errors with that text.
func (c *Client) Raw(ctx context.Context, addr, path string) ([]byte, error) {
	raw, err := c.ask(ctx, addr, path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", addr, path, err)
	}
	return raw, nil
}

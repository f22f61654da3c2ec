package main

import (
	"io"
	"slices"
	"sync"
)

// recentLogBytes is how much of its newest log a node holds, half of it at least
// once there was that much.
const recentLogBytes = 1 << 20

// recentLog keeps the newest lines of a process's log, for whoever asks the
// admin port: where the log itself is kept, or whether at all, is up to whoever
// started the process. Safe for use by many goroutines.
type recentLog struct {
	mu       sync.Mutex
	old, now []byte // whole lines; each at most half of recentLogBytes
}

// Write implements io.Writer. A logger writes one line, or several that belong
// together, at a time. What is too long is cut.
func (r *recentLog) Write(p []byte) (int, error) {
	const half = recentLogBytes / 2
	line := p
	if len(line) > half {
		line = append(slices.Clone(line[:half-1]), '\n')
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.now)+len(line) > half {
		r.old, r.now = r.now, r.old[:0]
	}
	r.now = append(r.now, line...)
	return len(p), nil
}

// lines returns what is held, the oldest first.
func (r *recentLog) lines() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.old, r.now)
}

// tee writes what a logger writes to the ring first: standard error may be gone.
func (r *recentLog) tee(w io.Writer) io.Writer { return io.MultiWriter(r, w) }

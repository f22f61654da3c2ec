package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// stalled is a client that takes nothing of its answer until released.
type stalled struct {
	http.ResponseWriter
	reached, release chan struct{}
	until            time.Time
}

func (w *stalled) Write(b []byte) (int, error) {
	w.reached <- struct{}{}
	<-w.release
	return w.ResponseWriter.Write(b)
}

func (w *stalled) SetWriteDeadline(until time.Time) error {
	w.until = until
	return nil
}

// Who reads the log and takes nothing of it holds one copy, for a while; those that
// come when there are enough of them are handed none.
func TestLogReadersAreBounded(t *testing.T) {
	copies := new(atomic.Int32)
	s := New(Config{Log: func() []byte { copies.Add(1); return []byte("line") }}, nil, nil, nil)
	reached, release, done := make(chan struct{}), make(chan struct{}), make(chan *stalled)
	for range logReaders {
		go func() {
			w := &stalled{ResponseWriter: httptest.NewRecorder(), reached: reached, release: release}
			s.log(w, httptest.NewRequest("GET", "/log", nil))
			done <- w
		}()
	}
	for range logReaders {
		<-reached
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it waits for as long as its client does
	late := httptest.NewRecorder()
	s.log(late, httptest.NewRequestWithContext(ctx, "GET", "/log", nil))
	if n := copies.Load(); n != logReaders || late.Body.Len() != 0 {
		t.Errorf("%d copies were made for %d readers at a time", n, logReaders)
	}
	close(release)
	for range logReaders {
		w := <-done
		if left := time.Until(w.until); left <= 0 || left > logPatience {
			t.Errorf("a reader has %v", left)
		}
	}
	next := httptest.NewRecorder()
	s.log(next, httptest.NewRequest("GET", "/log", nil))
	if got := next.Body.String(); got != "line" {
		t.Errorf("after the others: %q", got)
	}
}

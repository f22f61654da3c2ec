package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// serve answers every request with a function and returns the address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestDigestThatBreaksOff(t *testing.T) {
	const head = `{"start":0,"end":9}` + "\n" + `{"base":0,"last":3,"count":4}` + "\n"
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
		ok   func(error) bool
	}{
		{"whole", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, head) },
			func(err error) bool { return errors.Is(err, io.EOF) }},
		{"connection lost", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, head)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"error of the node", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, head, `{"error":"no disk"}`) },
			func(err error) bool { return err.Error() == "no disk" }},
		{"endless line", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, head, strings.Repeat("1", maxLine+1))
		}, func(err error) bool { return errors.Is(err, bufio.ErrTooLong) }},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, head, "{\n") },
			func(err error) bool { return strings.Contains(err.Error(), "JSON") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := NewClient()
			defer c.Close()
			d, err := c.Digest(t.Context(), serve(t, tt.h), "t", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if b, err := d.Next(); err != nil || d.End != 9 || b.Last != 3 || b.Count != 4 {
				t.Fatalf("first batch %+v of %+v: %v", b, d.LogDigest, err)
			}
			if _, err := d.Next(); err == nil || !tt.ok(err) {
				t.Errorf("after the first batch: %v", err)
			}
		})
	}
}

func TestDigestThatStops(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"start":0,"end":9}`)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	c := NewClient()
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	d, err := c.Digest(ctx, addr, "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.cancel(ErrStalled) // as the timer does
	if _, err := d.Next(); !errors.Is(err, ErrStalled) {
		t.Errorf("after a stall: %v", err)
	}
	cancel()
}

func TestAnswersThatAreRefused(t *testing.T) {
	c := NewClient()
	defer c.Close()
	refused := serve(t, func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusBadGateway, errors.New("broker away: "+r.URL.Query().Get("topic")))
	})
	if _, err := c.Digest(t.Context(), refused, "a&b", 1); err == nil || !strings.HasSuffix(err.Error(), "broker away: a&b") {
		t.Errorf("refused: %v", err)
	}
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who?", http.StatusNotFound) })
	if _, _, err := c.Status(t.Context(), other); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("another server: %v", err)
	}
	huge := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		block := strings.Repeat(" ", 1<<20)
		for range maxAnswer>>20 + 1 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	})
	if _, err := c.Partitions(t.Context(), huge); err == nil || !strings.Contains(err.Error(), "above") {
		t.Errorf("huge answer: %v", err)
	}
}

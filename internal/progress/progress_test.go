package progress

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// shown draws a bar once in each state and returns what was written by the end.
func shown(t *testing.T, s style, between func(*Bar), states ...state) string {
	t.Helper()
	var out bytes.Buffer
	at := time.Unix(0, 0)
	b := newBar(&out, "verify", s, func() time.Time { return at })
	close(b.gone) // nothing runs
	for _, st := range states {
		at = at.Add(10 * time.Second)
		b.Set(st.done, st.total, st.what)
		b.show()
		if between != nil {
			between(b)
		}
	}
	b.Done()
	b.Done()
	return out.String()
}

func TestRunDrawsAtEachTick(t *testing.T) {
	var out bytes.Buffer
	b := newBar(&out, "verify", style{}, func() time.Time { return time.Unix(0, 0) })
	tick := make(chan time.Time)
	go b.run(tick)
	for range 3 {
		tick <- time.Time{} // taken when the one before is drawn
	}
	b.Done()
	if n := strings.Count(out.String(), "verify, 0s\n"); n != 3 {
		t.Errorf("%d lines of 3:\n%s", n, &out)
	}
}

func terminal(width int, color bool) style {
	return style{terminal: true, color: color, width: func() int { return width }}
}

func TestPlainLines(t *testing.T) {
	got := shown(t, style{}, nil, state{what: "waiting"}, state{done: 0, total: 100, what: "orders/0"}, state{done: 50, total: 100, what: "orders/1"}, state{done: 200, total: 100, what: ""})
	want := `verify, waiting, 10s
verify, 0%, orders/0, 20s
verify, 50%, orders/1, 30s, about 30s left
verify, 100%, 40s
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestBarOnTerminal(t *testing.T) {
	got := shown(t, terminal(80, false), nil, state{what: "waiting"}, state{done: 50, total: 100, what: "orders/1"})
	want := clearLine + "verify ... waiting  10s" +
		clearLine + "verify [############------------] 50%  orders/1  20s  about 20s left" +
		clearLine
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := shown(t, terminal(20, false), nil, state{done: 50, total: 100, what: "orders/1"}); got != clearLine+"verify [###########"+clearLine {
		t.Errorf("a narrow terminal: %q", got)
	}
	if got := shown(t, terminal(80, true), nil, state{done: 50, total: 100, what: ""}); !strings.Contains(got, "["+green+"############"+plain+"---") {
		t.Errorf("in colour: %q", got)
	}
	if got := shown(t, terminal(80, true), nil); got != "" {
		t.Errorf("work that is done at once: %q", got)
	}
}

// Steps take unequally long: no time left is guessed from them.
func TestSteps(t *testing.T) {
	got := shown(t, terminal(80, false), func(b *Bar) {
		b.SetStep(4, 6, "reading")
		b.show()
	}, state{})
	if want := clearLine + "kill [############------------] step 4 of 6  reading  10s" + clearLine; !strings.HasSuffix(strings.ReplaceAll(got, "verify", "kill"), want) {
		t.Errorf("%q does not end in %q", got, want)
	}
}

// A line that is printed meanwhile stands alone, and the bar comes back below it.
func TestPrintfAboveTheBar(t *testing.T) {
	got := shown(t, terminal(80, false), func(b *Bar) {
		b.Printf("node %d", 2)
		if n, err := b.Write([]byte("line\n")); n != 5 || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	}, state{what: "a"}, state{what: "b"})
	want := clearLine + "verify ... a  10s" + clearLine + "node 2\nline\n" + clearLine + "verify ... b  20s" + clearLine + "node 2\nline\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Whatever a topic or an error is called, it commands no terminal.
func TestControlCharacters(t *testing.T) {
	got := shown(t, style{}, nil, state{what: "a\x1b[2Jb\nc\u009bd"})
	if got != "verify, a [2Jb c d, 10s\n" {
		t.Errorf("%q", got)
	}
}

func TestFileIsNoTerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s := styleOf(f); s.terminal || s.color {
		t.Errorf("a file: %+v", s)
	}
	if s := styleOf(&bytes.Buffer{}); s.terminal {
		t.Errorf("a buffer: %+v", s)
	}
	b := Start(f, "verify")
	b.Set(1, 2, "x")
	b.Done()
	if raw, err := os.ReadFile(f.Name()); err != nil || len(raw) != 0 {
		t.Errorf("%q, %v", raw, err)
	}
}

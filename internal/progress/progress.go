// Package progress tells people how far long work is: a bar that is drawn over
// and over on a terminal, and a plain line now and then elsewhere, so that a
// log file or a CI job stays readable.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	drawEvery = 200 * time.Millisecond
	lineEvery = 5 * time.Second

	barCells     = 24
	defaultWidth = 80
	// minForETA is how much must be done before the time left is guessed.
	minForETA = 0.02

	clearLine = "\r\x1b[K"
	green     = "\x1b[32m"
	plain     = "\x1b[0m"
)

// Bar shows one piece of work. Nothing is shown of work that ends before the
// first interval: 200 ms on a terminal, 5 s elsewhere. Its methods may be
// called from any goroutine; nothing else may write to its writer until Done.
type Bar struct {
	w     io.Writer
	name  string
	style style
	now   func() time.Time
	began time.Time

	quit chan struct{} // closed by Done
	gone chan struct{} // closed when the goroutine has ended
	once sync.Once

	mu    sync.Mutex
	state state
	drawn bool // a bar stands on the terminal's last line
}

// style is how the writer wants it.
type style struct {
	terminal bool
	color    bool // the terminal, and nobody said NO_COLOR
	width    func() int
}

// state is how far the work is.
type state struct {
	done, total int64 // total 0: nobody knows
	what        string
	steps       bool // done and total count steps, which take unequally long
}

// Start begins to show work called name on w until Done. A writer that is a
// terminal gets a bar, in colour unless NO_COLOR is set (no-color.org).
func Start(w io.Writer, name string) *Bar {
	b := newBar(w, name, styleOf(w), time.Now)
	every := lineEvery
	if b.style.terminal {
		every = drawEvery
	}
	tick := time.NewTicker(every)
	go func() {
		defer tick.Stop()
		b.run(tick.C)
	}()
	return b
}

func newBar(w io.Writer, name string, s style, now func() time.Time) *Bar {
	return &Bar{w: w, name: name, style: s, now: now, began: now(), quit: make(chan struct{}), gone: make(chan struct{})}
}

func styleOf(w io.Writer) style {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return style{}
	}
	return style{terminal: true, color: os.Getenv("NO_COLOR") == "", width: func() int {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
		return defaultWidth
	}}
}

func (b *Bar) run(tick <-chan time.Time) {
	defer close(b.gone)
	for {
		select {
		case <-tick:
			b.show()
		case <-b.quit:
			return
		}
	}
}

// Set says how much of total is done (total 0: unknown), and what is being
// done. It only takes note.
func (b *Bar) Set(done, total int64, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = state{done: done, total: total, what: what}
}

// SetStep says which of a number of unequal steps is being done, from 1 up. It
// only takes note.
func (b *Bar) SetStep(step, of int, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = state{done: int64(step) - 1, total: int64(of), what: what, steps: true}
}

// Printf writes a line of its own above the bar.
func (b *Bar) Printf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
	fmt.Fprintf(b.w, format+"\n", args...)
}

// Write passes whole lines on, above the bar; it is for those who share its
// writer.
func (b *Bar) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
	return b.w.Write(p)
}

// Done removes the bar and returns when nothing more is written. Idempotent.
func (b *Bar) Done() {
	b.once.Do(func() { close(b.quit) })
	<-b.gone
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
}

// clear removes the bar that is drawn. The caller holds the mutex.
func (b *Bar) clear() {
	if b.drawn {
		fmt.Fprint(b.w, clearLine)
		b.drawn = false
	}
}

func (b *Bar) show() {
	b.mu.Lock()
	defer b.mu.Unlock()
	elapsed := b.now().Sub(b.began)
	if !b.style.terminal {
		fmt.Fprintln(b.w, strings.Join(b.state.words(b.name, elapsed), ", "))
		return
	}
	words := b.state.words(b.name, elapsed)
	text := words[0] + " " + b.state.bar() + " " + strings.Join(words[1:], "  ")
	if limit, runes := max(b.style.width()-1, 0), []rune(text); len(runes) > limit {
		text = string(runes[:limit])
	}
	if b.style.color {
		text = strings.Replace(text, "#", green+"#", 1)
		if i := strings.LastIndex(text, "#"); i >= 0 {
			text = text[:i+1] + plain + text[i+1:]
		}
	}
	fmt.Fprint(b.w, clearLine+text)
	b.drawn = true
}

// bar is the picture; a total that nobody knows has none.
func (s state) bar() string {
	if s.total <= 0 {
		return "..."
	}
	cells := int(s.share() * barCells)
	return "[" + strings.Repeat("#", cells) + strings.Repeat("-", barCells-cells) + "]"
}

func (s state) share() float64 { return min(max(float64(s.done)/float64(s.total), 0), 1) }

// words are the name and what can be said, without control characters: topics
// and errors come from elsewhere.
func (s state) words(name string, elapsed time.Duration) []string {
	out := []string{name}
	switch {
	case s.steps:
		out = append(out, fmt.Sprintf("step %d of %d", s.done+1, s.total))
	case s.total > 0:
		out = append(out, fmt.Sprintf("%.0f%%", s.share()*100))
	}
	if s.what != "" {
		out = append(out, strings.Map(printable, s.what))
	}
	out = append(out, elapsed.Round(time.Second).String())
	if s.total > 0 && !s.steps && s.share() >= minForETA && s.done < s.total {
		left := time.Duration(float64(elapsed) * (1 - s.share()) / s.share())
		out = append(out, "about "+left.Round(time.Second).String()+" left")
	}
	return out
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return ' '
	}
	return r
}

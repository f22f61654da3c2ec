// Package check holds what clients saw of a cluster, and what stands on its
// brokers, to what Lockstep promises. It reads a history row by row, in the
// order in which the rows were written, and knows nothing of how they came
// about: the same history gives the same verdict in a unit test, at the end of
// a chaos run, and a year later from the file.
package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Kind says what a row tells.
type Kind string

// Rows of producers. A record is named by its producer and counter. Send is
// written before the request leaves, the outcome after it came, so that the
// order of rows is a real-time order.
const (
	Send Kind = "send" // one attempt under the harness's control
	OK   Kind = "ok"   // acknowledged at Offset
	Fail Kind = "fail" // surely not written
	Info Kind = "info" // may have been written, or may be later
)

// Rows of readers.
const (
	Assign Kind = "assign" // consumer By begins a session on a partition at Offset (-1: anywhere)
	Poll   Kind = "poll"   // consumer By was given a record
	Ask    Kind = "ask"    // By is about to ask for the end offset
	End    Kind = "end"    // By was told Offset as the end of the partition
	Resume Kind = "resume" // the process that answers By goes on after it was suspended
	Watch  Kind = "watch"  // node By, in one life of its process, showed high watermark Offset
	Stored Kind = "stored" // the broker of node Node holds a record, read directly at the end
	Read   Kind = "read"   // the broker of node Node was read from its start to Offset, the end
	Expect Kind = "expect" // consumer By must have seen the partition up to its end
)

// Rows of the nemesis.
const (
	Fault  Kind = "fault"  // a fault begins: Text its kind; it lasts Lasts
	Landed Kind = "landed" // fault number Seq was seen to have its effect
	Leader Kind = "leader" // a group has another leader: Node
)

// Event is one row. Which fields count depends on the kind.
type Event struct {
	At        time.Duration `json:"t"` // since the run began
	Kind      Kind          `json:"k"`
	By        string        `json:"by,omitempty"`
	Topic     string        `json:"topic,omitempty"`
	Partition int32         `json:"p,omitempty"`
	Producer  string        `json:"c,omitempty"`
	Seq       int           `json:"s,omitempty"`
	Offset    int64         `json:"o,omitempty"`
	Node      int           `json:"n,omitempty"`
	Idem      bool          `json:"idem,omitempty"`   // the producer is idempotent
	Leading   bool          `json:"lead,omitempty"`   // the fault hits a leader, another must take over
	Lasts     time.Duration `json:"lasts,omitempty"`  // of a fault
	Text      string        `json:"text,omitempty"`   // a foreign value, a fault's kind
	Broken    bool          `json:"broken,omitempty"` // the value is no payload of this run
}

// Log writes rows to a file and hands them to a checker, in one order. Its
// methods may be called from any goroutine.
type Log struct {
	mu      sync.Mutex
	began   time.Time
	w       *bufio.Writer
	enc     *json.Encoder
	checker *Checker
	err     error
}

// NewLog begins a history. The checker must not be used otherwise until Close.
func NewLog(w io.Writer, c *Checker) *Log {
	b := bufio.NewWriterSize(w, 1<<16)
	return &Log{began: time.Now(), w: b, enc: json.NewEncoder(b), checker: c}
}

// Add stamps and writes one row.
func (l *Log) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.At = time.Since(l.began)
	l.err = errors.Join(l.err, l.enc.Encode(e))
	l.checker.Add(e)
}

// Flush writes what is buffered; it returns the first error of any write.
func (l *Log) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, l.w.Flush())
	return l.err
}

// ReadAll feeds a file's rows to a checker.
func ReadAll(r io.Reader, c *Checker) error {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 1<<16))
	for n := 1; ; n++ {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read row %d of the history: %w", n, err)
		}
		c.Add(e)
	}
}

//go:build e2e

// Command goclient holds the Go clients of the compatibility suite, and kcat
// behind the same command line: goclient LIBRARY FEATURE key=value... See
// ../README.md.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// options are the key=value arguments of one line.
type options map[string]string

func (o options) number(name string) int {
	n, _ := strconv.Atoi(o[name]) // absent is zero
	return n
}

func (o options) brokers() []string { return strings.Split(o["bootstrap"], ",") }

// errUnsupported is returned when the library cannot do it with any broker.
var errUnsupported = errors.New("unsupported")

// library runs one feature; ctx ends at SIGTERM.
type library func(ctx context.Context, feature string, o options) error

var libraries = map[string]library{"sarama": runSarama, "franz": runFranz, "kcat": runKcat}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 3 || libraries[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: goclient sarama|franz|kcat FEATURE|- key=value...")
		os.Exit(2)
	}
	lib, args := libraries[os.Args[1]], os.Args[2:]
	if args[0] != "-" {
		run(ctx, lib, args)
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		run(ctx, lib, strings.Fields(lines.Text()))
	}
}

func run(ctx context.Context, lib library, args []string) {
	o := options{}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		o[k] = v
	}
	err := lib(ctx, args[0], o)
	switch {
	case errors.Is(err, errUnsupported):
		emit(event{Event: "unsupported", Error: err.Error()})
	case err != nil:
		emit(event{Event: "error", Error: err.Error()})
	default:
		emit(event{Event: "done"})
	}
}

// event is one line of output.
type event struct {
	Event      string      `json:"event"`
	Error      string      `json:"error,omitempty"`
	Partition  int32       `json:"partition"`
	Offset     int64       `json:"offset"`
	Key        string      `json:"key,omitempty"`
	Value      string      `json:"value,omitempty"`
	Sum        string      `json:"sum,omitempty"`
	Headers    [][2]string `json:"headers,omitempty"`
	Partitions any         `json:"partitions,omitempty"`
	Replicas   int         `json:"replicas,omitempty"`
	Members    int         `json:"members"`
	Groups     []string    `json:"groups,omitempty"`
}

var output sync.Mutex

func emit(e event) {
	output.Lock()
	defer output.Unlock()
	// Nobody is left to tell when standard output is gone.
	_ = json.NewEncoder(os.Stdout).Encode(e)
}

func emitRecord(partition int32, offset int64, key, value []byte, headers [][2]string) {
	id, _, _ := strings.Cut(string(value), ".")
	sum := sha256.Sum256(value)
	emit(event{
		Event: "record", Partition: partition, Offset: offset, Key: string(key), Value: id,
		Sum: hex.EncodeToString(sum[:]), Headers: headers,
	})
}

func (o options) id(i int) string { return fmt.Sprintf("%s-%d", o["prefix"], i) }

func key(i int) string { return fmt.Sprintf("k%d", i%10) }

// value is the id of record i, a full stop, and filling up to the size.
func (o options) value(i int) []byte {
	b := append([]byte(o.id(i)), '.')
	for j := len(b); j < o.number("size"); j++ {
		b = append(b, byte('a'+j%26))
	}
	return b
}

type header struct{ key, value string }

func (o options) headers() []header {
	if o["headers"] == "" {
		return nil
	}
	return []header{{"name", "k\u00e4se"}, {"twice", "1"}, {"twice", "2"}, {"bin", "\x80\xff"}}
}

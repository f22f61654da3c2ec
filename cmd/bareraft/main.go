// Command bareraft is a node of hashicorp/raft alone, with its own transport and
// raft-wal: what make bench compares Lockstep's ceiling with. Node n leads group n.
// It reads lines "bytes under-way milliseconds" and answers each with the MiB
// per second that were committed.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltstore "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bareraft:", err)
		os.Exit(1)
	}
}

// run is one node. It answers the lines of its standard input and ends with it.
func run(args []string) (err error) {
	if len(args) < 5 || len(args)%3 != 2 {
		return errors.New("usage: bareraft ID DIR PORT... (for each group, those of its nodes 0, 1 and 2)")
	}
	var numbers []int
	for _, arg := range append([]string{args[0]}, args[2:]...) {
		n, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		numbers = append(numbers, n)
	}
	id, ports := numbers[0], numbers[1:]
	var mine *raft.Raft
	for g := range len(ports) / 3 {
		r, oerr := openBare(filepath.Join(args[1], fmt.Sprint(g)), id, g, ports[3*g:3*g+3])
		if oerr != nil {
			return oerr
		}
		defer func() { err = errors.Join(err, r.Shutdown().Error()) }()
		if g == id {
			mine = r
		}
	}
	for led := range mine.LeaderCh() {
		if led {
			break
		}
	}
	fmt.Println("leads 1")
	in := bufio.NewReader(os.Stdin)
	for {
		var size, flying, millis int
		if _, err := fmt.Fscan(in, &size, &flying, &millis); err != nil {
			return nil // the test is over
		}
		rate, err := loadBare(mine, size, flying, time.Duration(millis)*time.Millisecond)
		if err != nil {
			return err
		}
		fmt.Printf("rate %f\n", rate)
	}
}

func loadBare(r *raft.Raft, size, flying int, span time.Duration) (float64, error) {
	var acked atomic.Int64
	var failed atomic.Value
	from := time.Now().Add(time.Second)
	to := from.Add(span)
	var wg sync.WaitGroup
	for range flying {
		wg.Go(func() {
			for time.Now().Before(to) {
				if err := r.Apply(make([]byte, size), 0).Error(); err != nil {
					failed.Store(err)
					return
				}
				if now := time.Now(); now.After(from) && now.Before(to) {
					acked.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if err, _ := failed.Load().(error); err != nil {
		return 0, err
	}
	return float64(acked.Load()) * float64(size) / (1 << 20) / span.Seconds(), nil
}

// openBare opens a node of a group. The node with the group's number elects
// itself: the others wait much longer.
func openBare(dir string, id, group int, ports []int) (*raft.Raft, error) {
	err := os.MkdirAll(filepath.Join(dir, "wal"), 0o755)
	logs, werr := wal.Open(filepath.Join(dir, "wal"))
	stable, serr := boltstore.NewBoltStore(filepath.Join(dir, "stable.db"))
	snaps, nerr := raft.NewFileSnapshotStore(dir, 1, io.Discard)
	trans, terr := raft.NewTCPTransport(address(ports[id]), nil, 3, 10*time.Second, io.Discard)
	if err = errors.Join(err, werr, serr, nerr, terr); err != nil {
		return nil, err
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(fmt.Sprint(id))
	c.Logger = hclog.NewNullLogger()
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 20*time.Second, 20*time.Second, 10*time.Second
	if id == group {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = time.Second, time.Second, time.Second
	}
	var all raft.Configuration
	for i, port := range ports {
		all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint(i)), Address: raft.ServerAddress(address(port))})
	}
	if err := raft.BootstrapCluster(c, logs, stable, snaps, trans, all); err != nil {
		return nil, err
	}
	cache, err := raft.NewLogCache(512, logs)
	if err != nil {
		return nil, err
	}
	return raft.NewRaft(c, discardFSM{}, cache, stable, snaps, trans)
}

// discardFSM counts nothing and keeps nothing.
type discardFSM struct{}

func (discardFSM) Apply(*raft.Log) any                 { return nil }
func (discardFSM) Snapshot() (raft.FSMSnapshot, error) { return discardFSM{}, nil }
func (discardFSM) Restore(r io.ReadCloser) error       { return r.Close() }
func (discardFSM) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (discardFSM) Release()                            {}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

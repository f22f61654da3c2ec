package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"lockstep/configs"
	"lockstep/internal/apply"
	"lockstep/internal/broker"
	"lockstep/internal/cluster"
	"lockstep/internal/doctor"
)

// topicLister finds out which topics the brokers hold from before Lockstep: from
// the node if it runs, else from the brokers themselves.
type topicLister struct {
	self   int32
	peers  int // other nodes
	admin  configs.Admin
	fresh  bool // the node was never started
	own    brokerLists
	others map[int32]brokerLists
}

// brokerLists is a broker whose topics can be listed.
type brokerLists struct {
	*broker.Admin
	*broker.Reader
}

func newBrokerLists(cfg broker.Config) brokerLists {
	return brokerLists{broker.NewAdmin(cfg), broker.NewReader(cfg)}
}

func (b brokerLists) close() error { return errors.Join(b.Admin.Close(), b.Reader.Close()) }

// neverStarted says whether no node began in that directory yet.
func neverStarted(dataDir string) bool {
	_, err := os.Stat(filepath.Join(dataDir, "identity.json"))
	return errors.Is(err, os.ErrNotExist)
}

// otherBrokers reads --brokers 2=HOST:PORT,3=HOST:PORT.
func otherBrokers(args []string, self int32, own configs.Broker, cfg broker.Config) (map[int32]brokerLists, error) {
	out := make(map[int32]brokerLists)
	for _, arg := range args {
		id, addr, ok := strings.Cut(arg, "=")
		n, err := strconv.ParseInt(id, 10, 32)
		if !ok || err != nil || n < 1 || int32(n) == self {
			return nil, fmt.Errorf("--brokers %q: name another node and its broker, as in 2=HOST:PORT", arg)
		}
		if cfg.BootstrapServer = addr; cfg.TLS != nil {
			if cfg.TLS, err = brokerTLS(own.SSL, addr); err != nil {
				return nil, err
			}
		}
		out[int32(n)] = newBrokerLists(cfg)
	}
	return out, nil
}

func (l *topicLister) list(ctx context.Context) (*doctor.Topics, error) {
	client, err := ownAdmin(l.admin)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	report, err := client.Foreign(ctx, l.admin.Listen)
	switch {
	case err == nil:
		return l.running(ctx, report)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return nil, err
	}
	mine, err := apply.AllTopics(ctx, l.own)
	if err != nil {
		return nil, err
	}
	if !l.fresh {
		out := &doctor.Topics{}
		for _, t := range mine {
			out.Unsure = append(out.Unsure, t.Name)
		}
		return out, nil
	}
	held := map[int32][]apply.ForeignTopic{l.self: mine}
	silent := make(map[int32]string)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, b := range l.others {
		wg.Go(func() {
			topics, err := apply.AllTopics(ctx, b)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[id] = err.Error()
				return
			}
			held[id] = topics
		})
	}
	wg.Wait()
	out := heldTopics(cluster.CompareForeign(held), silent)
	out.Alone = len(l.others) == 0 && l.peers > 0
	return out, nil
}

// running is what a node that runs says, and which topics of its broker are the
// cluster's.
func (l *topicLister) running(ctx context.Context, report *cluster.ForeignReport) (*doctor.Topics, error) {
	out := heldTopics(report.Topics, report.Silent)
	infos, err := l.own.Topics(ctx)
	if err != nil {
		return nil, err
	}
	foreign := make(map[string]bool)
	for _, t := range report.Topics {
		for _, c := range t.Copies {
			foreign[t.Name] = foreign[t.Name] || c.Node == l.self
		}
	}
	for _, info := range infos {
		if !info.Internal && !foreign[info.Name] {
			out.Own = append(out.Own, info.Name)
		}
	}
	return out, nil
}

func nodeCalled(id int32) string { return fmt.Sprintf("node %d", id) }

// heldTopics leaves out what nothing was ever written to: it is in nobody's way.
func heldTopics(found []cluster.ForeignTopic, silent map[int32]string) *doctor.Topics {
	out := &doctor.Topics{Silent: make(map[string]string)}
	for id, why := range silent {
		out.Silent[nodeCalled(id)] = why
	}
	for _, f := range found {
		h := doctor.Holding{Topic: f.Name, Records: make(map[string]int64), Conflict: f.State == cluster.CopyConflict, Aside: f.State == cluster.CopyAside}
		for _, c := range f.Copies {
			if c.End > 0 {
				h.Records[nodeCalled(c.Node)] = c.Offsets
			}
		}
		if len(h.Records) > 0 {
			out.Foreign = append(out.Foreign, h)
		}
	}
	return out
}

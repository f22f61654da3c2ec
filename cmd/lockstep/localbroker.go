package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/internal/apply"
	"lockstep/internal/broker"
	"lockstep/internal/cluster"
)

// errNotWell ends the append connections to a broker that its health check
// does not reach.
var errNotWell = errors.New("the broker does not answer its health check")

// groupsTimeout bounds how long a broker that came up may take until it can
// coordinate consumer groups.
const groupsTimeout = 2 * time.Minute

// A broker that did not say what it is is asked again after greetAgain, and twice
// as late each time up to greetAgainMost.
const (
	greetAgain     = time.Second
	greetAgainMost = time.Minute
)

// localBroker puts the parts of internal/broker together as the applier and
// the cluster want them.
type localBroker struct {
	*broker.Admin
	*broker.Reader
	appender *broker.Appender
	health   *broker.Health
	log      hclog.Logger

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	apis [][3]int16 // what the broker offers, as it last said

	open   atomic.Bool // the broker said that it has no authorizer
	judges atomic.Bool // it said last that it has one, or that it does not tell us
}

var _ apply.Broker = (*localBroker)(nil)

func newLocalBroker(cfg broker.Config) *localBroker {
	return &localBroker{Admin: broker.NewAdmin(cfg), Reader: broker.NewReader(cfg),
		appender: broker.NewAppender(cfg), health: broker.NewHealth(cfg), log: cfg.Logger}
}

// Open starts to watch the broker, which need not be there yet.
func (b *localBroker) Open() error {
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	if err := b.health.Open(ctx); err != nil {
		return err
	}
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		b.watch(ctx)
	}()
	return nil
}

// Close closes every connection and returns when the goroutines are gone.
func (b *localBroker) Close() error {
	if b.cancel != nil {
		b.cancel()
	}
	b.wg.Wait()
	return errors.Join(b.health.Close(), b.appender.Close(), b.Admin.Close(), b.Reader.Close())
}

// watch asks the broker what it offers, and for settings that suit us, each
// time it comes up, and again while it has not said yet: Kafka serves before it
// knows itself.
func (b *localBroker) watch(ctx context.Context) {
	wait := time.Duration(0) // 0: it has not been greeted since it came up
	for {
		changed := b.health.Changed()
		var again <-chan time.Time
		if b.health.State().Up {
			first := wait == 0
			if first {
				b.open.Store(false) // it may be configured otherwise since it was last up
				b.prepareGroups(ctx)
			}
			err := b.learn(ctx)
			if first && err != nil {
				b.log.Warn("the broker does not say yet what it offers and whether it has an authorizer: it is asked again, and until then about every client", "error", err)
			}
			if first || err == nil {
				b.setDefaults(ctx)
			}
			wait = min(max(2*wait, greetAgain), greetAgainMost)
			if err != nil {
				again = time.After(wait)
			}
		} else {
			// One that hangs would be waited for as long as a request may
			// take, though new ones work again.
			b.appender.Drop(errNotWell)
		}
		select {
		case <-changed:
			wait = 0
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// learn asks the broker which APIs it offers and whether it has an authorizer.
func (b *localBroker) learn(ctx context.Context) error {
	keys, err := b.ApiVersions(ctx)
	if err != nil {
		return fmt.Errorf("ask which APIs it offers: %w", err)
	}
	apis := make([][3]int16, 0, len(keys))
	for _, k := range keys {
		apis = append(apis, [3]int16{k.ApiKey, k.MinVersion, k.MaxVersion})
	}
	b.mu.Lock()
	b.apis = apis
	b.mu.Unlock()
	name, err := b.Authorizer(ctx)
	var refused *broker.CodeError
	switch { // any other code tells nothing for good
	case err == nil:
		b.judges.Store(name != "")
		b.open.Store(name == "")
	case errors.As(err, &refused) && refused.Code == kerr.ClusterAuthorizationFailed.Code:
		b.log.Warn("the broker does not let lockstep see whether it has an authorizer: it is asked about every client", "error", err)
		b.judges.Store(true)
		b.open.Store(false)
	default:
		return fmt.Errorf("ask whether it has an authorizer: %w", err)
	}
	return nil
}

// prepareGroups has a broker that came up make ready to coordinate groups.
func (b *localBroker) prepareGroups(ctx context.Context) {
	b.wg.Add(1)
	go func() { // a slow broker takes seconds to create __consumer_offsets
		defer b.wg.Done()
		ctx, cancel := context.WithTimeout(ctx, groupsTimeout)
		defer cancel()
		if err := b.PrepareGroups(ctx); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			b.log.Warn("consumer groups will not work on this broker yet", "error", err,
				"next", "check offsets.topic.replication.factor=1 in its configuration file")
		}
	}()
}

// setDefaults gives the broker the settings that suit us.
func (b *localBroker) setDefaults(ctx context.Context) {
	warnings, err := b.SetBrokerDefaults(ctx)
	if err != nil {
		b.log.Warn("cannot set the broker's defaults", "error", err)
	}
	for _, w := range warnings {
		b.log.Warn("broker setting", "warning", w)
	}
}

// Authorizes says whether the broker may have an authorizer.
func (b *localBroker) Authorizes() bool { return !b.open.Load() }

// Judges says whether the broker is to be taken for one with an authorizer where it
// does not answer: it had one when it last said so, or it is up and has not said yet.
func (b *localBroker) Judges() bool {
	return b.judges.Load() || !b.open.Load() && b.health.State().Up
}

// WaitUp implements apply.Broker.
func (b *localBroker) WaitUp(ctx context.Context) error {
	for {
		changed := b.health.Changed()
		if b.health.State().Up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Session implements apply.Broker.
func (b *localBroker) Session(ctx context.Context) (apply.Session, error) {
	s, err := b.appender.Session(ctx)
	if err != nil {
		return nil, fmt.Errorf("open an append session: %w", err)
	}
	return s, nil
}

// Report is what this node says of its broker.
func (b *localBroker) Report() cluster.BrokerReport {
	s := b.health.State()
	b.mu.Lock()
	defer b.mu.Unlock()
	return cluster.BrokerReport{Up: s.Up, Since: s.Since, Error: s.Err, Kind: s.Kind, APIs: b.apis}
}

// offeredByAll intersects what the brokers offer.
func offeredByAll(brokers [][][3]int16) []kmsg.ApiVersionsResponseApiKey {
	if len(brokers) == 0 {
		return nil
	}
	common := make(map[int16][3]int16)
	for _, api := range brokers[0] {
		common[api[0]] = api
	}
	for _, apis := range brokers[1:] {
		has := make(map[int16][3]int16, len(apis))
		for _, api := range apis {
			has[api[0]] = api
		}
		for key, c := range common {
			h, ok := has[key]
			c[1], c[2] = max(c[1], h[1]), min(c[2], h[2])
			if !ok || c[1] > c[2] {
				delete(common, key)
				continue
			}
			common[key] = c
		}
	}
	out := make([]kmsg.ApiVersionsResponseApiKey, 0, len(common))
	for _, c := range common {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = c[0], c[1], c[2]
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey) - int(b.ApiKey) })
	return out
}

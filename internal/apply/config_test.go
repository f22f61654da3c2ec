package apply

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/fsm"
	"lockstep/internal/broker"
)

// setConfig commits new settings of a topic in groups.
func (w *world) setConfig(topic, revision uint64, config map[string]string, groups ...uint32) {
	w.t.Helper()
	w.level++
	for _, g := range groups {
		w.commit(g, fsm.Control(fsm.KindConfig, fsm.Config{Level: w.level, Topic: topic, Name: w.names[topic], Revision: revision, Config: config}))
	}
}

// brokerSays waits until the broker has a setting of topic a.
func (w *world) brokerSays(name, value string) {
	w.t.Helper()
	w.await(name+"="+value+" on the broker", func() bool {
		got, err := w.local.TopicConfig(w.t.Context(), "a")
		return err == nil && got[name] == value
	})
}

// Settings that change reach the broker, whenever it is there, and stay.
func TestConfigReachesTheBroker(t *testing.T) {
	w := oldTopic(t)
	w.setConfig(1, 1, map[string]string{"retention.ms": "1000000", "segment.ms": "7000"}, 1, 2)
	w.brokerSays("retention.ms", "1000000")
	w.brokerSays("segment.ms", "7000")

	// Down when it changed; the applier goes on.
	w.broker.stop()
	w.setConfig(1, 2, map[string]string{"retention.ms": "2000000"}, 1)
	w.broker.start()
	w.brokerSays("retention.ms", "2000000")
	w.await("segment.ms is the default again", func() bool {
		got, err := w.local.TopicConfig(t.Context(), "a")
		return err == nil && got["segment.ms"] != "7000"
	})
	w.setConfig(1, 2, map[string]string{"retention.ms": "2000000"}, 2) // the other group, later
	w.settled()

	// Down, and the applier begins anew without it.
	w.broker.stop()
	w.setConfig(1, 3, map[string]string{"retention.ms": "3000000"}, 1, 2)
	w.stop()
	w.broker.start()
	w.start()
	w.brokerSays("retention.ms", "3000000")

	// From a base that has passed the entry, on a broker that was told
	// something else meanwhile.
	w.stop()
	for _, l := range w.logs {
		l.snapshot(t)
	}
	if err := w.local.ConfigureTopic(t.Context(), "a", map[string]string{"retention.ms": "5"}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.brokerSays("retention.ms", "3000000")

	// More partitions, opened by one group before the other hears of settings.
	w.open(1, 1, "a", 3)
	w.setConfig(1, 4, map[string]string{"retention.ms": "4000000"}, 2)
	w.brokerSays("retention.ms", "4000000")
	w.send(tpA, 3)
	w.settled()
}

// Settings that were never changed through Lockstep are put right as well when
// somebody changed them past it.
func TestConfigOfATopicAsItWasMade(t *testing.T) {
	w := oldTopic(t)
	if err := w.local.AlterConfig(t.Context(), kmsg.ConfigResourceTypeTopic, "a", map[string]*string{"compression.type": kmsg.StringPtr("gzip")}); err != nil {
		t.Fatal(err)
	}
	w.brokerSays("compression.type", "gzip")
	w.stop()
	w.start()
	w.brokerSays("compression.type", "producer")
	w.settled()
}

// A level of settings never goes back, whichever group brings it.
func TestNewestOfSeveralOpens(t *testing.T) {
	old := &fsm.Open{Topic: 1, Total: 3, Revision: 2, Config: map[string]string{"x": "2"}}
	for _, tc := range []struct {
		total    int32
		revision uint64
		want     string
	}{{3, 1, "2"}, {2, 3, "3"}, {6, 0, "2"}, {6, 3, "3"}} {
		got := newest(old, &fsm.Open{Topic: 1, Total: tc.total, Revision: tc.revision, Config: map[string]string{"x": "3"}})
		if got.Config["x"] != tc.want || got.Revision != max(2, tc.revision) || got.Total != max(3, tc.total) {
			t.Errorf("%+v: got %+v", tc, got)
		}
	}
}

// slowCreate is a broker that takes its time to make a topic.
type slowCreate struct {
	*local
	begun, goOn chan struct{}
}

func (b *slowCreate) CreateTopic(ctx context.Context, name string, partitions int32, config map[string]string) (broker.TopicInfo, error) {
	close(b.begun)
	<-b.goOn
	return b.local.CreateTopic(ctx, name, partitions, config)
}

// Settings that change while the broker makes the topic as it was reach it too.
func TestConfigChangesWhileTheTopicIsMade(t *testing.T) {
	slow := &slowCreate{begun: make(chan struct{}), goOn: make(chan struct{})}
	var w world
	w.setUp(t, 1, func(c *Config) {
		slow.local = w.local
		c.Broker = slow
	})
	w.open(1, 1, "a", 0)
	<-slow.begun
	w.setConfig(1, 1, map[string]string{"retention.ms": "1000000"}, 1)
	w.await("the news to be taken up, and nothing to be done about them", func() bool {
		topics := w.applier.topics
		topics.mu.Lock()
		defer topics.mu.Unlock()
		return topics.want[1].Revision == 1 && !topics.configuring[1]
	})
	close(slow.goOn)
	w.brokerSays("retention.ms", "1000000")
}

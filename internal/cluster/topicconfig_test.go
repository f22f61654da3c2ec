package cluster

import (
	"errors"
	"strconv"
	"sync"
	"testing"

	"lockstep/fsm"
	"lockstep/proxy"
)

// Changes through every node at the same time are all made, none twice, and
// end in every group.
func TestTopicConfigFromEveryNode(t *testing.T) {
	t.Parallel()
	r := running(t, nil)
	if err := r.members[1].cluster.CreateTopic(r.ctx(), proxy.TopicSpec{Name: "a", Partitions: 6}); err != nil {
		t.Fatal(err)
	}
	const each = 5
	var wg sync.WaitGroup
	for _, m := range r.members {
		wg.Go(func() {
			for range each {
				err := m.cluster.AlterTopicConfig(r.ctx(), "a", func(config map[string]string) (map[string]string, error) {
					n, _ := strconv.Atoi(config["retention.ms"])
					config["retention.ms"] = strconv.Itoa(n + 1)
					return config, nil
				})
				if err != nil {
					t.Errorf("node %d: %v", m.id, err)
				}
			}
		})
	}
	wg.Wait()
	want := strconv.Itoa(3 * each)
	for _, m := range r.members {
		r.sees(m, "every change", func(s *snapshot) bool { return s.view.Topics["a"].Config["retention.ms"] == want })
		for g := range uint32(testGroups) {
			r.holds(m, g, "the settings", func(s *fsm.Group) (ok bool) {
				for _, o := range s.Topics {
					ok = o.Name == "a" && o.Config["retention.ms"] == want
				}
				return ok
			})
		}
	}
	refusal := &proxy.KafkaError{Code: 40, Message: "no"}
	err := r.members[2].cluster.AlterTopicConfig(r.ctx(), "a", func(map[string]string) (map[string]string, error) { return nil, refusal })
	if !errors.Is(err, refusal) {
		t.Errorf("a change that was refused: %v", err)
	}
	err = r.members[2].cluster.AlterTopicConfig(r.ctx(), "b", func(c map[string]string) (map[string]string, error) { return c, nil })
	var ke *proxy.KafkaError
	if !errors.As(err, &ke) || ke.Code != codeUnknownTopic {
		t.Errorf("no such topic: %v", err)
	}
}

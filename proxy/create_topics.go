package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreateTopics 2 to 6 (7 carries topic ids).
//
// Topics go into the catalog; the answer comes when every group has opened its
// partitions. Every node holds every partition, so any replication factor up
// to the number of nodes is accepted, the answer tells the real one, and a
// manual assignment is checked for form only. Deviations from Kafka: settings
// that we cannot keep are refused with INVALID_CONFIG (see topicSettings), and
// the names of the broker's internal topics with INVALID_TOPIC_EXCEPTION.

const (
	// maxNewPartitions is what one request may create (QuorumController's
	// limit on records per operation is of this size).
	maxNewPartitions = 10_000
	// adminAtOnce bounds the topics of one request that are worked on together.
	adminAtOnce = 8
	// The client's timeout, within reason: some send 0 and still expect a topic.
	minAdminWait = time.Second
	maxAdminWait = 5 * time.Minute
)

// adminContext bounds an administrative request by its timeout and the
// connection's life.
func (r *request) adminContext(timeoutMillis int32) (context.Context, context.CancelFunc) {
	wait := min(max(time.Duration(timeoutMillis)*time.Millisecond, minAdminWait), maxAdminWait)
	return context.WithTimeout(r.c.ctx, wait)
}

// eachTopic runs fn for 0..n-1, several at a time, and returns when all have.
func (r *request) eachTopic(n int, fn func(int)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, adminAtOnce)
	for i := range n {
		turns <- struct{}{}
		wg.Go(func() {
			r.c.guard(r.api.Name, func() { fn(i) })
			<-turns
		})
	}
	wg.Wait()
}

func handleCreateTopics(r *request) error {
	req, err := parse[*kmsg.CreateTopicsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrCreateTopicsResponse()
	resp.Topics = make([]kmsg.CreateTopicsResponseTopic, len(req.Topics))
	specs := make([]TopicSpec, len(req.Topics))
	problems := r.c.srv.checkNewTopics(v, req.Topics, specs)
	ctx, cancel := r.adminContext(req.TimeoutMillis)
	defer cancel()
	names := make([]string, 0, len(req.Topics))
	for _, t := range req.Topics {
		names = append(names, t.Topic)
	}
	denied := r.mayCreate(ctx, names)
	r.eachTopic(len(req.Topics), func(i int) {
		problem := problems[i]
		if p := denied[specs[i].Name]; p != nil && problem != namedTwice {
			problem = p
		}
		if problem == nil && !req.ValidateOnly {
			if err := r.c.srv.cluster.CreateTopic(ctx, specs[i]); err != nil {
				code, msg := errorCode(err)
				problem = &KafkaError{code, msg}
			}
		}
		resp.Topics[i] = createdTopic(r.c.srv.cluster.View(), specs[i], problem)
	})
	// A name that is asked for twice is answered once, as in Kafka.
	resp.Topics = onceEach(resp.Topics, func(t *kmsg.CreateTopicsResponseTopic) string { return t.Topic })
	r.hideSettings(ctx, resp)
	r.reply(resp)
	return nil
}

// namedTwice is what is wrong with a topic that a request names more than once.
var namedTwice = problem(kerr.InvalidRequest, "the request names this topic more than once")

// hideSettings takes what the topics are like out of an answer where the client
// may create them and not describe them (KIP-525, ControllerApis.createTopics).
func (r *request) hideSettings(ctx context.Context, resp *kmsg.CreateTopicsResponse) {
	var names []string
	for i := range resp.Topics {
		if r.h.Version >= 5 && resp.Topics[i].ErrorCode == 0 {
			names = append(names, resp.Topics[i].Topic)
		}
	}
	hidden := r.mayTopics(ctx, opDescribeConfigs, names, kerr.TopicAuthorizationFailed.Code)
	for i := range resp.Topics {
		if t := &resp.Topics[i]; hidden[t.Topic] != 0 {
			t.ConfigErrorCode = hidden[t.Topic]
			t.NumPartitions, t.ReplicationFactor, t.Configs = -1, -1, []kmsg.CreateTopicsResponseTopicConfig{}
		}
	}
}

// onceEach leaves the first of the elements that have the same name.
func onceEach[T any](all []T, name func(*T) string) []T {
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(t T) bool {
		n := name(&t)
		twice := seen[n]
		seen[n] = true
		return twice
	})
}

// createdTopic is the answer about one topic.
func createdTopic(v *View, spec TopicSpec, problem *KafkaError) kmsg.CreateTopicsResponseTopic {
	rt := kmsg.NewCreateTopicsResponseTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = spec.Name, -1, -1
	rt.Configs = []kmsg.CreateTopicsResponseTopicConfig{}
	if problem != nil {
		rt.ErrorCode = problem.Code
		rt.ErrorMessage = kmsg.StringPtr(problem.Message)
		return rt
	}
	rt.NumPartitions, rt.ReplicationFactor = spec.Partitions, int16(len(v.Nodes))
	if t := v.Topics[spec.Name]; t != nil && len(t.Partitions) > 0 && len(t.Partitions[0].Replicas) > 0 {
		rt.ReplicationFactor = int16(len(t.Partitions[0].Replicas))
	}
	for name, value := range spec.Config {
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.Source = name, kmsg.StringPtr(value), int8(kmsg.ConfigSourceDynamicTopicConfig)
		rt.Configs = append(rt.Configs, c)
	}
	slices.SortFunc(rt.Configs, func(a, b kmsg.CreateTopicsResponseTopicConfig) int { return strings.Compare(a.Name, b.Name) })
	return rt
}

// checkNewTopics fills in what is to be created and returns, for each topic,
// what is wrong with it, or nil.
func (s *Server) checkNewTopics(v *View, topics []kmsg.CreateTopicsRequestTopic, specs []TopicSpec) []*KafkaError {
	count := make(map[string]int, len(topics))
	total := 0
	for _, t := range topics {
		count[t.Topic]++
	}
	problems := make([]*KafkaError, len(topics))
	taken := newTopicNames(v)
	for i, t := range topics {
		specs[i].Name = t.Topic
		if count[t.Topic] > 1 {
			problems[i] = namedTwice
			continue
		}
		if problems[i] = taken.check(t.Topic); problems[i] != nil {
			continue
		}
		spec, p := s.newTopic(v, &t)
		if p == nil && total+int(spec.Partitions) > maxNewPartitions {
			p = problem(kerr.PolicyViolation, "one request may create %d partitions", maxNewPartitions)
		}
		if problems[i] = p; p != nil {
			continue
		}
		total += int(spec.Partitions)
		taken.add(t.Topic)
		specs[i] = spec
	}
	return problems
}

func problem(err *kerr.Error, format string, args ...any) *KafkaError {
	return &KafkaError{Code: err.Code, Message: fmt.Sprintf(format, args...)}
}

// topicNames knows which names a new topic cannot have.
type topicNames struct {
	exact  map[string]*Topic
	folded map[string]string // with '.' as '_', to the name
}

func newTopicNames(v *View) *topicNames {
	n := &topicNames{exact: v.Topics, folded: make(map[string]string)}
	for name := range v.Topics {
		n.add(name)
	}
	return n
}

func (n *topicNames) add(name string) { n.folded[foldTopicName(name)] = name }

// foldTopicName maps names that would share a metric name to one
// (Topic.unifyCollisionChars).
func foldTopicName(name string) string { return strings.ReplaceAll(name, ".", "_") }

func (n *topicNames) check(name string) *KafkaError {
	if p := topicNameProblem(name); p != "" {
		return problem(kerr.InvalidTopicException, "%s", p)
	}
	if isInternalTopic(name) {
		return problem(kerr.InvalidTopicException, "this name belongs to the brokers' internal topics")
	}
	if n.exact[name] != nil {
		return problem(kerr.TopicAlreadyExists, "topic %q already exists", name)
	}
	if other, ok := n.folded[foldTopicName(name)]; ok {
		return problem(kerr.InvalidTopicException, "topic %q collides with %q: '.' and '_' are the same in metric names", name, other)
	}
	return nil
}

// newTopic checks what is asked of one topic.
func (s *Server) newTopic(v *View, t *kmsg.CreateTopicsRequestTopic) (TopicSpec, *KafkaError) {
	spec := TopicSpec{Name: t.Topic, Partitions: t.NumPartitions, Config: make(map[string]string, len(t.Configs))}
	if len(t.ReplicaAssignment) > 0 {
		if t.NumPartitions != -1 || t.ReplicationFactor != -1 {
			return spec, problem(kerr.InvalidRequest, "a manual assignment excludes a number of partitions and a replication factor")
		}
		spec.Partitions = int32(len(t.ReplicaAssignment))
		if p := checkNewAssignment(v, t.ReplicaAssignment); p != nil {
			return spec, p
		}
	} else {
		if t.NumPartitions == -1 {
			spec.Partitions = s.cfg.Topics.NumPartitions
		}
		if spec.Partitions < 1 {
			return spec, problem(kerr.InvalidPartitions, "the number of partitions must be at least 1, or -1 for the default")
		}
		if rf := t.ReplicationFactor; rf != -1 && (rf < 1 || int(rf) > len(v.Nodes)) {
			return spec, problem(kerr.InvalidReplicationFactor, "the replication factor must be between 1 and the %d nodes, or -1 for the default", len(v.Nodes))
		}
	}
	for _, c := range t.Configs {
		if c.Value == nil {
			return spec, problem(kerr.InvalidConfig, "topic setting %q has no value", c.Name)
		}
		if msg := settingProblem(c.Name, *c.Value); msg != "" {
			return spec, problem(kerr.InvalidConfig, "%s", msg)
		}
		if _, twice := spec.Config[c.Name]; twice {
			return spec, problem(kerr.InvalidConfig, "topic setting %q is given more than once", c.Name)
		}
		spec.Config[c.Name] = *c.Value
	}
	return spec, settingsConflict(spec.Config)
}

// checkNewAssignment says what is wrong with the form of a manual assignment:
// partitions from 0 on without a gap, each on nodes that exist, all on equally
// many (ReplicationControlManager.createTopic).
func checkNewAssignment(v *View, parts []kmsg.CreateTopicsRequestTopicReplicaAssignment) *KafkaError {
	seen := make(map[int32]bool, len(parts))
	for _, p := range parts {
		if p.Partition < 0 || int(p.Partition) >= len(parts) || seen[p.Partition] {
			return problem(kerr.InvalidReplicaAssignment, "the assignment's partitions must be 0 to %d, each once", len(parts)-1)
		}
		seen[p.Partition] = true
		if len(p.Replicas) != len(parts[0].Replicas) {
			return problem(kerr.InvalidReplicaAssignment, "the assignment gives its partitions different numbers of replicas")
		}
		if msg := replicasProblem(v, p.Replicas); msg != "" {
			return problem(kerr.InvalidReplicaAssignment, "partition %d: %s", p.Partition, msg)
		}
	}
	return nil
}

func replicasProblem(v *View, replicas []int32) string {
	if len(replicas) == 0 {
		return "the assignment names no node"
	}
	seen := make(map[int32]bool, len(replicas))
	for _, id := range replicas {
		if seen[id] {
			return fmt.Sprintf("the assignment names node %d twice", id)
		}
		seen[id] = true
		if !slices.ContainsFunc(v.Nodes, func(n Node) bool { return n.ID == id }) {
			return fmt.Sprintf("node %d does not exist", id)
		}
	}
	return ""
}

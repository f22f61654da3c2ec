//go:build e2e

package e2e

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func createTopicsScript(r *recorder) {
	create := func(name string, change func(*kmsg.CreateTopicsRequest), topics ...kmsg.CreateTopicsRequestTopic) *exchange {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis, req.Topics = 20_000, topics
		if change != nil {
			change(req)
		}
		return r.add(name, req)
	}
	assigned := func(name string, nodes ...int32) kmsg.CreateTopicsRequestTopic {
		t := newTopic(name, -1)
		t.ReplicationFactor = -1
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Replicas = nodes
		t.ReplicaAssignment = append(t.ReplicaAssignment, a)
		return t
	}
	replicated := func(name string, factor int16) kmsg.CreateTopicsRequestTopic {
		t := newTopic(name, 1)
		t.ReplicationFactor = factor
		return t
	}
	create("a topic", nil, newTopic(r.of("good"), 2, "retention.ms", "86400000"))
	create("the same again", nil, newTopic(r.of("good"), 2))
	create("only to validate", func(q *kmsg.CreateTopicsRequest) { q.ValidateOnly = true }, newTopic(r.of("validated"), 2))
	create("one that is there, to validate", func(q *kmsg.CreateTopicsRequest) { q.ValidateOnly = true }, newTopic("read", 2))
	create("a topic twice", nil, newTopic(r.of("twice"), 1), newTopic(r.of("twice"), 1))
	create("a good and a bad one", nil, newTopic(r.of("second"), 1), newTopic("a b", 1))
	create("an assignment", nil, assigned(r.of("assigned"), 1))
	create("an assignment to an unknown node", nil, assigned(r.of("nowhere"), 5))
	create("an assignment to a node twice", nil, assigned(r.of("nowhere"), 1, 1))
	create("an assignment to nobody", nil, assigned(r.of("nowhere")))
	both := assigned(r.of("both"), 1)
	both.NumPartitions = 1
	create("an assignment and a number", nil, both)
	create("bad name", nil, newTopic("a b", 1))
	create("empty name", nil, newTopic("", 1))
	create("a name that collides", nil, newTopic(r.of("dotted.name"), 1), newTopic(r.of("dotted_name"), 1))
	create("no partitions", nil, newTopic(r.of("none"), 0))
	create("three replicas", nil, replicated(r.of("three"), 3))
	create("no replicas", nil, replicated(r.of("none"), 0))
	create("unknown setting", nil, newTopic(r.of("set"), 1, "no.such", "1"))
	create("bad value", nil, newTopic(r.of("set"), 1, "retention.ms", "soon"))
	create("a setting twice", nil, newTopic(r.of("settwice"), 1, "retention.ms", "86400000", "retention.ms", "86400001"))
	create("LogAppendTime", func(q *kmsg.CreateTopicsRequest) { q.ValidateOnly = true }, newTopic(r.of("set"), 1, "message.timestamp.type", "LogAppendTime"))
	create("tiered storage", nil, newTopic(r.of("set"), 1, "remote.storage.enable", "true"))
	create("an internal name", nil, newTopic("__consumer_offsets", 1))
	create("no topic", nil)
	if r.version >= 4 {
		defaults := newTopic(r.of("defaults"), -1)
		defaults.ReplicationFactor = -1
		create("the defaults", nil, defaults)
	}
}

func deleteTopicsScript(r *recorder) {
	topic := r.of("good")
	r.created(newTopic(topic, 1))
	drop := func(name string, topics ...string) {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.TopicNames = 20_000, topics
		r.add(name, req)
	}
	drop("unknown", "unknown")
	drop("bad name", "a b")
	drop("unknown, twice", "unknown", "unknown")
	drop("a good and an unknown one", topic, "unknown")
	drop("deleted", topic)
	drop("none")
}

// created prepares a topic, and returns when it is served.
func (r *recorder) created(topic kmsg.CreateTopicsRequestTopic) {
	r.prepare(6, func(*side) kmsg.Request {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis, req.Topics = 20_000, append(req.Topics, topic)
		return req
	}).after = func(ctx context.Context, s *side, _ kmsg.Response) error {
		return s.served(ctx, topic.Topic, topic.NumPartitions)
	}
}

// deleteRecordsScript has a partition of cut for each version, with nine
// records in batches of three.
func deleteRecordsScript(r *recorder) {
	drop := func(name, topic string, partition int32, offset int64) {
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.TimeoutMillis = 20_000
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		p.Partition, p.Offset = partition, offset
		t := kmsg.NewDeleteRecordsRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
		r.add(name, req)
	}
	own := int32(r.version)
	drop("within a batch", "cut", own, 4)
	drop("less than is deleted", "cut", own, 1)
	drop("beyond the end", "cut", own, 100)
	drop("a negative offset", "cut", own, -5)
	drop("all", "cut", own, -1)
	drop("unknown topic", "unknown", 0, 0)
	drop("unknown partition", "cut", 99, 0)
	drop("a compacted topic", "compacted", 0, 0)
	none := kmsg.NewPtrDeleteRecordsRequest()
	none.TimeoutMillis = 20_000
	r.add("no topic", none)
}

func createPartitionsScript(r *recorder) {
	topic := r.of("good")
	r.created(newTopic(topic, 2))
	more := func(name, topic string, count int32, change func(*kmsg.CreatePartitionsRequest)) {
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.TimeoutMillis = 20_000
		t := kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = topic, count
		req.Topics = append(req.Topics, t)
		if change != nil {
			change(req)
		}
		r.add(name, req)
	}
	assign := func(nodes ...[]int32) func(*kmsg.CreatePartitionsRequest) {
		return func(q *kmsg.CreatePartitionsRequest) {
			for _, n := range nodes {
				a := kmsg.NewCreatePartitionsRequestTopicAssignment()
				a.Replicas = n
				q.Topics[0].Assignment = append(q.Topics[0].Assignment, a)
			}
		}
	}
	more("as many", topic, 2, nil)
	more("fewer", topic, 1, nil)
	more("a negative number", topic, -1, nil)
	more("only to validate", topic, 3, func(q *kmsg.CreatePartitionsRequest) { q.ValidateOnly = true })
	more("more", topic, 3, nil)
	more("an assignment", topic, 4, assign([]int32{1}))
	more("an assignment to an unknown node", topic, 5, assign([]int32{5}))
	more("an assignment to nobody", topic, 5, assign([]int32{}))
	more("an assignment of another length", topic, 5, assign([]int32{1}, []int32{1}))
	more("unknown topic", "unknown", 2, nil)
	more("a topic twice", topic, 5, func(q *kmsg.CreatePartitionsRequest) { q.Topics = append(q.Topics, q.Topics[0]) })
}

// Resource types as the requests name them.
const (
	topicResource   = kmsg.ConfigResourceTypeTopic
	brokerResource  = kmsg.ConfigResourceTypeBroker
	loggerResource  = kmsg.ConfigResourceTypeBrokerLogger
	groupResource   = kmsg.ConfigResourceTypeGroupConfig
	unknownResource = kmsg.ConfigResourceType(77)
)

func describeConfigsScript(r *recorder) {
	describe := func(name string, kind kmsg.ConfigResourceType, resource string, names ...string) {
		req := kmsg.NewPtrDescribeConfigsRequest()
		res := kmsg.NewDescribeConfigsRequestResource()
		res.ResourceType, res.ResourceName, res.ConfigNames = kind, resource, names
		req.Resources = append(req.Resources, res)
		r.add(name, req)
		full := *req
		full.IncludeSynonyms, full.IncludeDocumentation = true, r.version >= 3
		r.add(name+", with all", &full)
	}
	describe("a topic", topicResource, "read")
	describe("a topic with settings", topicResource, "small")
	describe("some of a topic", topicResource, "compacted", "cleanup.policy", "retention.ms", "no.such")
	describe("unknown topic", topicResource, "unknown")
	describe("bad topic name", topicResource, "a b")
	describe("some of the broker", brokerResource, "1", "num.io.threads", "message.max.bytes", "log.retention.ms")
	describe("another broker", brokerResource, "5", "num.io.threads")
	describe("no number", brokerResource, "first", "num.io.threads")
	describe("the default of brokers", brokerResource, "", "num.io.threads")
	describe("a logger", loggerResource, "1", "kafka.server.KafkaApis")
	describe("a group", groupResource, "first", "consumer.session.timeout.ms")
	describe("an unknown kind", unknownResource, "first")
	r.add("none", kmsg.NewPtrDescribeConfigsRequest())
}

// settings are name and value pairs; the rows of both kinds of alteration.
type alteration struct {
	name     string
	kind     kmsg.ConfigResourceType
	resource string
	settings []string
}

var alterations = []alteration{
	{"a topic", topicResource, "altered", []string{"retention.ms", "90000000"}},
	{"an unknown setting", topicResource, "altered", []string{"no.such", "1"}},
	{"a bad value", topicResource, "altered", []string{"retention.ms", "soon"}},
	{"a setting twice", topicResource, "altered", []string{"retention.ms", "90000001", "retention.ms", "90000002"}},
	{"unknown topic", topicResource, "unknown", []string{"retention.ms", "90000000"}},
	{"bad topic name", topicResource, "a b", []string{"retention.ms", "90000000"}},
	{"compaction of a topic without", topicResource, "altered", []string{"cleanup.policy", "delete,compact"}},
	{"the broker", brokerResource, "1", []string{"log.cleaner.threads", "2"}},
	{"a read-only setting of the broker", brokerResource, "1", []string{"node.id", "9"}},
	{"another broker", brokerResource, "5", []string{"log.cleaner.threads", "2"}},
	{"the default of brokers", brokerResource, "", []string{"log.cleaner.threads", "1"}},
	{"a group", groupResource, "first", []string{"consumer.session.timeout.ms", "45000"}},
	{"an unknown kind", unknownResource, "first", []string{"retention.ms", "1"}},
}

func alterConfigsScript(r *recorder) {
	request := func(a alteration) *kmsg.AlterConfigsRequest {
		req := kmsg.NewPtrAlterConfigsRequest()
		res := kmsg.NewAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = a.kind, a.resource
		for i := 0; i < len(a.settings); i += 2 {
			c := kmsg.NewAlterConfigsRequestResourceConfig()
			c.Name, c.Value = a.settings[i], kmsg.StringPtr(a.settings[i+1])
			res.Configs = append(res.Configs, c)
		}
		req.Resources = append(req.Resources, res)
		return req
	}
	for _, a := range alterations {
		validate := request(a)
		validate.ValidateOnly = true
		r.add(a.name+", to validate", validate)
		r.add(a.name, request(a))
	}
	r.add("nothing of a topic", request(alteration{"", topicResource, "altered", nil}))
	null := request(alterations[0])
	null.Resources[0].Configs[0].Value = nil
	r.add("no value", null)
	// A topic that is named twice is no part of the set: Kafka 4.3 never
	// answers that, in any version.
	r.add("none", kmsg.NewPtrAlterConfigsRequest())
}

func incrementalAlterConfigsScript(r *recorder) {
	request := func(a alteration, op kmsg.IncrementalAlterConfigOp) *kmsg.IncrementalAlterConfigsRequest {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		res := kmsg.NewIncrementalAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = a.kind, a.resource
		for i := 0; i < len(a.settings); i += 2 {
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			c.Name, c.Op, c.Value = a.settings[i], op, kmsg.StringPtr(a.settings[i+1])
			res.Configs = append(res.Configs, c)
		}
		req.Resources = append(req.Resources, res)
		return req
	}
	for _, a := range alterations {
		validate := request(a, kmsg.IncrementalAlterConfigOpSet)
		validate.ValidateOnly = true
		r.add(a.name+", to validate", validate)
		r.add(a.name, request(a, kmsg.IncrementalAlterConfigOpSet))
	}
	r.add("deleting a setting", request(alterations[0], kmsg.IncrementalAlterConfigOpDelete))
	r.add("appending to a number", request(alterations[0], kmsg.IncrementalAlterConfigOpAppend))
	list := alteration{"", topicResource, "altered", []string{"leader.replication.throttled.replicas", "0:1"}}
	r.add("appending to a list", request(list, kmsg.IncrementalAlterConfigOpAppend))
	r.add("taking from a list", request(list, kmsg.IncrementalAlterConfigOpSubtract))
	r.add("an unknown operation", request(alterations[0], kmsg.IncrementalAlterConfigOp(9)))
	null := request(alterations[0], kmsg.IncrementalAlterConfigOpSet)
	null.Resources[0].Configs[0].Value = nil
	r.add("no value", null)
	twice := request(alterations[0], kmsg.IncrementalAlterConfigOpSet)
	twice.Resources = append(twice.Resources, twice.Resources[0])
	r.add("a topic twice", twice)
	r.add("none", kmsg.NewPtrIncrementalAlterConfigsRequest())
}

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func authCreateTopics(s *authScript) {
	created := []string{ownName + "-new", otherName + "-new"}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 20_000
	for _, name := range []string{created[0], created[1], ownName, otherName} {
		req.Topics = append(req.Topics, newTopic(name, 1, "retention.ms", "86400000"))
	}
	validate := *req
	validate.ValidateOnly = true
	s.add("two that are there and two that are not, to validate", &validate)
	s.add("two that are there and two that are not", req).mend = func(_ *principal, out [2]diffOutcome) error {
		return s.m.deleteTopics(done(out), created...)
	}
	twice := *req
	twice.Topics = []kmsg.CreateTopicsRequestTopic{newTopic(created[1], 1), newTopic(created[1], 1)}
	s.add("one twice", &twice)
}

func authDeleteTopics(s *authScript) {
	gone := []string{ownName + "-gone", otherName + "-gone"}
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis, req.TopicNames = 20_000, append(slices.Clone(gone), ownName+"-ghost", otherName+"-ghost")
	s.add("four topics", req).mend = func(_ *principal, out [2]diffOutcome) error {
		if !done(out) {
			return nil
		}
		return errors.Join(s.m.createTopic(gone[0]), s.m.createTopic(gone[1]))
	}
}

func authDeleteRecords(s *authScript) {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 20_000
	for _, topic := range fourTopics {
		p := kmsg.NewDeleteRecordsRequestTopicPartition()
		t := kmsg.NewDeleteRecordsRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
	}
	s.add("of four topics", req)
}

// authCreatePartitions makes one more partition each time that it may.
func authCreatePartitions(s *authScript) {
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.TimeoutMillis = 20_000
	grown := []string{ownName + "-grow", otherName + "-grow"}
	for _, topic := range append(slices.Clone(grown), ownName+"-ghost", otherName+"-ghost") {
		t := kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = topic, s.m.counts[topic]+1
		req.Topics = append(req.Topics, t)
	}
	c := s.add("of four topics", req)
	c.mend = func(_ *principal, out [2]diffOutcome) error {
		if resp, ok := out[0].resp.(*kmsg.CreatePartitionsResponse); ok {
			for _, t := range resp.Topics {
				if t.ErrorCode == 0 {
					s.m.counts[t.Topic]++
				}
			}
		}
		return nil
	}
}

func authDescribeConfigs(s *authScript) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	add := func(kind kmsg.ConfigResourceType, name string, settings ...string) {
		res := kmsg.NewDescribeConfigsRequestResource()
		res.ResourceType, res.ResourceName, res.ConfigNames = kind, name, settings
		req.Resources = append(req.Resources, res)
	}
	for _, topic := range fourTopics {
		add(topicResource, topic)
	}
	add(brokerResource, "1", "num.io.threads")
	s.add("four topics and the broker", req)
	for name, kind := range map[string]kmsg.ConfigResourceType{"5": brokerResource, "": brokerResource, "1": loggerResource, ownName: groupResource, otherName: groupResource} {
		one := kmsg.NewPtrDescribeConfigsRequest()
		res := kmsg.NewDescribeConfigsRequestResource()
		res.ResourceType, res.ResourceName, res.ConfigNames = kind, name, []string{"num.io.threads", "consumer.session.timeout.ms"}
		one.Resources = append(one.Resources, res)
		s.add(fmt.Sprintf("resource %q of type %d", name, kind), one)
	}
}

// authAlterations are altered alone, for some of them are refused as a whole.
var authAlterations = []alteration{
	{"the broker", brokerResource, "1", []string{"log.cleaner.threads", "1"}},
	{"another broker", brokerResource, "5", []string{"log.cleaner.threads", "1"}},
	{"the default of brokers", brokerResource, "", []string{"log.cleaner.threads", "1"}},
	{"a group", groupResource, ownName, []string{"consumer.session.timeout.ms", "45000"}},
}

var alteredTopics = []string{ownName + "-alter", otherName + "-alter", ownName + "-ghost", otherName + "-ghost"}

func authAlterConfigs(s *authScript) {
	request := func(a alteration) *kmsg.AlterConfigsRequest {
		req := kmsg.NewPtrAlterConfigsRequest()
		res := kmsg.NewAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = a.kind, a.resource
		c := kmsg.NewAlterConfigsRequestResourceConfig()
		c.Name, c.Value = a.settings[0], kmsg.StringPtr(a.settings[1])
		res.Configs = append(res.Configs, c)
		req.Resources = append(req.Resources, res)
		return req
	}
	all := kmsg.NewPtrAlterConfigsRequest()
	for _, topic := range alteredTopics {
		all.Resources = append(all.Resources, request(alteration{"", topicResource, topic, []string{"retention.ms", "86400000"}}).Resources...)
	}
	validate := *all
	validate.ValidateOnly = true
	s.add("four topics, to validate", &validate)
	s.add("four topics", all)
	for _, a := range authAlterations {
		req := request(a)
		req.ValidateOnly = true
		s.add(a.name, req)
	}
}

func authIncrementalAlterConfigs(s *authScript) {
	request := func(a alteration) *kmsg.IncrementalAlterConfigsRequest {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		res := kmsg.NewIncrementalAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = a.kind, a.resource
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Value = a.settings[0], kmsg.StringPtr(a.settings[1])
		res.Configs = append(res.Configs, c)
		req.Resources = append(req.Resources, res)
		return req
	}
	all := kmsg.NewPtrIncrementalAlterConfigsRequest()
	for _, topic := range alteredTopics {
		all.Resources = append(all.Resources, request(alteration{"", topicResource, topic, []string{"retention.ms", "86400000"}}).Resources...)
	}
	validate := *all
	validate.ValidateOnly = true
	s.add("four topics, to validate", &validate)
	s.add("four topics", all)
	for _, a := range authAlterations {
		req := request(a)
		req.ValidateOnly = true
		s.add(a.name, req)
	}
	s.add("the broker, in earnest", request(authAlterations[0]))
}

// aclFor is an ACL of nobody in particular.
func aclFor(topic string) kmsg.CreateACLsRequestCreation {
	g := grant(onTopic, topic, literalName, opRead, allowACL)
	g.Principal = "User:" + aUser
	return g
}

func authDescribeACLs(s *authScript) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourceName, req.ResourcePatternType = onTopic, kmsg.StringPtr(aclGone), literalName
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	s.add("of a topic", req)
}

func authCreateACLs(s *authScript) {
	req := kmsg.NewPtrCreateACLsRequest()
	bad := aclFor("")
	req.Creations = append(req.Creations, aclFor(aclTarget), bad)
	s.add("a good and a bad one", req).mend = func(_ *principal, out [2]diffOutcome) error {
		if !done(out) {
			return nil
		}
		return s.m.onBoth(func(i int) error { return s.m.deleteACLs(i, aclTarget) })
	}
}

func authDeleteACLs(s *authScript) {
	req := kmsg.NewPtrDeleteACLsRequest()
	req.Filters = append(req.Filters, filterFor(aclGone), filterFor(aclGone+"-ghost"))
	s.add("of two topics", req).mend = func(_ *principal, out [2]diffOutcome) error {
		if !done(out) {
			return nil
		}
		return s.m.onBoth(func(i int) error {
			return errors.Join(s.m.createACLs(i, aclFor(aclGone)), s.m.hasACL(i, aclGone))
		})
	}
}

func filterFor(topic string) kmsg.DeleteACLsRequestFilter {
	f := kmsg.NewDeleteACLsRequestFilter()
	f.ResourceType, f.ResourceName, f.ResourcePatternType = onTopic, kmsg.StringPtr(topic), literalName
	f.Operation, f.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	return f
}

func authAlterClientQuotas(s *authScript) {
	validate := quotaOf("user", kmsg.StringPtr(aUser), "consumer_byte_rate", 1e9, false)
	validate.ValidateOnly = true
	s.add("to validate", validate)
	s.add("of a user", quotaOf("user", kmsg.StringPtr(aUser), "consumer_byte_rate", 1e9, false))
	s.add("of an address", quotaOf("ip", kmsg.StringPtr("127.0.0.7"), "connection_creation_rate", 10, false))
}

func authDescribeClientQuotas(s *authScript) {
	req := kmsg.NewPtrDescribeClientQuotasRequest()
	c := kmsg.NewDescribeClientQuotasRequestComponent()
	c.EntityType, c.MatchType, c.Match = "user", kmsg.QuotasMatchTypeExact, kmsg.StringPtr("nobody")
	req.Components, req.Strict = append(req.Components, c), true
	s.add("of a user", req)
}

// done says whether anything that was asked for was done.
func done(out [2]diffOutcome) bool {
	return slices.ContainsFunc(out[:], func(o diffOutcome) bool {
		switch resp := o.resp.(type) {
		case *kmsg.CreateTopicsResponse:
			return slices.ContainsFunc(resp.Topics, func(t kmsg.CreateTopicsResponseTopic) bool { return t.ErrorCode == 0 })
		case *kmsg.DeleteTopicsResponse:
			return slices.ContainsFunc(resp.Topics, func(t kmsg.DeleteTopicsResponseTopic) bool { return t.ErrorCode == 0 })
		case *kmsg.CreateACLsResponse:
			return slices.ContainsFunc(resp.Results, func(r kmsg.CreateACLsResponseResult) bool { return r.ErrorCode == 0 })
		case *kmsg.DeleteACLsResponse:
			return slices.ContainsFunc(resp.Results, func(r kmsg.DeleteACLsResponseResult) bool { return r.ErrorCode == 0 })
		}
		return o.resp != nil
	})
}

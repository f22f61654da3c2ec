package proxy

import (
	"context"
	"math"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DescribeConfigs 1 to 4.
//
// The local broker is asked on the client's own connection, for it knows its
// defaults, its documentation and what the client may see. Of a topic it has a
// permissive copy: what it says of the topic's own settings is replaced by the
// catalog's, and the defaults that the proxy enforces by the cluster's. The
// broker has a node id of its own, so a resource that names this node is
// renamed on the way there and back; one that names another node is refused.

func handleDescribeConfigs(r *request) error {
	req, err := parse[*kmsg.DescribeConfigsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	theirs := ""
	resp := kmsg.NewPtrDescribeConfigsResponse()
	var foreign []kmsg.DescribeConfigsRequestResource
	up := *req
	up.Resources = nil
	for _, res := range req.Resources {
		switch {
		case isBrokerResource(res.ResourceType) && isSelf(v, res.ResourceName):
			if theirs, err = r.brokerNodeID(); err != nil {
				return r.c.srv.unanswered(r, err)
			}
			res.ResourceName = theirs
		case isBrokerResource(res.ResourceType) && res.ResourceName != "":
			foreign = append(foreign, res)
			continue
		}
		up.Resources = append(up.Resources, res)
	}
	if len(foreign) > 0 {
		denied, err := r.mayDescribeBrokers()
		if err != nil {
			return r.c.srv.unanswered(r, err)
		}
		for _, res := range foreign {
			p := denied
			if p == nil {
				p = problem(kerr.InvalidRequest, "Unexpected broker id, expected %d or empty string, but received %s", v.Self, res.ResourceName)
			}
			resp.Resources = append(resp.Resources, undescribed(res.ResourceType, res.ResourceName, p))
		}
	}
	if len(up.Resources) == 0 {
		r.reply(resp)
		return nil
	}
	var topics []string
	for _, res := range up.Resources {
		if res.ResourceType == kmsg.ConfigResourceTypeTopic {
			topics = append(topics, res.ResourceName)
		}
	}
	r.topicsHere(topics)
	up.IncludeSynonyms = true // they tell what stands behind a topic's own setting
	ask(r, &up, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.DescribeConfigsResponse, held *lease, err error) {
		if err != nil {
			r.abandon(r.c.srv.unanswered(r, err))
			return
		}
		v := r.c.srv.cluster.View()
		for _, res := range got.Resources {
			switch {
			case isBrokerResource(res.ResourceType) && res.ResourceName == theirs && theirs != "":
				res.ResourceName = strconv.Itoa(int(v.Self))
			case res.ResourceType == kmsg.ConfigResourceTypeTopic && res.ErrorCode == 0:
				r.c.srv.describeTopic(v, &res)
			}
			if !req.IncludeSynonyms {
				for i := range res.Configs {
					res.Configs[i].ConfigSynonyms = nil
				}
			}
			resp.Resources = append(resp.Resources, res)
		}
		r.replyHolding(resp, held)
	})
	return nil
}

// mayDescribeBrokers says why the client may not describe the settings of brokers,
// or nil. The broker is asked for none of those that all brokers have in common.
func (r *request) mayDescribeBrokers() (*KafkaError, error) {
	if !r.judged {
		return nil, nil
	}
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.SetVersion(1)
	all := kmsg.NewDescribeConfigsRequestResource()
	all.ResourceType, all.ConfigNames = kmsg.ConfigResourceTypeBroker, []string{}
	req.Resources = append(req.Resources, all)
	resp, err := askRights[*kmsg.DescribeConfigsResponse](r.c.ctx, r, req)
	if err != nil {
		return nil, err
	}
	for _, res := range resp.Resources {
		return answeredProblem(res.ErrorCode, res.ErrorMessage), nil
	}
	return nil, errUpstreamGarbage
}

func undescribed(kind kmsg.ConfigResourceType, name string, p *KafkaError) kmsg.DescribeConfigsResponseResource {
	res := kmsg.NewDescribeConfigsResponseResource()
	res.ResourceType, res.ResourceName = kind, name
	res.ErrorCode, res.ErrorMessage = p.wire()
	return res
}

// describeTopic makes what the broker says of its copy what the catalog says of
// the topic.
func (s *Server) describeTopic(v *View, res *kmsg.DescribeConfigsResponseResource) {
	t := v.Topics[res.ResourceName]
	if t == nil {
		code, msg := missingTopicAdminCode(v)
		*res = undescribed(res.ResourceType, res.ResourceName, &KafkaError{code, msg})
		return
	}
	for i := range res.Configs {
		s.describeSetting(t, &res.Configs[i])
	}
}

// describeSetting describes one setting the way Kafka's ConfigHelper does: the
// topic's own value first, then what stands behind it.
func (s *Server) describeSetting(t *Topic, c *kmsg.DescribeConfigsResponseResourceConfig) {
	c.ConfigSynonyms = slices.DeleteFunc(c.ConfigSynonyms, func(syn kmsg.DescribeConfigsResponseResourceConfigConfigSynonym) bool {
		return syn.Source == kmsg.ConfigSourceDynamicTopicConfig
	})
	if syn := s.enforcedDefault(c.Name); syn != nil {
		c.ConfigSynonyms = []kmsg.DescribeConfigsResponseResourceConfigConfigSynonym{*syn}
	}
	if value, ok := t.Config[c.Name]; ok {
		c.ConfigSynonyms = slices.Insert(c.ConfigSynonyms, 0, *synonym(c.Name, value, kmsg.ConfigSourceDynamicTopicConfig))
	}
	if len(c.ConfigSynonyms) > 0 {
		c.Value, c.Source = c.ConfigSynonyms[0].Value, c.ConfigSynonyms[0].Source
	} else if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
		c.Source = kmsg.ConfigSourceDefaultConfig
	}
	c.IsDefault = c.Source == kmsg.ConfigSourceDefaultConfig
}

func synonym(name, value string, source kmsg.ConfigSource) *kmsg.DescribeConfigsResponseResourceConfigConfigSynonym {
	syn := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
	syn.Name, syn.Value, syn.Source = name, kmsg.StringPtr(value), source
	return &syn
}

// enforcedDefault is the default of a setting that the proxy holds producers
// to, whatever the broker's is, under the broker's name for it; nil for all
// others.
func (s *Server) enforcedDefault(name string) *kmsg.DescribeConfigsResponseResourceConfigConfigSynonym {
	switch name {
	case "max.message.bytes":
		source := kmsg.ConfigSourceDefaultConfig
		if s.cfg.Topics.MaxMessageBytes != defaultMaxMessageBytes {
			source = kmsg.ConfigSourceStaticBrokerConfig
		}
		return synonym("message.max.bytes", strconv.Itoa(s.cfg.Topics.MaxMessageBytes), source)
	case "message.timestamp.type":
		return synonym("log.message.timestamp.type", "CreateTime", kmsg.ConfigSourceDefaultConfig)
	case "message.timestamp.before.max.ms":
		return synonym("log.message.timestamp.before.max.ms", strconv.FormatInt(math.MaxInt64, 10), kmsg.ConfigSourceDefaultConfig)
	case "message.timestamp.after.max.ms":
		return synonym("log.message.timestamp.after.max.ms", strconv.Itoa(defaultTimestampAfterMaxMs), kmsg.ConfigSourceDefaultConfig)
	case "compression.type":
		return synonym(name, "producer", kmsg.ConfigSourceDefaultConfig)
	}
	return nil
}

func isBrokerResource(t kmsg.ConfigResourceType) bool {
	return t == kmsg.ConfigResourceTypeBroker || t == kmsg.ConfigResourceTypeBrokerLogger
}

// isSelf says whether a broker resource names this node.
func isSelf(v *View, name string) bool { return name == strconv.Itoa(int(v.Self)) }

// brokerNodeID is the node id that the local broker has for itself, learnt from
// its Metadata once.
func (r *request) brokerNodeID() (string, error) {
	if id := r.c.srv.brokerID.Load(); id != nil {
		return *id, nil
	}
	req := kmsg.NewPtrMetadataRequest()
	req.SetVersion(1)
	req.Topics = []kmsg.MetadataRequestTopic{} // none; null would be all
	ctx, cancel := context.WithTimeout(r.c.ctx, r.c.srv.cfg.Limits.UpstreamTimeout)
	defer cancel()
	resp, err := query[*kmsg.MetadataResponse](ctx, r, req)
	if err != nil {
		return "", err
	}
	if len(resp.Brokers) != 1 {
		// Not the single-node broker we are made for: leave names alone.
		return strconv.Itoa(int(r.c.srv.cluster.View().Self)), nil
	}
	id := strconv.Itoa(int(resp.Brokers[0].NodeID))
	r.c.srv.brokerID.Store(&id)
	return id, nil
}

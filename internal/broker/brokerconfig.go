package broker

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	maxAlterConfigsVersion    = 1
	maxDescribeConfigsVersion = 4
)

// producerExpiry keeps the applier's producer state alive as long as the
// setting, an int of milliseconds, can: without it a broker accepts any
// sequence again and no longer refuses a gap.
const producerExpiry = "2147483647"

// SetBrokerDefaults sets what can be set on the running broker and looks for
// what can only be set in its own configuration file. It is best effort: what
// could not be done or is unsuitable comes back as warnings, each naming the
// next step. err is only for a broker that cannot be asked at all.
func (a *Admin) SetBrokerDefaults(ctx context.Context) (warnings []string, err error) {
	meta, err := a.metadata(ctx, []kmsg.MetadataRequestTopic{})
	if err != nil {
		return nil, fmt.Errorf("ask who the broker is: %w", err)
	}
	if n := len(meta.Brokers); n > 1 {
		warnings = append(warnings, fmt.Sprintf("the broker belongs to a cluster of %d nodes; put each lockstep node in front of a broker of its own", n))
	}
	// The empty name is the default for all nodes, which is this one.
	err = a.AlterConfig(ctx, kmsg.ConfigResourceTypeBroker, "", map[string]*string{
		"producer.id.expiration.ms": kmsg.StringPtr(producerExpiry),
	})
	if err != nil {
		warnings = append(warnings, fmt.Sprintf("cannot set producer.id.expiration.ms=%s: %v; set it in the broker's configuration file", producerExpiry, err))
	}
	node := meta.ControllerID
	if len(meta.Brokers) > 0 {
		node = meta.Brokers[0].NodeID
	}
	config, err := a.DescribeConfig(ctx, kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(node)))
	if err != nil {
		return append(warnings, fmt.Sprintf("cannot read the broker's settings: %v; check auto.create.topics.enable=false in its configuration file", err)), nil
	}
	if config["auto.create.topics.enable"] == "true" {
		warnings = append(warnings, "auto.create.topics.enable is true and cannot be changed while the broker runs; set it to false in the broker's configuration file and restart it")
	}
	if name := config["authorizer.class.name"]; name != "" {
		warnings = append(warnings, fmt.Sprintf("the broker has an authorizer (%s), which lockstep asks what a client may do, on the client's own connection: set broker.client_server to a listener where clients authenticate as themselves, and let nobody but lockstep use the one it has", name))
	}
	if config["delete.topic.enable"] == "false" {
		warnings = append(warnings, "delete.topic.enable is false, so topics cannot be deleted; set it to true in the broker's configuration file and restart it")
	}
	return warnings, nil
}

// Authorizer returns the name of the broker's authorizer, "" if it has none.
func (a *Admin) Authorizer(ctx context.Context) (string, error) {
	meta, err := a.metadata(ctx, []kmsg.MetadataRequestTopic{})
	if err != nil {
		return "", fmt.Errorf("ask who the broker is: %w", err)
	}
	if len(meta.Brokers) == 0 {
		return "", fmt.Errorf("%w: Metadata without a broker", ErrMalformed)
	}
	config, err := a.DescribeConfig(ctx, kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(meta.Brokers[0].NodeID)))
	if err != nil {
		return "", fmt.Errorf("read the broker's settings: %w", err)
	}
	return config["authorizer.class.name"], nil
}

// TopicConfig returns the topic's settings as the broker has them in effect.
func (a *Admin) TopicConfig(ctx context.Context, name string) (map[string]string, error) {
	config, err := a.DescribeConfig(ctx, kmsg.ConfigResourceTypeTopic, name)
	if err != nil {
		return nil, fmt.Errorf("read settings of topic %s: %w", name, err)
	}
	return config, nil
}

// ConfigureTopic gives an existing topic the settings CreateTopic would have
// given it: the permissive ones, those of clientConfig that PassedOn allows,
// and the broker's default for every other that PassedOn names. Settings the
// broker does not know are left out and logged.
func (a *Admin) ConfigureTopic(ctx context.Context, name string, clientConfig map[string]string) error {
	settings := topicSettings(clientConfig)
	config := make(map[string]*string)
	for n := range passedOn {
		config[n] = nil
	}
	for _, s := range settings {
		config[s.name] = kmsg.StringPtr(s.values[0])
	}
	err := a.AlterConfig(ctx, kmsg.ConfigResourceTypeTopic, name, config)
	if refusedConfig(err) {
		err = a.configureOneByOne(ctx, name, config, settings)
	}
	if err != nil {
		return fmt.Errorf("configure topic %s: %w", name, err)
	}
	return nil
}

func (a *Admin) configureOneByOne(ctx context.Context, name string, config map[string]*string, settings []setting) error {
	values := make(map[string][]string, len(settings))
	for _, s := range settings {
		values[s.name] = s.values
	}
	for n, first := range config {
		tries := []*string{first}
		for _, v := range values[n][min(1, len(values[n])):] {
			tries = append(tries, kmsg.StringPtr(v))
		}
		var err error
		for _, v := range tries {
			err = a.AlterConfig(ctx, kmsg.ConfigResourceTypeTopic, name, map[string]*string{n: v})
			if !refusedConfig(err) {
				break
			}
		}
		switch {
		case refusedConfig(err) && first != nil:
			a.cfg.Logger.Warn("broker refused a topic setting", "topic", name, "setting", n, "error", err)
		case err != nil && !refusedConfig(err):
			return err
		}
	}
	return nil
}

// EnsureTopicConfig does what ConfigureTopic does where the topic's settings are
// not these already, and reports whether they were not.
func (a *Admin) EnsureTopicConfig(ctx context.Context, name string, clientConfig map[string]string) (changed bool, err error) {
	own, err := a.ownConfig(ctx, name)
	if err != nil {
		return false, fmt.Errorf("read settings of topic %s: %w", name, err)
	}
	if sameSettings(own, clientConfig) {
		return false, nil
	}
	return true, a.ConfigureTopic(ctx, name, clientConfig)
}

// sameSettings says whether what a topic has of its own is what it should have.
func sameSettings(own, clientConfig map[string]string) bool {
	wanted := make(map[string]bool)
	for _, s := range topicSettings(clientConfig) {
		wanted[s.name] = true
		if !slices.Contains(s.values, own[s.name]) {
			return false
		}
	}
	for name := range passedOn {
		if _, has := own[name]; has && !wanted[name] {
			return false
		}
	}
	return true
}

// OwnTopicConfig returns the settings that were given to a topic itself.
func (a *Admin) OwnTopicConfig(ctx context.Context, name string) (map[string]string, error) {
	own, err := a.ownConfig(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read settings of topic %s: %w", name, err)
	}
	return own, nil
}

// ownConfig returns the settings that were given to a topic itself.
func (a *Admin) ownConfig(ctx context.Context, name string) (map[string]string, error) {
	own := make(map[string]string)
	err := a.eachConfig(ctx, kmsg.ConfigResourceTypeTopic, name, func(c *kmsg.DescribeConfigsResponseResourceConfig) {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig && c.Value != nil {
			own[c.Name] = *c.Value
		}
	})
	return own, err
}

// AlterConfig sets the given settings of a resource and returns those with a
// nil value to their default (IncrementalAlterConfigs, KIP-339). Others stay.
func (a *Admin) AlterConfig(ctx context.Context, kind kmsg.ConfigResourceType, name string, config map[string]*string) error {
	resp, err := a.caller.call(ctx, false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.IncrementalAlterConfigs, 0, maxAlterConfigsVersion)
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Version = version
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName = kind, name
		for k, v := range config {
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			c.Name, c.Value, c.Op = k, v, kmsg.IncrementalAlterConfigOpSet
			if v == nil {
				c.Op = kmsg.IncrementalAlterConfigOpDelete
			}
			r.Configs = append(r.Configs, c)
		}
		req.Resources = append(req.Resources, r)
		return req, err
	})
	if err != nil {
		return err
	}
	for _, r := range resp.(*kmsg.IncrementalAlterConfigsResponse).Resources {
		if r.ResourceType == kind && r.ResourceName == name {
			return codeError(r.ErrorCode, r.ErrorMessage)
		}
	}
	return fmt.Errorf("%w: IncrementalAlterConfigs without the resource", ErrMalformed)
}

// DescribeConfig returns all settings of a resource that have a value.
func (a *Admin) DescribeConfig(ctx context.Context, kind kmsg.ConfigResourceType, name string) (map[string]string, error) {
	config := make(map[string]string)
	err := a.eachConfig(ctx, kind, name, func(c *kmsg.DescribeConfigsResponseResourceConfig) {
		if c.Value != nil {
			config[c.Name] = *c.Value
		}
	})
	if err != nil {
		return nil, err
	}
	return config, nil
}

// eachConfig calls fn for every setting of a resource.
func (a *Admin) eachConfig(ctx context.Context, kind kmsg.ConfigResourceType, name string, fn func(*kmsg.DescribeConfigsResponseResourceConfig)) error {
	found := false
	err := a.describeConfigs(ctx, kind, []string{name}, nil, func(r *kmsg.DescribeConfigsResponseResource) error {
		found = true
		if err := codeError(r.ErrorCode, r.ErrorMessage); err != nil {
			return err
		}
		for i := range r.Configs {
			fn(&r.Configs[i])
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: DescribeConfigs without the resource", ErrMalformed)
	}
	return err
}

// configsAtOnce is of how many topics one request asks for settings.
const configsAtOnce = 500

// TopicSettings returns settings of topics as they are in effect, those named
// only. Topics that are deleted meanwhile are left out.
func (a *Admin) TopicSettings(ctx context.Context, topics, settings []string) (map[string]map[string]string, error) {
	out := make(map[string]map[string]string, len(topics))
	for part := range slices.Chunk(topics, configsAtOnce) {
		err := a.describeConfigs(ctx, kmsg.ConfigResourceTypeTopic, part, settings, func(r *kmsg.DescribeConfigsResponseResource) error {
			if r.ErrorCode == kerr.UnknownTopicOrPartition.Code {
				return nil
			}
			if err := codeError(r.ErrorCode, r.ErrorMessage); err != nil {
				return fmt.Errorf("topic %s: %w", r.ResourceName, err)
			}
			values := make(map[string]string)
			for _, c := range r.Configs {
				if c.Value != nil {
					values[c.Name] = *c.Value
				}
			}
			out[r.ResourceName] = values
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read topics' settings: %w", err)
		}
	}
	return out, nil
}

// describeConfigs calls fn for every resource of those named; settings nil: all.
func (a *Admin) describeConfigs(ctx context.Context, kind kmsg.ConfigResourceType, names, settings []string, fn func(*kmsg.DescribeConfigsResponseResource) error) error {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DescribeConfigs, 0, maxDescribeConfigsVersion)
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Version = version
		for _, name := range names {
			r := kmsg.NewDescribeConfigsRequestResource()
			r.ResourceType, r.ResourceName, r.ConfigNames = kind, name, settings
			req.Resources = append(req.Resources, r)
		}
		return req, err
	})
	if err != nil {
		return err
	}
	list := resp.(*kmsg.DescribeConfigsResponse).Resources
	for i := range list {
		if list[i].ResourceType != kind || !slices.Contains(names, list[i].ResourceName) {
			continue
		}
		if err := fn(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

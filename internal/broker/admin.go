package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions of the admin requests. Metadata v4 is the first that can forbid
// auto-creation, v10 the first with topic ids. DeleteTopics v6 and CreateTopics
// v7 add nothing that is used here.
const (
	minMetadataVersion         = 4
	maxMetadataVersion         = 12
	minCreateTopicsVersion     = 1 // the first with validate_only
	maxCreateTopicsVersion     = 6
	maxDeleteTopicsVersion     = 5
	maxCreatePartitionsVersion = 2
)

// adminTimeout is the time the broker itself is given for a topic change.
const adminTimeout = 15 * time.Second

// TopicInfo is a topic as the broker has it.
type TopicInfo struct {
	Name string
	// UUID is the broker's own topic id; zero on brokers without topic ids
	// (Metadata below v10, or lookalikes).
	UUID       [16]byte
	Partitions int32
	// Internal marks Kafka's own topics, such as __consumer_offsets.
	Internal bool
	// Ready is true when every partition has a leader.
	Ready bool
}

// Admin administers the local broker over one connection of its own, one
// request at a time. Safe for use by many goroutines.
type Admin struct {
	cfg    Config
	caller *caller
}

// NewAdmin makes an Admin without connecting; the first call does.
func NewAdmin(cfg Config) *Admin {
	a := &Admin{cfg: cfg.withDefaults()}
	a.caller = newCaller(&a.cfg)
	return a
}

// Close aborts what is under way and ends the connection. Idempotent.
func (a *Admin) Close() error {
	a.caller.close()
	return nil
}

// ApiVersions asks the broker anew for its API versions.
func (a *Admin) ApiVersions(ctx context.Context) ([]kmsg.ApiVersionsResponseApiKey, error) {
	offered, err := a.caller.offered(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for API versions: %w", err)
	}
	return offered.ApiKeys, nil
}

// Describe says in a few words which Kafka release the broker speaks like, or
// "unknown". It is a guess from its API versions, for people to read.
func (a *Admin) Describe(ctx context.Context) (string, error) {
	offered, err := a.caller.offered(ctx)
	if err != nil {
		return "", fmt.Errorf("ask for API versions: %w", err)
	}
	return describe(offered), nil
}

// Topic describes one topic, or returns ErrNoTopic. It never creates one on a
// broker that respects the request's flag.
func (a *Admin) Topic(ctx context.Context, name string) (TopicInfo, error) {
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(name)
	resp, err := a.metadata(ctx, []kmsg.MetadataRequestTopic{t})
	if err != nil {
		return TopicInfo{}, fmt.Errorf("describe topic %s: %w", name, err)
	}
	for i := range resp.Topics {
		if t := &resp.Topics[i]; t.Topic != nil && *t.Topic == name {
			if err := codeError(t.ErrorCode, nil); err != nil {
				return TopicInfo{}, fmt.Errorf("describe topic %s: %w", name, err)
			}
			return topicInfo(t), nil
		}
	}
	return TopicInfo{}, fmt.Errorf("describe topic %s: %w", name, ErrNoTopic)
}

// Topics describes all topics of the broker, internal ones included.
func (a *Admin) Topics(ctx context.Context) ([]TopicInfo, error) {
	resp, err := a.metadata(ctx, nil) // null means all
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	infos := make([]TopicInfo, 0, len(resp.Topics))
	for i := range resp.Topics {
		t := &resp.Topics[i]
		if t.Topic == nil {
			continue
		}
		if err := codeError(t.ErrorCode, nil); err != nil {
			return nil, fmt.Errorf("list topics: %s: %w", *t.Topic, err)
		}
		infos = append(infos, topicInfo(t))
	}
	return infos, nil
}

func (a *Admin) metadata(ctx context.Context, topics []kmsg.MetadataRequestTopic) (*kmsg.MetadataResponse, error) {
	resp, err := a.caller.call(ctx, true, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.Metadata, minMetadataVersion, maxMetadataVersion)
		req := kmsg.NewPtrMetadataRequest()
		req.Version = version
		req.Topics = topics
		req.AllowAutoTopicCreation = false
		return req, err
	})
	if err != nil {
		return nil, err
	}
	return resp.(*kmsg.MetadataResponse), nil
}

func topicInfo(t *kmsg.MetadataResponseTopic) TopicInfo {
	info := TopicInfo{
		Name:       *t.Topic,
		UUID:       t.TopicID,
		Partitions: int32(len(t.Partitions)),
		Internal:   t.IsInternal,
		Ready:      len(t.Partitions) > 0,
	}
	for _, p := range t.Partitions {
		info.Ready = info.Ready && p.ErrorCode == 0 && p.Leader >= 0
	}
	return info
}

// CreateTopic creates a topic with replication factor 1, the permissive
// settings that keep the broker from ever refusing or rewriting a committed
// batch, and those of clientConfig that PassedOn allows. It returns when the
// broker lists the topic and can append to every partition, or ctx ends.
//
// Settings the broker does not know are left out and logged. A topic of that
// name is ErrTopicExists; after ErrConnLost the topic may or may not exist.
func (a *Admin) CreateTopic(ctx context.Context, name string, partitions int32, clientConfig map[string]string) (TopicInfo, error) {
	settings := topicSettings(clientConfig)
	err := a.createTopic(ctx, name, partitions, firstValues(settings), false)
	if refusedConfig(err) {
		var accepted map[string]string
		if accepted, err = a.acceptedSettings(ctx, name, partitions, settings); err == nil {
			err = a.createTopic(ctx, name, partitions, accepted, false)
		}
	}
	if err != nil {
		return TopicInfo{}, fmt.Errorf("create topic %s: %w", name, err)
	}
	info, err := a.awaitLed(ctx, name, partitions)
	if err != nil {
		return TopicInfo{}, fmt.Errorf("create topic %s: %w", name, err)
	}
	return info, nil
}

func firstValues(settings []setting) map[string]string {
	values := make(map[string]string, len(settings))
	for _, s := range settings {
		values[s.name] = s.values[0]
	}
	return values
}

// refusedConfig says whether the broker disliked a setting, not the topic.
func refusedConfig(err error) bool {
	var code *CodeError
	return errors.As(err, &code) &&
		(code.Code == kerr.InvalidConfig.Code || code.Code == kerr.InvalidRequest.Code)
}

// acceptedSettings finds the settings the broker accepts, one by one, by
// requests that only validate.
func (a *Admin) acceptedSettings(ctx context.Context, name string, partitions int32, settings []setting) (map[string]string, error) {
	accepted := make(map[string]string, len(settings))
	for _, s := range settings {
		var err error
		for _, value := range s.values {
			if err = a.createTopic(ctx, name, partitions, map[string]string{s.name: value}, true); err == nil {
				accepted[s.name] = value
				break
			}
			if !refusedConfig(err) {
				return nil, err
			}
		}
		if err != nil {
			a.cfg.Logger.Warn("broker refused a topic setting", "topic", name, "setting", s.name, "error", err)
		}
	}
	return accepted, nil
}

func (a *Admin) createTopic(ctx context.Context, name string, partitions int32, config map[string]string, validateOnly bool) error {
	resp, err := a.caller.call(ctx, false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.CreateTopics, minCreateTopicsVersion, maxCreateTopicsVersion)
		req := kmsg.NewPtrCreateTopicsRequest()
		req.Version = version
		req.TimeoutMillis = int32(adminTimeout / time.Millisecond)
		req.ValidateOnly = validateOnly
		t := kmsg.NewCreateTopicsRequestTopic()
		t.Topic = name
		t.NumPartitions = partitions
		t.ReplicationFactor = 1
		for k, v := range config {
			c := kmsg.NewCreateTopicsRequestTopicConfig()
			c.Name, c.Value = k, kmsg.StringPtr(v)
			t.Configs = append(t.Configs, c)
		}
		req.Topics = append(req.Topics, t)
		return req, err
	})
	if err != nil {
		return err
	}
	for _, t := range resp.(*kmsg.CreateTopicsResponse).Topics {
		if t.Topic == name {
			return codeError(t.ErrorCode, t.ErrorMessage)
		}
	}
	return fmt.Errorf("%w: CreateTopics without the topic", ErrMalformed)
}

// ExtendTopic raises the number of partitions to total and returns when each
// can be appended to. A topic that has total already is left alone; one that has
// more is an error.
func (a *Admin) ExtendTopic(ctx context.Context, name string, total int32) error {
	info, err := a.Topic(ctx, name)
	if err == nil && info.Partitions != total {
		err = a.createPartitions(ctx, name, total)
	}
	if err == nil {
		_, err = a.awaitLed(ctx, name, total)
	}
	if err != nil {
		return fmt.Errorf("extend topic %s to %d partitions: %w", name, total, err)
	}
	return nil
}

func (a *Admin) createPartitions(ctx context.Context, name string, total int32) error {
	resp, err := a.caller.call(ctx, false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.CreatePartitions, 0, maxCreatePartitionsVersion)
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.Version = version
		req.TimeoutMillis = int32(adminTimeout / time.Millisecond)
		t := kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = name, total
		req.Topics = append(req.Topics, t)
		return req, err
	})
	if err != nil {
		return err
	}
	for _, t := range resp.(*kmsg.CreatePartitionsResponse).Topics {
		if t.Topic == name {
			return codeError(t.ErrorCode, t.ErrorMessage)
		}
	}
	return fmt.Errorf("%w: CreatePartitions without the topic", ErrMalformed)
}

// DeleteTopic deletes a topic by name and returns when the broker lists it no
// more. A topic that is not there is success.
func (a *Admin) DeleteTopic(ctx context.Context, name string) error {
	err := a.deleteTopic(ctx, name)
	if err == nil {
		err = a.awaitGone(ctx, name)
	}
	if err != nil && !errors.Is(err, ErrNoTopic) {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	return nil
}

func (a *Admin) deleteTopic(ctx context.Context, name string) error {
	resp, err := a.caller.call(ctx, false, func(v versions) (kmsg.Request, error) {
		version, err := v.pick(kmsg.DeleteTopics, 0, maxDeleteTopicsVersion)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.Version = version
		req.TimeoutMillis = int32(adminTimeout / time.Millisecond)
		req.TopicNames = []string{name}
		return req, err
	})
	if err != nil {
		return err
	}
	for _, t := range resp.(*kmsg.DeleteTopicsResponse).Topics {
		if t.Topic != nil && *t.Topic == name {
			return codeError(t.ErrorCode, t.ErrorMessage)
		}
	}
	return fmt.Errorf("%w: DeleteTopics without the topic", ErrMalformed)
}

// Empty says whether every partition of the topic starts and ends at offset 0.
func (a *Admin) Empty(ctx context.Context, name string) (bool, error) {
	info, err := a.Topic(ctx, name)
	if err != nil {
		return false, err
	}
	for _, timestamp := range []int64{earliestTimestamp, latestTimestamp} {
		offsets, err := listOffsets(ctx, a.caller, name, allPartitions(info.Partitions), timestamp)
		if err != nil {
			return false, fmt.Errorf("read log ends of %s: %w", name, err)
		}
		for _, offset := range offsets {
			if offset != 0 {
				return false, nil
			}
		}
	}
	return true, nil
}

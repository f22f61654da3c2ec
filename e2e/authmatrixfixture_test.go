//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What a super user does to both sides, to make them alike.

// createTopic returns when the topic is there and served.
func (m *authMatrix) createTopic(name string) error {
	return m.onBoth(func(i int) error {
		req := kmsg.NewPtrCreateTopicsRequest()
		req.TimeoutMillis, req.Topics = 20_000, append(req.Topics, newTopic(name, 1))
		resp, err := adminCall[*kmsg.CreateTopicsResponse](m, i, 5, req)
		if err != nil {
			return err
		}
		if code := resp.Topics[0].ErrorCode; code != 0 && code != kerr.TopicAlreadyExists.Code {
			return kerr.ErrorForCode(code)
		}
		code, err := m.offsetCode(i, name)
		return errors.Join(err, kerr.ErrorForCode(code))
	})
}

// offsetCode is what a super user is told who asks for the end of a topic.
func (m *authMatrix) offsetCode(i int, topic string) (int16, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Timestamp = -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := adminCall[*kmsg.ListOffsetsResponse](m, i, 1, req)
	if err != nil {
		return 0, err
	}
	return resp.Topics[0].Partitions[0].ErrorCode, nil
}

// deleteTopics returns when none of the topics is there.
func (m *authMatrix) deleteTopics(any bool, names ...string) error {
	if !any {
		return nil
	}
	return m.onBoth(func(i int) error {
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.TimeoutMillis, req.TopicNames = 20_000, names
		if _, err := adminCall[*kmsg.DeleteTopicsResponse](m, i, 5, req); err != nil {
			return err
		}
		for _, name := range names {
			code, err := m.offsetCode(i, name)
			if err == nil && code != kerr.UnknownTopicOrPartition.Code {
				err = fmt.Errorf("topic %s is still there", name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// autoCreated waits for the topics that Kafka has agreed to create, sees that the
// others do not exist, and deletes them.
func (m *authMatrix) autoCreated(names []string, out [2]diffOutcome) error {
	var created []string
	if resp, ok := out[0].resp.(*kmsg.MetadataResponse); ok {
		for _, t := range resp.Topics {
			if t.ErrorCode != kerr.TopicAuthorizationFailed.Code {
				created = append(created, *t.Topic)
			}
		}
	}
	for _, name := range names {
		if slices.Contains(created, name) {
			if err := m.onBoth(func(i int) error {
				code, err := m.offsetCode(i, name)
				return errors.Join(err, kerr.ErrorForCode(code))
			}); err != nil {
				return fmt.Errorf("create %s: %w", name, err)
			}
		} else if code, err := m.offsetCode(1, name); err != nil || code != kerr.UnknownTopicOrPartition.Code {
			m.t.Errorf("topic %s was created for who may not: code %d, %v", name, code, err)
			created = append(created, name)
		}
	}
	return m.deleteTopics(len(created) > 0, created...)
}

func (m *authMatrix) commit(group string) error {
	return m.onBoth(func(i int) error {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation = group, -1
		for _, topic := range []string{ownName, otherName} {
			req.Topics = append(req.Topics, commitOf(topic, 0, 1)...)
		}
		resp, err := adminCall[*kmsg.OffsetCommitResponse](m, i, 8, req)
		if err != nil {
			return err
		}
		return errors.Join(kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode), kerr.ErrorForCode(resp.Topics[1].Partitions[0].ErrorCode))
	})
}

func (m *authMatrix) recommit(groups ...string) error {
	var err error
	for _, group := range groups {
		err = errors.Join(err, m.commit(group))
	}
	return err
}

func (m *authMatrix) createACLs(i int, acls ...kmsg.CreateACLsRequestCreation) error {
	req := kmsg.NewPtrCreateACLsRequest()
	req.Creations = acls
	resp, err := adminCall[*kmsg.CreateACLsResponse](m, i, 2, req)
	if err != nil {
		return err
	}
	for _, r := range resp.Results {
		if r.ErrorCode != 0 {
			return kerr.ErrorForCode(r.ErrorCode)
		}
	}
	return nil
}

// deleteACLs returns when there are no ACLs on a topic.
func (m *authMatrix) deleteACLs(i int, topic string) error {
	req := kmsg.NewPtrDeleteACLsRequest()
	req.Filters = append(req.Filters, filterFor(topic))
	if _, err := adminCall[*kmsg.DeleteACLsResponse](m, i, 2, req); err != nil {
		return err
	}
	n, err := m.aclCount(i, &topic)
	if err == nil && n > 0 {
		err = fmt.Errorf("the ACL on %s is still there", topic)
	}
	return err
}

func (m *authMatrix) hasACL(i int, topic string) error {
	n, err := m.aclCount(i, &topic)
	if err == nil && n == 0 {
		err = fmt.Errorf("no ACL on %s yet", topic)
	}
	return err
}

// listed is nil once a side lists as many ACLs.
func (m *authMatrix) listed(i, want int) error {
	n, err := m.aclCount(i, nil)
	if err == nil && n != want {
		err = fmt.Errorf("%d ACLs, want %d", n, want)
	}
	return err
}

func (m *authMatrix) aclCount(i int, topic *string) (int, error) {
	req := allACLs()
	if topic != nil {
		req.ResourceType, req.ResourceName, req.ResourcePatternType = onTopic, topic, literalName
	}
	resp, err := adminCall[*kmsg.DescribeACLsResponse](m, i, 3, req)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, r := range resp.Resources {
		n += len(r.ACLs)
	}
	return n, kerr.ErrorForCode(resp.ErrorCode)
}

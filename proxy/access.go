package proxy

import (
	"context"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
)

// AccessRules is who may do what, and how fast, as far as it was set through
// Lockstep: what a client changes here holds on every broker.
type AccessRules interface {
	// CreateACLs adds ACLs and returns when this node's broker has them.
	CreateACLs(ctx context.Context, acls []ACL) error

	// DeleteACLs deletes the ACLs of the catalog that match, and those that
	// this node's broker has besides, from every broker. It returns which
	// they are when this node's broker has them no more.
	DeleteACLs(ctx context.Context, match func(ACL) bool, brokers []ACL) ([]ACL, error)

	// AlterQuotas makes changes, in order, and returns when this node's
	// broker has them.
	AlterQuotas(ctx context.Context, changes []QuotaChange) error
}

// ACL is one access control entry, in Kafka's codes.
type ACL struct {
	Resource   int8
	Name       string
	Pattern    int8
	Principal  string
	Host       string
	Operation  int8
	Permission int8
}

// Quota names one value: a key of an entity, which is a user, a client id or
// both.
type Quota struct {
	UserIs   int8 // 0: not part of the entity, 1: the default, 2: User
	User     string
	ClientIs int8 // as UserIs
	Client   string
	Key      string
}

// QuotaChange sets one quota, or removes it.
type QuotaChange struct {
	Quota Quota
	Gone  bool
	Value float64
}

// maxRuleBytes bounds the names of one ACL or quota: every node keeps them in
// memory.
const maxRuleBytes = 4096

// namesProblem says what is wrong with the names of an ACL or a quota. They
// travel as text.
func namesProblem(names ...string) *KafkaError {
	size := 0
	for _, name := range names {
		size += len(name)
		if !utf8.ValidString(name) {
			return problem(kerr.InvalidRequest, "a name is not UTF-8")
		}
	}
	if size > maxRuleBytes {
		return problem(kerr.InvalidRequest, "the names have %d bytes together, more than %d", size, maxRuleBytes)
	}
	return nil
}

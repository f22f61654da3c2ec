//go:build e2e

package e2e

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// principal is a client of the authorization matrix and what it has been given.
type principal struct {
	name   string // also the user and the password
	how    login
	grants []kmsg.CreateACLsRequestCreation
}

// login is how far a client has come with saying who it is.
type login int

const (
	loggedIn login = iota
	unknownClient
	halfLoggedIn // the mechanism is agreed on, and nothing follows
)

// Operations, resources and patterns by shorter names.
const (
	opAll, opRead, opWrite    = kmsg.ACLOperationAll, kmsg.ACLOperationRead, kmsg.ACLOperationWrite
	opCreate, opDelete        = kmsg.ACLOperationCreate, kmsg.ACLOperationDelete
	opAlter, opDescribe       = kmsg.ACLOperationAlter, kmsg.ACLOperationDescribe
	opAlterConfigs            = kmsg.ACLOperationAlterConfigs
	opDescribeConfigs         = kmsg.ACLOperationDescribeConfigs
	opIdempotentWrite         = kmsg.ACLOperationIdempotentWrite
	opClusterAction           = kmsg.ACLOperationClusterAction
	onTopic, onGroup          = kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup
	onCluster                 = kmsg.ACLResourceTypeCluster
	onTransaction             = kmsg.ACLResourceTypeTransactionalId
	theCluster                = "kafka-cluster"
	literalName, prefixName   = kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed
	allowACL, denyACL         = kmsg.ACLPermissionTypeAllow, kmsg.ACLPermissionTypeDeny
	ownName, otherName        = "own", "other"
	aclTarget, aclGone, aUser = "acl-target", "acl-gone", "target"
)

// resourceSuffixes make the names of all resources that the requests are about:
// the empty one is there throughout, ghosts never are, the others come and go.
var resourceSuffixes = []string{"", "-ghost", "-new", "-gone", "-grow", "-alter", "-auto", "-doomed"}

func grant(kind kmsg.ACLResourceType, name string, pattern kmsg.ACLResourcePatternType, op kmsg.ACLOperation, permission kmsg.ACLPermissionType) kmsg.CreateACLsRequestCreation {
	g := kmsg.NewCreateACLsRequestCreation()
	g.ResourceType, g.ResourceName, g.ResourcePatternType = kind, name, pattern
	g.Host, g.Operation, g.PermissionType = "*", op, permission
	return g
}

// onOwn gives a right to everything that is called own, name by name.
func onOwn(kind kmsg.ACLResourceType, ops ...kmsg.ACLOperation) (out []kmsg.CreateACLsRequestCreation) {
	for _, op := range ops {
		for _, suffix := range resourceSuffixes {
			out = append(out, grant(kind, ownName+suffix, literalName, op, allowACL))
		}
	}
	return out
}

func ofCluster(ops ...kmsg.ACLOperation) (out []kmsg.CreateACLsRequestCreation) {
	for _, op := range ops {
		out = append(out, grant(onCluster, theCluster, literalName, op, allowACL))
	}
	return out
}

// principals is who asks: one for each right that matters, some in combination,
// and those who have all or none.
func principals() []*principal {
	out := []*principal{
		{name: "admin"}, // a super user
		{name: "nothing"},
		{name: "unknown", how: unknownClient},
		{name: "half", how: halfLoggedIn},
	}
	one := func(name string, grants ...kmsg.CreateACLsRequestCreation) {
		for i := range grants {
			grants[i].Principal = "User:" + name
		}
		out = append(out, &principal{name: name, grants: grants})
	}
	named := func(prefix string, op kmsg.ACLOperation) string {
		return prefix + "_" + strings.ToLower(op.String())
	}
	for _, op := range []kmsg.ACLOperation{opRead, opWrite, opCreate, opDelete, opAlter, opDescribe, opAlterConfigs, opDescribeConfigs, opAll} {
		one(named("topic", op), onOwn(onTopic, op)...)
	}
	for _, op := range []kmsg.ACLOperation{opRead, opDescribe, opDelete, opAll} {
		one(named("group", op), onOwn(onGroup, op)...)
	}
	for _, op := range []kmsg.ACLOperation{opCreate, opAlter, opDescribe, opAlterConfigs, opDescribeConfigs, opIdempotentWrite, opClusterAction, opAll} {
		one(named("cluster", op), ofCluster(op)...)
	}
	for _, op := range []kmsg.ACLOperation{opWrite, opDescribe} {
		one(named("transaction", op), onOwn(onTransaction, op)...)
	}
	one("consumer", append(onOwn(onTopic, opRead), onOwn(onGroup, opRead)...)...)
	one("janitor", append(onOwn(onTopic, opRead), onOwn(onGroup, opDelete)...)...)
	one("creator", append(onOwn(onTopic, opDescribe), ofCluster(opCreate)...)...)
	one("prefixed", grant(onTopic, "own", prefixName, opAll, allowACL), grant(onGroup, "own", prefixName, opAll, allowACL))
	one("everything", grant(onTopic, "*", literalName, opAll, allowACL), grant(onGroup, "*", literalName, opAll, allowACL),
		grant(onCluster, theCluster, literalName, opAll, allowACL))
	one("denied", grant(onTopic, "*", literalName, opAll, allowACL), grant(onGroup, "*", literalName, opAll, allowACL),
		grant(onCluster, theCluster, literalName, opAll, allowACL),
		grant(onTopic, "other", prefixName, opAll, denyACL), grant(onGroup, "other", prefixName, opAll, denyACL),
		grant(onCluster, theCluster, literalName, opAll, denyACL))
	one("denied_write", grant(onTopic, "*", literalName, opAll, allowACL), grant(onTopic, "*", literalName, opWrite, denyACL))
	one("denied_describe", append(onOwn(onTopic, opAll), grant(onTopic, "own", prefixName, opDescribe, denyACL))...)
	return out
}

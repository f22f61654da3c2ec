//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// authCase is one request of the matrix.
type authCase struct {
	*exchange
	fresh bool                                         // on a connection of its own
	same  func(difference) bool                        // not a matter of rights
	mend  func(p *principal, out [2]diffOutcome) error // puts right what it may have changed
}

// authScript collects the requests of one API and version. Each is about what
// is called own, on which a principal may have a right, and what is called
// other, on which it has one only if it has it on everything.
type authScript struct {
	m            *authMatrix
	key, version int16
	list         []*authCase
}

func (s *authScript) add(name string, req kmsg.Request) *authCase {
	c := &authCase{exchange: &exchange{name: name, key: s.key, version: s.version, build: func(*side) kmsg.Request { return req }}}
	s.list = append(s.list, c)
	return c
}

// authScripts is the matrix: by API, what is asked.
var authScripts = map[int16]func(*authScript){
	int16(kmsg.Produce):                 authProduce,
	int16(kmsg.Fetch):                   authFetch,
	int16(kmsg.ListOffsets):             authListOffsets,
	int16(kmsg.Metadata):                authMetadata,
	int16(kmsg.OffsetCommit):            authOffsetCommit,
	int16(kmsg.OffsetFetch):             authOffsetFetch,
	int16(kmsg.FindCoordinator):         authFindCoordinator,
	int16(kmsg.JoinGroup):               authJoinGroup,
	int16(kmsg.Heartbeat):               authHeartbeat,
	int16(kmsg.LeaveGroup):              authLeaveGroup,
	int16(kmsg.SyncGroup):               authSyncGroup,
	int16(kmsg.DescribeGroups):          authDescribeGroups,
	int16(kmsg.ListGroups):              authListGroups,
	int16(kmsg.SASLHandshake):           authSASLHandshake,
	int16(kmsg.ApiVersions):             authAPIVersions,
	int16(kmsg.CreateTopics):            authCreateTopics,
	int16(kmsg.DeleteTopics):            authDeleteTopics,
	int16(kmsg.DeleteRecords):           authDeleteRecords,
	int16(kmsg.InitProducerID):          authInitProducerID,
	int16(kmsg.OffsetForLeaderEpoch):    authOffsetForLeaderEpoch,
	int16(kmsg.DescribeConfigs):         authDescribeConfigs,
	int16(kmsg.AlterConfigs):            authAlterConfigs,
	int16(kmsg.SASLAuthenticate):        authSASLAuthenticate,
	int16(kmsg.CreatePartitions):        authCreatePartitions,
	int16(kmsg.DeleteGroups):            authDeleteGroups,
	int16(kmsg.IncrementalAlterConfigs): authIncrementalAlterConfigs,
	int16(kmsg.OffsetDelete):            authOffsetDelete,
	int16(kmsg.DescribeCluster):         authDescribeCluster,
	int16(kmsg.DescribeACLs):            authDescribeACLs,
	int16(kmsg.CreateACLs):              authCreateACLs,
	int16(kmsg.DeleteACLs):              authDeleteACLs,
	int16(kmsg.AlterClientQuotas):       authAlterClientQuotas,
	int16(kmsg.DescribeClientQuotas):    authDescribeClientQuotas,
}

// fourTopics are two that are there and two that are not.
var fourTopics = []string{ownName, otherName, ownName + "-ghost", otherName + "-ghost"}

func authProduce(s *authScript) {
	good := fixedBatch("one").fixed(nil)
	of := func(topics ...string) *kmsg.ProduceRequest {
		req := produceRequest(topics[0], 0, good)
		for _, topic := range topics[1:] {
			req.Topics = append(req.Topics, produceRequest(topic, 0, good).Topics...)
		}
		return req
	}
	s.add("to four topics", of(fourTopics...))
	for _, topic := range fourTopics {
		ackless := of(topic)
		ackless.Acks = 0
		s.add("acks 0, to "+topic, ackless).ackless = true
	}
	odd := of(ownName, otherName)
	odd.Acks = 2
	s.add("acks 2", odd)
	b := batch{producerID: 7000, epoch: 0, sequence: -1, values: []string{"one"}}
	s.add("idempotent, without a sequence", produceRequest(otherName, 0, b.fixed(nil)))
	named := of(ownName + "-alter") // which nobody reads
	named.TransactionID = kmsg.StringPtr(ownName)
	s.add("a transaction's name", named)
}

func authFetch(s *authScript) {
	of := func(topics ...string) *kmsg.FetchRequest {
		req := fetchRequest(topics[0], 0, 0)
		req.Topics[0].Partitions[0].PartitionMaxBytes = 1
		for _, topic := range topics[1:] {
			req.Topics = append(req.Topics, fetchRequest(topic, 0, 0).Topics...)
		}
		return req
	}
	s.add("four topics", of(fourTopics...))
	s.add("one that may be allowed", of(ownName))
	s.add("one that is not", of(otherName))
	unknown := of(ownName, otherName)
	unknown.Topics[0].Partitions[0].Partition, unknown.Topics[1].Partitions[0].Partition = 99, 99
	s.add("unknown partitions", unknown)
	replica := of(ownName)
	replica.ReplicaID = 5
	s.add("as a replica", replica).fresh = true
}

func authListOffsets(s *authScript) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	for _, topic := range fourTopics {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Timestamp = -1
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
	}
	s.add("of four topics", req)
	replica := *req
	replica.ReplicaID, replica.Topics = 5, req.Topics[:2]
	s.add("as a replica", &replica)
}

func authOffsetForLeaderEpoch(s *authScript) {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	for _, topic := range fourTopics {
		p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		t := kmsg.NewOffsetForLeaderEpochRequestTopic()
		t.Topic, t.Partitions = topic, append(t.Partitions, p)
		req.Topics = append(req.Topics, t)
	}
	s.add("of four topics", req)
}

func authMetadata(s *authScript) {
	of := func(name string, create bool, topics ...string) *authCase {
		req := kmsg.NewPtrMetadataRequest()
		req.AllowAutoTopicCreation = create
		req.Topics = []kmsg.MetadataRequestTopic{}
		for _, topic := range topics {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = kmsg.StringPtr(topic)
			req.Topics = append(req.Topics, t)
		}
		if topics == nil {
			req.Topics = nil
		}
		req.IncludeTopicAuthorizedOperations, req.IncludeClusterAuthorizedOperations = s.version >= 8, s.version >= 8
		return s.add(name, req)
	}
	of("two topics", false, ownName, otherName)
	of("all topics", false)
	if s.version >= 4 { // before, there was no way not to create them
		of("four topics", false, fourTopics...)
	}
	created := []string{ownName + "-auto", otherName + "-auto"}
	c := of("topics that may be created", true, created...)
	// Kafka says that the topic is unknown or has no leader and makes it
	// afterwards; a node waits a moment, and shows it.
	c.same = func(d difference) bool {
		soon := []string{"NONE", "UNKNOWN_TOPIC_OR_PARTITION", "LEADER_NOT_AVAILABLE"}
		return strings.HasSuffix(d.field, "].ErrorCode") && slices.Contains(soon, d.kafka) && slices.Contains(soon, d.ours) ||
			strings.Contains(d.field, ".Partitions")
	}
	c.mend = func(_ *principal, out [2]diffOutcome) error { return s.m.autoCreated(created, out) }
}

func authDescribeCluster(s *authScript) {
	s.add("plain", kmsg.NewPtrDescribeClusterRequest())
	ops := kmsg.NewPtrDescribeClusterRequest()
	ops.IncludeClusterAuthorizedOperations = true
	s.add("with operations", ops)
	if s.version >= 1 {
		controllers := kmsg.NewPtrDescribeClusterRequest()
		controllers.EndpointType = 2
		s.add("endpoint type 2", controllers)
	}
}

func authInitProducerID(s *authScript) {
	init := func(name string, change func(*kmsg.InitProducerIDRequest)) {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionTimeoutMillis = 60_000
		change(req)
		s.add(name, req)
	}
	init("a new id", func(*kmsg.InitProducerIDRequest) {})
	init("transactional", func(q *kmsg.InitProducerIDRequest) { q.TransactionalID = kmsg.StringPtr(ownName) })
	init("transactional, without a name", func(q *kmsg.InitProducerIDRequest) { q.TransactionalID = kmsg.StringPtr("") })
	if s.version >= 3 {
		init("a known id", func(q *kmsg.InitProducerIDRequest) { q.ProducerID, q.ProducerEpoch = 0, 0 })
		init("an id without an epoch", func(q *kmsg.InitProducerIDRequest) { q.ProducerID = 5 })
	}
}

func authFindCoordinator(s *authScript) {
	find := func(name string, kind int8, keys ...string) {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorType, req.CoordinatorKey, req.CoordinatorKeys = kind, keys[0], keys
		s.add(name, req)
	}
	find("of a group", 0, ownName)
	find("of another group", 0, otherName)
	find("of the empty name", 0, "")
	if s.version >= 4 {
		find("of groups", 0, ownName, otherName, ownName+"-ghost", ownName)
	}
	if s.version >= 1 {
		find("of a transaction", 1, ownName)
		find("of an unknown type", 9, ownName)
	}
}

func authAPIVersions(s *authScript) { s.add("what is served", apiVersionsRequest(s.version)) }

// authSASLHandshake agrees on a mechanism again, on a connection of its own.
func authSASLHandshake(s *authScript) {
	for _, mechanism := range []string{"PLAIN", "NO-SUCH"} {
		req := kmsg.NewPtrSASLHandshakeRequest()
		req.Mechanism = mechanism
		s.add("mechanism "+mechanism, req).fresh = true
	}
}

// authSASLAuthenticate logs in (again), first with the right password.
func authSASLAuthenticate(s *authScript) {
	for _, password := range []string{"right", "wrong"} {
		c := s.add("password "+password, nil)
		c.fresh = true
		c.build = func(*side) kmsg.Request {
			name := s.m.as[0].user
			if password == "wrong" {
				return plainLogin(name, "wrong")
			}
			return plainLogin(name, name)
		}
		if s.m.as[0].how == loggedIn {
			// A handshake begins it.
			again := kmsg.NewPtrSASLHandshakeRequest()
			again.Mechanism = "PLAIN"
			x := &exchange{name: "handshake again", key: again.Key(), version: 1, build: func(*side) kmsg.Request { return again }}
			last := s.list[len(s.list)-1]
			s.list = append(s.list[:len(s.list)-1], &authCase{exchange: x, fresh: true}, last)
			last.fresh = false
		}
	}
}

func authJoinGroup(s *authScript) {
	for _, group := range []string{ownName, otherName} {
		s.add("an unknown member of "+group, joinRequest(group, "nobody"))
	}
}

func authSyncGroup(s *authScript) {
	for _, group := range []string{ownName, otherName} {
		s.add("an unknown member of "+group, syncRequest(group, "nobody", 1))
	}
}

func authHeartbeat(s *authScript) {
	for _, group := range []string{ownName, otherName} {
		req := kmsg.NewPtrHeartbeatRequest()
		req.Group, req.Generation, req.MemberID = group, 1, "nobody"
		s.add("an unknown member of "+group, req)
	}
}

func authLeaveGroup(s *authScript) {
	for _, group := range []string{ownName, otherName} {
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Group, req.MemberID = group, "nobody"
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = "nobody"
		req.Members = append(req.Members, member)
		s.add("an unknown member of "+group, req)
	}
}

func authOffsetCommit(s *authScript) {
	for _, group := range []string{ownName, otherName} {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Group, req.Generation, req.RetentionTimeMillis = group, -1, -1
		for _, topic := range fourTopics {
			req.Topics = append(req.Topics, commitOf(topic, 0, 1)...)
		}
		s.add("four topics of the group "+group, req)
	}
}

func authOffsetFetch(s *authScript) {
	fetch := func(name string, topics []string, groups ...string) {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = groups[0]
		for _, topic := range topics {
			t := kmsg.NewOffsetFetchRequestTopic()
			t.Topic, t.Partitions = topic, []int32{0}
			req.Topics = append(req.Topics, t)
		}
		for _, name := range groups {
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group = name
			for _, t := range req.Topics {
				gt := kmsg.NewOffsetFetchRequestGroupTopic()
				gt.Topic, gt.Partitions = t.Topic, t.Partitions
				g.Topics = append(g.Topics, gt)
			}
			req.Groups = append(req.Groups, g)
		}
		s.add(name, req)
	}
	for _, group := range []string{ownName, otherName, ownName + "-ghost"} {
		fetch("four topics of the group "+group, fourTopics, group)
		if s.version >= 2 {
			fetch("all topics of the group "+group, nil, group)
		}
	}
	if s.version >= 8 {
		fetch("four topics of two groups", fourTopics, ownName, otherName)
		fetch("all topics of two groups", nil, ownName, otherName)
	}
}

func authDescribeGroups(s *authScript) {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{ownName, otherName, ownName + "-ghost", otherName + "-ghost"}
	req.IncludeAuthorizedOperations = s.version >= 3
	s.add("four groups", req)
}

func authListGroups(s *authScript) {
	s.add("all", kmsg.NewPtrListGroupsRequest())
}

func authDeleteGroups(s *authScript) {
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.Groups = []string{ownName + "-doomed", otherName + "-doomed", ownName + "-ghost", otherName + "-ghost"}
	s.add("four groups", req).mend = func(*principal, [2]diffOutcome) error {
		return s.m.recommit(ownName+"-doomed", otherName+"-doomed")
	}
}

func authOffsetDelete(s *authScript) {
	for _, group := range []string{ownName, otherName, ownName + "-ghost"} {
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group = group
		for _, topic := range fourTopics {
			p := kmsg.NewOffsetDeleteRequestTopicPartition()
			t := kmsg.NewOffsetDeleteRequestTopic()
			t.Topic, t.Partitions = topic, append(t.Partitions, p)
			req.Topics = append(req.Topics, t)
		}
		s.add(fmt.Sprintf("four topics of the group %s", group), req).mend = func(*principal, [2]diffOutcome) error {
			return s.m.recommit(ownName, otherName)
		}
	}
}

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// exchange is one request of the recorded set. Its bytes are the same for both
// sides but for names that a side has given itself (member ids).
type exchange struct {
	name         string // what the table of differences calls it
	key, version int16
	build        func(s *side) kmsg.Request
	damage       func(raw []byte) []byte // after encoding
	after        func(ctx context.Context, s *side, resp kmsg.Response) error
	quiet        bool // prepares something; its answer is not compared
	ackless      bool // must not be answered
	eventually   bool // repeated for some seconds until nothing unlisted differs: what it shows arrives a moment after it was made
}

// bytes is the request as it goes over the wire.
func (x *exchange) bytes(s *side, correlation int32) ([]byte, kmsg.Request) {
	req := x.build(s)
	req.SetVersion(x.version)
	raw := kmsg.NewRequestFormatter(kmsg.FormatterClientID("e2e")).AppendRequest(nil, req, correlation)
	if x.damage != nil {
		raw = x.damage(raw)
	}
	return raw, req
}

// recorder collects the exchanges of one API and version.
type recorder struct {
	key, version int16
	list         []*exchange
}

// add records a request of the recorder's version.
func (r *recorder) add(name string, req kmsg.Request) *exchange {
	return r.addFor(name, func(*side) kmsg.Request { return req })
}

func (r *recorder) addFor(name string, build func(*side) kmsg.Request) *exchange {
	x := &exchange{name: name, key: r.key, version: r.version, build: build}
	r.list = append(r.list, x)
	return x
}

// prepare records a request of any API and version that only prepares.
func (r *recorder) prepare(version int16, build func(*side) kmsg.Request) *exchange {
	x := &exchange{name: "preparation", version: version, build: build, quiet: true}
	r.list = append(r.list, x)
	return x
}

// scripts is the recorded set: by API, what is asked in each version.
var scripts = map[int16]func(*recorder){
	int16(kmsg.Produce):                 produceScript,
	int16(kmsg.Fetch):                   fetchScript,
	int16(kmsg.ListOffsets):             listOffsetsScript,
	int16(kmsg.Metadata):                metadataScript,
	int16(kmsg.OffsetCommit):            offsetCommitScript,
	int16(kmsg.OffsetFetch):             offsetFetchScript,
	int16(kmsg.FindCoordinator):         findCoordinatorScript,
	int16(kmsg.JoinGroup):               joinGroupScript,
	int16(kmsg.Heartbeat):               heartbeatScript,
	int16(kmsg.LeaveGroup):              leaveGroupScript,
	int16(kmsg.SyncGroup):               syncGroupScript,
	int16(kmsg.DescribeGroups):          describeGroupsScript,
	int16(kmsg.ListGroups):              listGroupsScript,
	int16(kmsg.SASLHandshake):           saslHandshakeScript,
	int16(kmsg.ApiVersions):             apiVersionsScript,
	int16(kmsg.CreateTopics):            createTopicsScript,
	int16(kmsg.DeleteTopics):            deleteTopicsScript,
	int16(kmsg.DeleteRecords):           deleteRecordsScript,
	int16(kmsg.InitProducerID):          initProducerIDScript,
	int16(kmsg.OffsetForLeaderEpoch):    offsetForLeaderEpochScript,
	int16(kmsg.DescribeConfigs):         describeConfigsScript,
	int16(kmsg.AlterConfigs):            alterConfigsScript,
	int16(kmsg.SASLAuthenticate):        saslAuthenticateScript,
	int16(kmsg.CreatePartitions):        createPartitionsScript,
	int16(kmsg.DeleteGroups):            deleteGroupsScript,
	int16(kmsg.IncrementalAlterConfigs): incrementalAlterConfigsScript,
	int16(kmsg.OffsetDelete):            offsetDeleteScript,
	int16(kmsg.DescribeCluster):         describeClusterScript,
	int16(kmsg.DescribeACLs):            describeACLsScript,
	int16(kmsg.CreateACLs):              createACLsScript,
	int16(kmsg.DeleteACLs):              deleteACLsScript,
	int16(kmsg.AlterClientQuotas):       alterClientQuotasScript,
	int16(kmsg.DescribeClientQuotas):    describeClientQuotasScript,
}

// fixedTime is every record's, so that timestamps can be compared.
var fixedTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMilli()

func apiVersionsRequest(version int16) *kmsg.ApiVersionsRequest {
	req := kmsg.NewPtrApiVersionsRequest()
	req.SetVersion(version)
	req.ClientSoftwareName, req.ClientSoftwareVersion = "e2e", "1.0"
	return req
}

func apiVersionsScript(r *recorder) {
	r.add("what is served", apiVersionsRequest(r.version))
	if r.version >= 3 {
		for _, software := range []string{"", "-e2e!"} {
			req := apiVersionsRequest(r.version)
			req.ClientSoftwareName = software
			r.add(fmt.Sprintf("software name %q", software), req)
		}
	}
	r.add("cut off", apiVersionsRequest(r.version)).damage = cutOff
}

// cutOff takes the last two bytes of a request, and says so in its size.
func cutOff(raw []byte) []byte {
	raw = raw[:len(raw)-2]
	raw[3] -= 2 // no request here is as long as to borrow
	return raw
}

// unknownVersion is a version of an API that nobody knows.
func unknownVersion(r *recorder) {
	req := kmsg.RequestForKey(r.key)
	r.add("unknown version", req)
}

// unknownAPI is a key that nobody knows.
func unknownAPI(r *recorder) {
	x := r.add("unknown API", apiVersionsRequest(0))
	x.version = 0
	x.damage = func(raw []byte) []byte {
		raw[4], raw[5] = byte(r.key>>8), byte(r.key)
		return raw
	}
}

func saslHandshakeScript(r *recorder) {
	for _, mechanism := range []string{"PLAIN", "NO-SUCH"} {
		req := kmsg.NewPtrSASLHandshakeRequest()
		req.Mechanism = mechanism
		r.add("on a listener without SASL: "+mechanism, req)
	}
}

func saslAuthenticateScript(r *recorder) {
	req := kmsg.NewPtrSASLAuthenticateRequest()
	req.SASLAuthBytes = []byte("\x00user\x00password")
	r.add("on a listener without SASL", req)
}

func describeClusterScript(r *recorder) {
	r.add("plain", kmsg.NewPtrDescribeClusterRequest())
	ops := kmsg.NewPtrDescribeClusterRequest()
	ops.IncludeClusterAuthorizedOperations = true
	r.add("with operations", ops)
	if r.version < 1 {
		return
	}
	for _, kind := range []int8{2, 9} {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.EndpointType = kind
		r.add(fmt.Sprintf("endpoint type %d", kind), req)
	}
}

func findCoordinatorScript(r *recorder) {
	find := func(name string, kind int8, keys ...string) {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorType = kind
		if r.version < 4 {
			if len(keys) != 1 {
				return
			}
			req.CoordinatorKey = keys[0]
		}
		req.CoordinatorKeys = keys
		r.add(name, req)
	}
	find("of a group", 0, "first")
	find("of groups", 0, "first", "second", "third")
	find("of no group", 0)
	find("of the empty name", 0, "")
	if r.version >= 1 {
		find("of an unknown type", 9, "first")
		find("of a transaction", 1, "transaction")
	}
}

func initProducerIDScript(r *recorder) {
	init := func(name string, change func(*kmsg.InitProducerIDRequest)) {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionTimeoutMillis = 60_000
		change(req)
		r.add(name, req)
	}
	init("a new id", func(*kmsg.InitProducerIDRequest) {})
	init("transactional", func(q *kmsg.InitProducerIDRequest) { q.TransactionalID = kmsg.StringPtr("transaction") })
	init("transactional, without a name", func(q *kmsg.InitProducerIDRequest) { q.TransactionalID = kmsg.StringPtr("") })
	if r.version >= 3 {
		init("a known id", func(q *kmsg.InitProducerIDRequest) { q.ProducerID, q.ProducerEpoch = 0, 0 })
		init("an id without an epoch", func(q *kmsg.InitProducerIDRequest) { q.ProducerID = 5 })
	}
}

// newTopic is a topic with settings, as names and values.
func newTopic(name string, partitions int32, settings ...string) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, 1
	for i := 0; i < len(settings); i += 2 {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = settings[i], kmsg.StringPtr(settings[i+1])
		t.Configs = append(t.Configs, c)
	}
	return t
}

package proxy

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// AlterConfigs 0 to 2 and IncrementalAlterConfigs 0 to 1.
//
// Topics: the local broker is asked on the client's own connection to validate
// the request, so that authorization and errors are Kafka's own; then the
// change is made in the catalog, and answered when every group has it. Brokers:
// a resource that names this node goes to the local broker under the broker's
// own id. Deviations from Kafka: whether cleanup.policy names compact is
// decided when a topic is created, for the batches that are there cannot be
// asked for their keys any more; settings that we cannot keep are refused with
// INVALID_CONFIG (see topicSettings); the default of all brokers (a broker
// resource without a name) cannot be altered through one node.

// alterWait bounds the change of a topic's settings; the requests carry no
// timeout of their own.
const alterWait = 30 * time.Second

// altering is one request of either API.
type altering struct {
	r            *request
	validateOnly bool
	resources    []alteredResource
	// build makes a request to the broker of some of the resources, each
	// under the name that it has there.
	build func(which []int, name func(int) string, validateOnly bool) kmsg.Request
	// read returns the broker's answers, in its order.
	read func(kmsg.Response) []alteredResource
	// change makes the resource's change to a topic's settings.
	change func(i int, config map[string]string) (map[string]string, *KafkaError)
}

// alteredResource is a resource and what is wrong with its change, or nil.
type alteredResource struct {
	kind    kmsg.ConfigResourceType
	name    string
	problem *KafkaError
}

// run makes all changes.
func (a *altering) run() {
	a.checkNames()
	ctx, cancel := context.WithTimeout(a.r.c.ctx, alterWait)
	defer cancel()
	a.judgeRefused(ctx)
	if topics := a.open(func(k kmsg.ConfigResourceType) bool { return k == kmsg.ConfigResourceTypeTopic }); len(topics) > 0 {
		names := make([]string, 0, len(topics))
		for _, i := range topics {
			names = append(names, a.resources[i].name)
		}
		a.r.topicsHere(names)
		a.ask(ctx, topics, func(i int) string { return a.resources[i].name }, true)
		a.alterTopics(ctx, topics)
	}
	if brokers := a.open(isBrokerResource); len(brokers) > 0 {
		theirs, err := a.r.brokerNodeID()
		if err != nil {
			a.fail(brokers, err)
			return
		}
		a.ask(ctx, brokers, func(int) string { return theirs }, a.validateOnly)
	}
}

// open returns the resources of a kind that nothing is wrong with so far.
func (a *altering) open(is func(kmsg.ConfigResourceType) bool) []int {
	var out []int
	for i := range a.resources {
		if res := &a.resources[i]; res.problem == nil && is(res.kind) {
			out = append(out, i)
		}
	}
	return out
}

// checkNames refuses what is not for this node to alter.
func (a *altering) checkNames() {
	v := a.r.c.srv.cluster.View()
	count := make(map[alteredResource]int)
	for _, res := range a.resources {
		count[res]++
	}
	problems := make([]*KafkaError, len(a.resources))
	for i, res := range a.resources {
		switch {
		case count[res] > 1:
			problems[i] = alteredTwice
		case isBrokerResource(res.kind):
			problems[i] = brokerResourceProblem(v, res.name)
		case res.kind != kmsg.ConfigResourceTypeTopic:
			problems[i] = problem(kerr.InvalidRequest, "only the settings of topics and brokers can be altered here")
		}
	}
	for i := range a.resources {
		a.resources[i].problem = problems[i]
	}
}

// judgeRefused has those told so who may not alter what is refused to everybody
// here. The broker says who they are, and changes nothing.
func (a *altering) judgeRefused(ctx context.Context) {
	var which []int
	refused := make(map[int]*KafkaError)
	for i, res := range a.resources {
		kind := res.kind == kmsg.ConfigResourceTypeGroupConfig || res.kind == kmsg.ConfigResourceTypeClientMetrics ||
			res.kind == kmsg.ConfigResourceTypeBroker && res.name == ""
		if res.problem != nil && res.problem != alteredTwice && kind {
			which = append(which, i)
			refused[i] = res.problem
		}
	}
	if len(which) == 0 || !a.r.judged {
		return
	}
	a.ask(ctx, which, func(i int) string { return a.resources[i].name }, true)
	for _, i := range which {
		if p := a.resources[i].problem; p == nil || !authorizationCodes[p.Code] {
			a.resources[i].problem = refused[i]
		}
	}
}

// alteredTwice is what is wrong with a resource that a request names more than once.
var alteredTwice = problem(kerr.InvalidRequest, "Each resource must appear at most once.")

func brokerResourceProblem(v *View, name string) *KafkaError {
	switch {
	case isSelf(v, name):
		return nil
	case name == "":
		return problem(kerr.InvalidRequest, "the default of all brokers cannot be altered through one node: alter each broker by its id")
	}
	return problem(kerr.InvalidRequest, "Unexpected broker id, expected %d, but received %s", v.Self, name)
}

// ask has the broker judge resources, on the client's own connection.
func (a *altering) ask(ctx context.Context, which []int, name func(int) string, validateOnly bool) {
	req := a.build(which, name, validateOnly)
	req.SetVersion(a.r.h.Version)
	resp, err := query[kmsg.Response](ctx, a.r, req)
	if err != nil {
		a.fail(which, err)
		return
	}
	answers := a.read(resp)
	for _, i := range which {
		res := &a.resources[i]
		n := slices.IndexFunc(answers, func(got alteredResource) bool { return got.kind == res.kind && got.name == name(i) })
		if n < 0 {
			res.problem = unjudged
		} else {
			res.problem = answers[n].problem
		}
	}
}

// unjudged is what a client is told when the broker, who knows what the client
// may do, cannot be asked: another node's may be.
var unjudged = &KafkaError{kerr.NotController.Code, "this node's broker cannot be asked whether this is allowed; try another node"}

func (a *altering) fail(which []int, err error) {
	a.r.noteUpstream(err)
	for _, i := range which {
		a.resources[i].problem = unjudged
	}
}

// alterTopics makes the changes that the broker has nothing against.
func (a *altering) alterTopics(ctx context.Context, which []int) {
	v := a.r.c.srv.cluster.View()
	a.r.eachTopic(len(which), func(n int) {
		i := which[n]
		res := &a.resources[i]
		if res.problem == nil && v.Topics[res.name] == nil {
			code, msg := missingTopicAdminCode(v)
			res.problem = &KafkaError{code, msg}
		}
		if res.problem != nil {
			return
		}
		change := func(config map[string]string) (map[string]string, error) {
			compacted := namesCompact(config)
			next, p := a.change(i, config)
			if p == nil {
				p = newSettingsProblem(compacted, next)
			}
			if p != nil {
				return nil, p
			}
			return next, nil
		}
		var err error
		if a.validateOnly {
			config := make(map[string]string)
			maps.Copy(config, v.Topics[res.name].Config)
			_, err = change(config)
		} else {
			err = a.r.c.srv.cluster.AlterTopicConfig(ctx, res.name, change)
		}
		if err != nil {
			code, msg := errorCode(err)
			res.problem = &KafkaError{code, msg}
		}
	})
}

// newSettingsProblem says what is wrong with settings that a topic, which is
// compacted or not, is to have in place of others.
func newSettingsProblem(compacted bool, next map[string]string) *KafkaError {
	for name, value := range next {
		if msg := settingProblem(name, value); msg != "" {
			return problem(kerr.InvalidConfig, "%s", msg)
		}
	}
	if compacted != namesCompact(next) {
		return problem(kerr.InvalidConfig, "whether cleanup.policy names compact is decided when a topic is created: create another topic")
	}
	return settingsConflict(next)
}

func namesCompact(config map[string]string) bool {
	return strings.Contains(config["cleanup.policy"], "compact")
}

func handleIncrementalAlterConfigs(r *request) error {
	req, err := parse[*kmsg.IncrementalAlterConfigsRequest](r)
	if err != nil {
		return err
	}
	a := &altering{r: r, validateOnly: req.ValidateOnly}
	for _, res := range req.Resources {
		a.resources = append(a.resources, alteredResource{kind: res.ResourceType, name: res.ResourceName})
	}
	a.build = func(which []int, name func(int) string, validateOnly bool) kmsg.Request {
		up := kmsg.NewPtrIncrementalAlterConfigsRequest()
		up.ValidateOnly = validateOnly
		for _, i := range which {
			res := req.Resources[i]
			res.ResourceName = name(i)
			up.Resources = append(up.Resources, res)
		}
		return up
	}
	a.read = func(resp kmsg.Response) (out []alteredResource) {
		if resp, ok := resp.(*kmsg.IncrementalAlterConfigsResponse); ok {
			for _, res := range resp.Resources {
				out = append(out, alteredResource{res.ResourceType, res.ResourceName, answeredProblem(res.ErrorCode, res.ErrorMessage)})
			}
		}
		return out
	}
	a.change = func(i int, config map[string]string) (map[string]string, *KafkaError) {
		for _, c := range req.Resources[i].Configs {
			if p := changeSetting(config, c.Name, c.Op, c.Value); p != nil {
				return nil, p
			}
		}
		return config, nil
	}
	a.run()
	resp := kmsg.NewPtrIncrementalAlterConfigsResponse()
	for _, res := range a.resources {
		out := kmsg.NewIncrementalAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = res.kind, res.name
		out.ErrorCode, out.ErrorMessage = res.problem.wire()
		resp.Resources = append(resp.Resources, out)
	}
	r.reply(resp)
	return nil
}

func handleAlterConfigs(r *request) error {
	req, err := parse[*kmsg.AlterConfigsRequest](r)
	if err != nil {
		return err
	}
	a := &altering{r: r, validateOnly: req.ValidateOnly}
	for _, res := range req.Resources {
		a.resources = append(a.resources, alteredResource{kind: res.ResourceType, name: res.ResourceName})
	}
	a.build = func(which []int, name func(int) string, validateOnly bool) kmsg.Request {
		up := kmsg.NewPtrAlterConfigsRequest()
		up.ValidateOnly = validateOnly
		for _, i := range which {
			res := req.Resources[i]
			res.ResourceName = name(i)
			up.Resources = append(up.Resources, res)
		}
		return up
	}
	a.read = func(resp kmsg.Response) (out []alteredResource) {
		if resp, ok := resp.(*kmsg.AlterConfigsResponse); ok {
			for _, res := range resp.Resources {
				out = append(out, alteredResource{res.ResourceType, res.ResourceName, answeredProblem(res.ErrorCode, res.ErrorMessage)})
			}
		}
		return out
	}
	a.change = func(i int, _ map[string]string) (map[string]string, *KafkaError) {
		config := make(map[string]string)
		for _, c := range req.Resources[i].Configs {
			if p := changeSetting(config, c.Name, kmsg.IncrementalAlterConfigOpSet, c.Value); p != nil {
				return nil, p
			}
		}
		return config, nil
	}
	a.run()
	resp := kmsg.NewPtrAlterConfigsResponse()
	for _, res := range a.resources {
		out := kmsg.NewAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = res.kind, res.name
		out.ErrorCode, out.ErrorMessage = res.problem.wire()
		resp.Resources = append(resp.Resources, out)
	}
	r.reply(resp)
	return nil
}

// wire is the error as an answer carries it; a nil one is none.
func (e *KafkaError) wire() (int16, *string) {
	if e == nil {
		return 0, nil
	}
	return e.Code, kmsg.StringPtr(e.Message)
}

// answeredProblem is the inverse of wire.
func answeredProblem(code int16, msg *string) *KafkaError {
	var typed *kerr.Error
	switch {
	case code == 0:
		return nil
	case msg != nil:
		return &KafkaError{code, *msg}
	case errors.As(kerr.ErrorForCode(code), &typed):
		return &KafkaError{code, typed.Description}
	}
	return &KafkaError{Code: code}
}

// changeSetting makes one operation of IncrementalAlterConfigs (KIP-339).
func changeSetting(config map[string]string, name string, op kmsg.IncrementalAlterConfigOp, value *string) *KafkaError {
	if op == kmsg.IncrementalAlterConfigOpDelete {
		delete(config, name)
		return nil
	}
	if value == nil {
		return problem(kerr.InvalidRequest, "Null value not supported for : %s", name)
	}
	if op == kmsg.IncrementalAlterConfigOpSet {
		config[name] = *value
		return nil
	}
	if !listSettings[name] {
		return problem(kerr.InvalidConfig, "Config value append is not allowed for config key: %s", name)
	}
	have, ok := config[name]
	if !ok && name == "cleanup.policy" {
		have = "delete"
	}
	items := splitList(have)
	switch op {
	case kmsg.IncrementalAlterConfigOpAppend:
		for _, item := range splitList(*value) {
			if !slices.Contains(items, item) {
				items = append(items, item)
			}
		}
	case kmsg.IncrementalAlterConfigOpSubtract:
		gone := splitList(*value)
		items = slices.DeleteFunc(items, func(item string) bool { return slices.Contains(gone, item) })
	default:
		return problem(kerr.InvalidRequest, "Unknown operation type %d", op)
	}
	config[name] = strings.Join(items, ",")
	return nil
}

func splitList(value string) []string {
	var out []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

package kafkawire

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// responseShapes are the broker's answers that are decoded, in the versions in
// which they are asked for; the notation is that of requestShapes. kmsg counts
// through as many tagged fields as a message claims to have, 2^32 of them in
// five bytes, whether or not there is anything left to read.
var responseShapes = map[kmsg.Key]string{
	kmsg.Fetch:                   "4 2@7 4@7 [s [4 2 8 8 8@5 [8 8] 4@11 b {0 <4 8>} {1 <4 4>} {2 <8 4>}]] {0 [4 s 4 s]}",
	kmsg.ListOffsets:             "4@2 [s [4 2 8 8 4@4]]",
	kmsg.Metadata:                "4@3 [4 s 4 s@1] s@2 4@1 [2 s 1@1 [2 4 4 4@7 (4) (4) (4)@5] 4@8] 4@8",
	kmsg.OffsetCommit:            "4@3 [s [4 2]]",
	kmsg.OffsetFetch:             "4@3 [s [4 8 4@5 s 2]]@0-7 2@2-7 [s [s [4 8 4 s 2]] 2]@8",
	kmsg.FindCoordinator:         "4@1 2@0-3 s@1-3 4@0-3 s@0-3 4@0-3 [s 4 s 4 2 s]@4",
	kmsg.DescribeGroups:          "4@1 [2 s s s s [s s@4 s s b b] 4@3]",
	kmsg.ListGroups:              "4@1 2 [s s s@4 s@5]",
	kmsg.CreateTopics:            "4 [s 2 s 4@5 2@5 [s s 1 1 1]@5 {0 2}]",
	kmsg.InitProducerID:          "4 2 8 2",
	kmsg.OffsetForLeaderEpoch:    "4@2 [s [2 4 4@1 8]]",
	kmsg.DescribeConfigs:         "4 [2 s 1 s [s s 1 1 1 [s s 1] 1@3 s@3]]",
	kmsg.AlterConfigs:            "4 [2 s 1 s]",
	kmsg.DeleteGroups:            "4 [s 2]",
	kmsg.IncrementalAlterConfigs: "4 [2 s 1 s]",
	kmsg.OffsetDelete:            "2 4 [s [4 2]]",
	kmsg.SASLAuthenticate:        "2 s b 8@1",
	kmsg.DescribeACLs:            "4 2 s [1 s 1@1 [s s 1 1]]",
	kmsg.DeleteACLs:              "4 [2 s [2 s 1 s 1@1 s s 1 1]]",
	kmsg.AlterClientQuotas:       "4 [2 s [s s]]",
}

// compiledResponses is never written after init.
var compiledResponses = compileShapes(responseShapes)

// ReadResponse decodes the body of a broker's answer into resp, whose version
// is set. It returns ErrMalformed. An answer that resp is not known to stand
// for, and one of another version than those that are served, is ErrUnknownAPI.
func ReadResponse(resp kmsg.Response, body []byte) error {
	key, version := resp.Key(), resp.GetVersion()
	shape, ok := compiledResponses[key]
	api, served := Lookup(key)
	if !ok || !served || !api.Accepts(version) {
		return fmt.Errorf("read answer of %s version %d: %w", kmsg.NameForKey(key), version, ErrUnknownAPI)
	}
	w := shapeWalk{reader: reader{buf: body}, version: version, flexible: resp.IsFlexible()}
	w.fields(shape, true)
	if w.err != nil {
		return fmt.Errorf("read answer of %s version %d: %w", kmsg.NameForKey(key), version, w.err)
	}
	if err := resp.ReadFrom(body); err != nil {
		return fmt.Errorf("read answer of %s version %d: %w: %w", kmsg.NameForKey(key), version, ErrMalformed, err)
	}
	return nil
}

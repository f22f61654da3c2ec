package proxy

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/kafkawire"
)

// BenchmarkMetadataAll makes the answer to who asks for a thousand topics of ten
// partitions.
func BenchmarkMetadataAll(b *testing.B) {
	v := &View{Topics: map[string]*Topic{}, Nodes: []Node{{ID: 1, Alive: true}, {ID: 2, Alive: true}, {ID: 3, Alive: true}}}
	nodes := map[int32]Endpoint{1: {}, 2: {}, 3: {}}
	ids := []int32{1, 2, 3}
	var names []string
	for i := range 1000 {
		t := &Topic{Name: fmt.Sprintf("topic-%04d", i), Partitions: make([]Partition, 10)}
		for p := range t.Partitions {
			t.Partitions[p] = Partition{Leader: int32(p%3 + 1), Replicas: ids, ISR: ids}
		}
		v.Topics[t.Name], names = t, append(names, t.Name)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp := kmsg.NewPtrMetadataResponse()
		resp.Topics = make([]kmsg.MetadataResponseTopic, 0, len(names))
		for _, name := range names {
			resp.Topics = append(resp.Topics, metadataTopic(v, nodes, name, nil))
		}
		_ = kafkawire.AppendResponse(make([]byte, 0, metadataSize(resp)), int16(kmsg.Metadata), 9, 1, resp)
	}
}

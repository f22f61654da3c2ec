package kafkawire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// plainFetchResponse is the answer with records of one partition.
func plainFetchResponse(version int16, topic string, records []byte) *kmsg.FetchResponse {
	resp := kmsg.NewPtrFetchResponse()
	resp.Version, resp.ThrottleMillis = version, 3
	p := kmsg.NewFetchResponseTopicPartition()
	p.Partition, p.HighWatermark, p.LastStableOffset, p.LogStartOffset = 7, 90, 90, 1
	p.PreferredReadReplica, p.RecordBatches = 2, records
	t := kmsg.NewFetchResponseTopic()
	t.Topic, t.Partitions = topic, []kmsg.FetchResponseTopicPartition{p}
	resp.Topics = []kmsg.FetchResponseTopic{t}
	return resp
}

func TestPatchFetchHead(t *testing.T) {
	records := bytes.Repeat([]byte("records"), 3000)
	for version := int16(fetchMin); version <= fetchMax; version++ {
		for _, topic := range []string{"t", strings.Repeat("n", 249)} {
			resp := plainFetchResponse(version, topic, records)
			body := resp.AppendTo(nil)
			if !PatchFetchHead(version, len(body), body[:400]) {
				t.Fatalf("v%d: a plain answer is refused", version)
			}
			resp.Topics[0].Partitions[0].PreferredReadReplica = -1
			if !bytes.Equal(body, resp.AppendTo(nil)) {
				t.Errorf("v%d: more was changed than the preferred replica", version)
			}
		}
		for name, spoil := range map[string]func(*kmsg.FetchResponse){
			"error of the whole": func(r *kmsg.FetchResponse) { r.ErrorCode = 70 },
			"session":            func(r *kmsg.FetchResponse) { r.SessionID = 9 },
			"no topic":           func(r *kmsg.FetchResponse) { r.Topics = nil },
			"two topics":         func(r *kmsg.FetchResponse) { r.Topics = append(r.Topics, r.Topics[0]) },
			"no partition":       func(r *kmsg.FetchResponse) { r.Topics[0].Partitions = nil },
			"two partitions":     func(r *kmsg.FetchResponse) { p := &r.Topics[0].Partitions; *p = append(*p, (*p)[0]) },
			"error":              func(r *kmsg.FetchResponse) { r.Topics[0].Partitions[0].ErrorCode = 1 },
			"no records":         func(r *kmsg.FetchResponse) { r.Topics[0].Partitions[0].RecordBatches = nil },
			"aborted transaction": func(r *kmsg.FetchResponse) {
				p := &r.Topics[0].Partitions[0]
				p.AbortedTransactions = make([]kmsg.FetchResponseTopicPartitionAbortedTransaction, 1)
			},
			"current leader": func(r *kmsg.FetchResponse) { r.Topics[0].Partitions[0].CurrentLeader.LeaderID = 2 },
		} {
			resp := plainFetchResponse(version, "t", records)
			spoil(resp)
			if there := version >= 12 || name != "current leader"; !there || version < 7 && (name == "session" || name == "error of the whole") {
				continue
			}
			body := resp.AppendTo(nil)
			before := bytes.Clone(body)
			if PatchFetchHead(version, len(body), body[:min(len(body), 400)]) || !bytes.Equal(body, before) {
				t.Errorf("v%d: %s: taken, or changed", version, name)
			}
		}
		body := plainFetchResponse(version, "t", records).AppendTo(nil)
		for n := range 40 { // what the head needs is not all there
			if PatchFetchHead(version, len(body), bytes.Clone(body[:n])) {
				t.Errorf("v%d: taken by its first %d bytes", version, n)
			}
		}
		if PatchFetchHead(version, len(body)+1, body[:400]) || PatchFetchHead(version, len(body)-1, body[:400]) {
			t.Errorf("v%d: taken with another length", version)
		}
	}
}

// FuzzFetchHead: what is taken by its head is, if it is an answer at all, what
// the walk over the whole finds nothing in, and is patched the same.
func FuzzFetchHead(f *testing.F) {
	for v := int16(fetchMin); v <= fetchMax; v++ {
		f.Add(v, 100, plainFetchResponse(v, "topic", make([]byte, 300)).AppendTo(nil))
		f.Add(v, 100, plainFetchResponse(v, "", nil).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, version int16, cut int, body []byte) {
		cut = min(max(cut, 0), len(body))
		walked, before := bytes.Clone(body), bytes.Clone(body)
		if !PatchFetchHead(version, len(body), body[:cut]) {
			if !bytes.Equal(body, before) {
				t.Fatal("refused, and changed")
			}
			return
		}
		parts := 0
		info, err := WalkFetchResponse(version, walked, func(p *FetchResponsePartition) error {
			parts++
			if p.ErrorCode() != 0 || p.Records == nil {
				t.Errorf("code %d, %d bytes of records", p.ErrorCode(), len(p.Records))
			}
			p.SetPreferredReadReplica(-1)
			return nil
		})
		if err != nil {
			if version < 12 { // else the tags behind the records are none
				t.Fatal(err)
			}
			return
		}
		if parts != 1 || info.Tagged || info.ErrorCode != 0 || info.SessionID != 0 || !bytes.Equal(body, walked) {
			t.Errorf("%d partitions, %+v", parts, info)
		}
	})
}

package admin

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"lockstep/fsm"
	"lockstep/kafkawire"
)

// PartitionInfo is one partition as this node's state machine has it.
type PartitionInfo struct {
	Topic     string `json:"topic"`
	TopicID   uint64 `json:"topic_id"`
	Partition int32  `json:"partition"`
	Group     uint32 `json:"group"`
	End       int64  `json:"end"`  // next offset
	Hash      string `json:"hash"` // chain over everything below End
	// Compacted topics lose records on each broker by itself.
	Compacted bool `json:"compacted,omitempty"`
}

// BatchDigest is one batch of the broker's log. Base offset, length, CRC and
// the body's checksum are compared; the leader epoch is the broker's own.
type BatchDigest struct {
	Base   int64  `json:"base"`
	Last   int64  `json:"last"`  // offset of the last record
	Count  int32  `json:"count"` // records, fewer than offsets after compaction
	Length int    `json:"length"`
	CRC    uint32 `json:"crc"`
	OK     bool   `json:"ok"`   // the body has that CRC
	Hash   string `json:"hash"` // chain up to and with this batch, if the log begins at 0
	// Horizon says that the log cleaner has stamped the batch with the time
	// its tombstones go, which is each broker's own (KIP-534).
	Horizon bool `json:"horizon,omitempty"`
	// Records are the offsets and hashes of records, where asked for; see
	// EachRecord. More: the next line goes on with this batch's.
	Records string `json:"records,omitempty"`
	More    bool   `json:"more,omitempty"`
}

// attrDeleteHorizon is Kafka's DefaultRecordBatch.DELETE_HORIZON_FLAG_MASK.
const attrDeleteHorizon = 1 << 6

// LogDigest is the first line of an answer to /digest.
type LogDigest struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// partitions lists what this node's state machines hold.
func (s *Server) partitions(w http.ResponseWriter, _ *http.Request) {
	out := []PartitionInfo{}
	compacted := make(map[uint64]bool)
	s.node.Catalog().Read(func(st *fsm.Group) {
		for id, t := range st.Catalog.Topics {
			compacted[id] = strings.Contains(t.Config["cleanup.policy"], "compact")
		}
	})
	for _, g := range s.node.Groups() {
		g.Read(func(st *fsm.Group) {
			for tp, p := range st.Partitions {
				out = append(out, PartitionInfo{Topic: p.Name, TopicID: tp.Topic, Partition: tp.Partition,
					Group: st.ID, End: p.NextOffset, Hash: hashText(p.Hash), Compacted: compacted[tp.Topic]})
			}
		})
	}
	slices.SortFunc(out, func(a, b PartitionInfo) int {
		return cmp.Or(cmp.Compare(a.TopicID, b.TopicID), cmp.Compare(a.Partition, b.Partition))
	})
	writeJSON(w, http.StatusOK, out)
}

func hashText(h uint64) string { return fmt.Sprintf("%016x", h) }

// digest streams one line per batch of a partition of the local broker, or,
// with ends=true, only says where its log starts and ends. With records=true
// each batch comes with its records.
func (s *Server) digest(w http.ResponseWriter, r *http.Request) {
	topic := r.URL.Query().Get("topic")
	partition, err := strconv.ParseInt(r.URL.Query().Get("partition"), 10, 32)
	if err != nil || topic == "" {
		writeError(w, http.StatusBadRequest, fmt.Errorf("digest needs ?topic= and ?partition="))
		return
	}
	ctx := r.Context()
	start, end, err := s.broker.LogEnd(ctx, topic, int32(partition))
	if err != nil {
		writeError(w, http.StatusBadGateway, fmt.Errorf("read the log end offset: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	buf := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewEncoder(buf)
	if err := lines.Encode(LogDigest{Start: start, End: end}); err != nil {
		return // the client is gone
	}
	var chain uint64
	records := r.URL.Query().Get("records") == "true"
	asCommitted := s.asCommitted(topic, int32(partition))
	if start < end && r.URL.Query().Get("ends") != "true" {
		err = s.broker.Batches(ctx, topic, int32(partition), start, end, func(raw []byte) error {
			b, rest, err := kafkawire.ParseBatch(asCommitted(raw))
			if err != nil {
				return fmt.Errorf("unreadable batch: %w", err)
			}
			if len(rest) > 0 {
				return fmt.Errorf("unreadable batch: %d bytes follow the one at %d", len(rest), b.BaseOffset())
			}
			chain = fsm.ChainHash(chain, b.BaseOffset(), len(b), b.CRC())
			d := BatchDigest{Base: b.BaseOffset(), Last: b.BaseOffset() + int64(b.LastOffsetDelta()), Count: b.Count(),
				Length: len(b), CRC: b.CRC(), OK: b.ChecksumOK(), Horizon: b.Attributes()&attrDeleteHorizon != 0}
			if start == 0 {
				d.Hash = hashText(chain)
			}
			if records {
				return survivors(b, d, func(d BatchDigest) error { return lines.Encode(d) })
			}
			return lines.Encode(d)
		})
	}
	if err != nil {
		_ = lines.Encode(map[string]string{"error": err.Error()}) // told in the stream: the header is out
	}
	_ = buf.Flush()
}

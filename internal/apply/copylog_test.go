package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"lockstep/fsm"
	"lockstep/internal/broker"
	"lockstep/kafkawire"
)

// partLog is one partition on one broker, which takes batches as Kafka does.
type partLog struct {
	mu      sync.Mutex
	batches []kafkawire.Batch
	start   int64
	end     int64
	pid     int64 // 0: none wrote yet
	epoch   int16
	seq     int32 // of the next batch
	deletes []int64
	policy  bool // DeleteRecords is refused
	reads   int
}

// append checks what Kafka checks (ProducerAppendInfo, LogValidator).
func (p *partLog) append(raw []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, rest, err := kafkawire.ParseBatch(slices.Clone(raw))
	switch {
	case err != nil || len(rest) > 0:
		return errors.Join(errors.New("not one batch"), err)
	case b.BaseOffset() != 0 || !b.ChecksumOK() || b.Count() < 1 || b.LastOffsetDelta() != b.Count()-1 || b.Attributes()&0x78 != 0:
		return errors.New("a batch that no broker takes from a producer")
	case p.pid != 0 && b.ProducerID() == p.pid && (b.ProducerEpoch() < p.epoch ||
		b.ProducerEpoch() == p.epoch && b.BaseSequence() != p.seq || b.ProducerEpoch() > p.epoch && b.BaseSequence() != 0):
		return fmt.Errorf("epoch %d sequence %d at offset %d behind epoch %d sequence %d", b.ProducerEpoch(), b.BaseSequence(), p.end, p.epoch, p.seq)
	}
	n := int32(0)
	if err := kafkawire.VisitRecords(b, 1<<30, func(r kafkawire.Record) bool { n++; return r.OffsetDelta == n-1 }); err != nil || n != b.Count() {
		return errors.Join(fmt.Errorf("%d of %d records in their place", n, b.Count()), err)
	}
	binary.BigEndian.PutUint64(b, uint64(p.end))
	p.pid, p.epoch, p.seq = b.ProducerID(), b.ProducerEpoch(), identityOf(b).after(int64(n)).seq
	p.batches = append(p.batches, b)
	p.end += int64(n)
	return nil
}

func (p *partLog) Range(_ context.Context, _ string, _ int32, from, to int64, maxBytes int32) ([]byte, int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	if from < p.start || from > p.end {
		return nil, p.start, broker.ErrNoBatch
	}
	var out []byte
	for _, b := range p.batches {
		if lastOffset(b) < from || b.BaseOffset() >= to {
			continue
		}
		if len(out) > 0 && len(out)+len(b) > int(maxBytes) {
			break
		}
		out = append(out, b...)
	}
	return out, p.start, nil
}

func (p *partLog) LogEnd(context.Context, string, int32) (start, end int64, err error) {
	return p.start, p.end, nil
}

func (p *partLog) DeleteRecords(_ context.Context, _ string, _ int32, offset int64) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deletes = append(p.deletes, offset)
	if p.policy {
		return 0, broker.ErrPolicy
	}
	p.start = max(p.start, offset)
	p.batches = slices.DeleteFunc(p.batches, func(b kafkawire.Batch) bool { return lastOffset(b) < p.start })
	return p.start, nil
}

func (p *partLog) last() kafkawire.Batch {
	if len(p.batches) == 0 {
		return nil
	}
	return p.batches[len(p.batches)-1]
}

// copyOf is the same log on another broker, up to an offset.
func (p *partLog) copyOf(end int64) *partLog {
	c := &partLog{start: p.start}
	for _, b := range p.batches {
		if lastOffset(b) < end {
			c.batches = append(c.batches, b)
			c.end, c.pid, c.epoch, c.seq = lastOffset(b)+1, b.ProducerID(), b.ProducerEpoch(), identityOf(b).after(int64(b.LastOffsetDelta())+1).seq
		}
	}
	return c
}

// become makes p the same log as another, up to an offset.
func (p *partLog) become(o *partLog, end int64) {
	c := o.copyOf(end)
	p.batches, p.start, p.end, p.pid, p.epoch, p.seq = c.batches, c.start, c.end, c.pid, c.epoch, c.seq
}

func (p *partLog) empty() { p.become(&partLog{}, 0) }

// compact takes records out as Kafka's cleaner does: what is left of a batch
// keeps its offsets and identity; some batches without records stay, empty.
func (p *partLog) compact(t *testing.T, rng *rand.Rand, keep func(offset int64) bool) {
	t.Helper()
	var out []kafkawire.Batch
	for _, b := range p.batches {
		var left []kafkawire.Record
		var deltas []int32
		if err := kafkawire.VisitRecords(b, 1<<30, func(r kafkawire.Record) bool {
			if keep(b.BaseOffset() + int64(r.OffsetDelta)) {
				left, deltas = append(left, r), append(deltas, r.OffsetDelta)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if len(left) == int(b.Count()) {
			out = append(out, b)
			continue
		}
		if len(left) == 0 {
			if rng.IntN(2) == 0 {
				out = append(out, rewritten(b, nil, 0))
			}
			continue
		}
		base := left[0].TimestampMs
		attributes := int16(0)
		if rng.IntN(2) == 0 {
			base, attributes = 1_900_000_000_000, deleteHorizon
		}
		var body []byte
		for i, r := range left {
			record := binary.AppendVarint([]byte{0}, r.TimestampMs-base)
			record = binary.AppendVarint(record, int64(deltas[i]))
			record = append(record, r.Payload...)
			body = append(binary.AppendVarint(body, int64(len(record))), record...)
		}
		made := rewritten(b, body, int32(len(left)))
		binary.BigEndian.PutUint64(made[27:], uint64(base))
		binary.BigEndian.PutUint16(made[21:], uint16(attributes))
		out = append(out, sealed(made))
	}
	p.batches = out
}

// rewritten is b with other records, not compressed.
func rewritten(b kafkawire.Batch, body []byte, count int32) kafkawire.Batch {
	made := append(slices.Clone([]byte(b[:kafkawire.BatchHeaderLen])), body...)
	binary.BigEndian.PutUint32(made[8:], uint32(len(made)-12))
	binary.BigEndian.PutUint16(made[21:], 0)
	binary.BigEndian.PutUint32(made[57:], uint32(count))
	return sealed(made)
}

// records lists what consumers see of a log: offset, timestamp and payload.
func (p *partLog) records(t *testing.T) map[int64]string {
	t.Helper()
	all := make(map[int64]string)
	next := int64(0)
	for _, b := range p.batches {
		if b.BaseOffset() < next {
			t.Fatalf("the batch at %d comes below %d", b.BaseOffset(), next)
		}
		next = lastOffset(b) + 1
		if b.IsFiller() {
			continue
		}
		if err := kafkawire.VisitRecords(b, 1<<30, func(r kafkawire.Record) bool {
			all[b.BaseOffset()+int64(r.OffsetDelta)] = fmt.Sprintf("%d %x", r.TimestampMs, r.Payload)
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// copyWorld is a committed partition, the brokers that hold it, and a lane
// whose broker lacks some.
type copyWorld struct {
	t     *testing.T
	group *fsm.Group
	index uint64
	full  *partLog // what every broker should hold
	local *partLog
	peers *memPeers
	c     *copier
	l     *lane
	rng   *rand.Rand
}

var copyTP = fsm.TP{Topic: 7, Partition: 3}

func newCopyWorld(t *testing.T, compacted bool) *copyWorld {
	w := &copyWorld{t: t, group: fsm.NewGroup(1), full: &partLog{}, local: &partLog{}, rng: rand.New(rand.NewPCG(1, 2))}
	w.peers = &memPeers{w: w, logs: make(map[int32]*partLog), fail: make(map[int32]int), calls: make(map[int32]int), first: make(map[int32]int64)}
	config := map[string]string{}
	if compacted {
		config["cleanup.policy"] = "compact"
	}
	open := &fsm.Open{Level: 1, Topic: copyTP.Topic, Name: "copied", Total: 4, Partitions: []int32{copyTP.Partition}, Config: config}
	w.apply(fsm.Control(fsm.KindOpen, open))
	a := New(Config{Logger: hclog.NewNullLogger()})
	t.Cleanup(func() { a.cancel(ErrClosed) })
	a.CopyFrom(CopyConfig{Peers: w.peers, Broker: w.local, Method: 17})
	w.c = a.copier.(*copier)
	w.l = newLane(newFeeder(a, 1, &memLog{group: 1}), copyTP, open, 1, nil)
	return w
}

func (w *copyWorld) apply(cmd fsm.Command) fsm.Result {
	w.t.Helper()
	w.index++
	results, err := w.group.Apply(w.index, fsm.EncodeEntry(1, []fsm.Command{cmd}))
	if err != nil {
		w.t.Fatal(err)
	}
	return results[0]
}

// noise is what values are cut from.
var noise = func() []byte {
	rng, b := rand.New(rand.NewPCG(3, 4)), make([]byte, 4<<20)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}()

// commit appends a batch of count records of size bytes each.
func (w *copyWorld) commit(count int32, size int) {
	w.t.Helper()
	var records []kafkawire.Record
	for range count {
		at := w.rng.IntN(len(noise) - size)
		value := noise[at : at+size]
		payload := append(binary.AppendVarint(nil, 1), byte('a'+w.rng.IntN(20)))
		payload = append(binary.AppendVarint(payload, int64(size)), value...)
		records = append(records, kafkawire.Record{TimestampMs: 1_700_000_000_000 + int64(w.index), Payload: append(payload, 0)})
	}
	codec := int8(0) // compressing noise takes time
	if size < 1000 {
		codec = int8(w.rng.IntN(5))
	}
	batch, err := kafkawire.AppendBatch(nil, codec, records, -1, -1, -1)
	if err != nil {
		w.t.Fatal(err)
	}
	r := w.apply(fsm.AppendCommand(copyTP, batch))
	if r.Verdict != fsm.Appended {
		w.t.Fatalf("not appended: %+v", r)
	}
	it := newItem(w.index, &r)
	if err := w.full.append(it.stampedCopy(copyTP.Topic)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *copyWorld) recover(number int16) {
	w.apply(fsm.Control(fsm.KindRecover, fsm.Recover{Number: number}))
}

// many commits enough for several checkpoints.
func (w *copyWorld) many(n int) {
	for range n {
		w.commit(int32(1+w.rng.IntN(9)), 25_000+w.rng.IntN(20_000))
	}
}

func (w *copyWorld) want() *fsm.Partition { return w.group.Partitions[copyTP] }

// peer gives a node the whole log.
func (w *copyWorld) peer(node int32) *partLog {
	p := w.full.copyOf(w.full.end)
	w.peers.logs[node] = p
	w.peers.order = append(w.peers.order, node)
	return p
}

// fill copies what the local broker lacks, once.
func (w *copyWorld) fill(ctx context.Context) error {
	w.t.Helper()
	from := w.local.end
	return w.c.fill(ctx, w.l, from, w.local.last(), w.want(), func(it item) error {
		if it.base != w.local.end {
			w.t.Fatalf("pushed offset %d, the log ends at %d", it.base, w.local.end)
		}
		if err := w.local.append(it.stampedCopy(copyTP.Topic)); err != nil {
			w.t.Fatal(err)
		}
		if b := w.local.last(); it.crc != b.CRC() || it.seq != b.BaseSequence() || it.epoch != b.ProducerEpoch() || it.count != b.Count() {
			w.t.Fatalf("the item %+v does not say what its batch is", it.trace())
		}
		return nil
	})
}

// same checks that the local broker holds what a peer's does.
func (w *copyWorld) same(p *partLog) {
	w.t.Helper()
	if w.local.end != w.want().NextOffset || w.local.epoch != w.want().Epoch && w.want().Sequence != 0 || w.local.seq != w.want().Sequence && w.want().Sequence != 0 {
		w.t.Fatalf("the log ends at %d with epoch %d sequence %d", w.local.end, w.local.epoch, w.local.seq)
	}
	got, want := w.local.records(w.t), p.records(w.t)
	for offset, rec := range want {
		if offset < w.want().NextOffset && got[offset] != rec {
			w.t.Fatalf("offset %d differs", offset)
		}
	}
	for offset := range got {
		if _, ok := want[offset]; !ok {
			w.t.Fatalf("offset %d is held and should not be", offset)
		}
	}
}

// memPeers answers from logs in memory.
type memPeers struct {
	w     *copyWorld
	mu    sync.Mutex
	order []int32
	logs  map[int32]*partLog
	fail  map[int32]int // calls that work before all others fail
	calls map[int32]int
	first map[int32]int64 // offset of the first request
	wait  func()          // called before each list of nodes
	limit int64           // what the nodes hold at most, if not 0
	hook  func()          // called within each request
}

func (p *memPeers) Complete(tp fsm.TP) []int32 {
	if p.wait != nil {
		p.wait()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.order)
}

var errPeerDown = errors.New("the peer is down")

func (p *memPeers) Call(ctx context.Context, node int32, method uint8, payload []byte) ([]byte, error) {
	if p.hook != nil {
		p.hook()
	}
	p.mu.Lock()
	log, limit := p.logs[node], p.limit
	p.calls[node]++
	if n, ok := p.fail[node]; ok && p.calls[node] > n {
		p.mu.Unlock()
		return nil, errPeerDown
	}
	p.mu.Unlock()
	req, err := decodeCopyRequest(payload)
	if err != nil || method != 17 || req.tp != copyTP {
		return nil, errors.Join(fmt.Errorf("request %+v by method %d", req, method), err)
	}
	p.mu.Lock()
	if _, ok := p.first[node]; !ok {
		p.first[node] = req.from
	}
	p.mu.Unlock()
	return log.serve(req, limit), nil
}

// serve answers a request as a node that holds the log would, or its beginning
// up to limit.
func (p *partLog) serve(req copyRequest, limit int64) []byte {
	end := p.end
	if limit > 0 {
		end = min(end, limit)
	}
	if req.from >= end {
		return copyAnswer{status: copyOK, start: p.start, end: max(end, p.start)}.encode()
	}
	raw, start, err := p.Range(context.Background(), "", 0, req.from, end, req.max)
	if errors.Is(err, broker.ErrNoBatch) {
		return copyAnswer{status: copyBelowStart, start: start, end: end}.encode()
	}
	return copyAnswer{status: copyOK, start: start, end: end, batches: raw}.encode()
}

// sealed corrects a batch's checksum in place.
func sealed(b []byte) kafkawire.Batch {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"reflect"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// frameMaker makes requests of every API and version that a node advertises, as
// clients send them, and spoils them. What it names are topics and groups of its
// own. It belongs to one goroutine.
type frameMaker struct {
	rng  *rand.Rand
	apis []kmsg.ApiVersionsResponseApiKey
	fmtr *kmsg.RequestFormatter
	corr int32
}

const (
	framesTopics     = 8
	framesGroups     = 8
	framesPartitions = 3
)

func framesTopic(n int) string { return fmt.Sprintf("frames-%d", n) }

func newFrameMaker(seed uint64, apis []kmsg.ApiVersionsResponseApiKey) *frameMaker {
	return &frameMaker{rng: rand.New(rand.NewPCG(seed, 1)), apis: apis,
		fmtr: kmsg.NewRequestFormatter(kmsg.FormatterClientID("frames"))}
}

// whole returns one request as it should be, with its size in front.
func (m *frameMaker) whole() []byte {
	api := m.apis[m.rng.IntN(len(m.apis))]
	req := kmsg.RequestForKey(api.ApiKey)
	req.SetVersion(api.MinVersion + int16(m.rng.IntN(int(api.MaxVersion-api.MinVersion)+1)))
	m.fill(reflect.ValueOf(req).Elem(), "")
	m.tame(req)
	m.corr++
	return m.fmtr.AppendRequest(nil, req, m.corr)
}

// fill sets the exported fields of a kmsg struct; arrays get up to three
// elements. name is the field's.
func (m *frameMaker) fill(v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type().Elem().Kind() != reflect.Struct && m.rng.IntN(4) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			m.fill(v.Elem(), name)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if field != "Version" && field != "UnknownTags" && v.Field(i).CanSet() {
				m.fill(v.Field(i), field)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), m.rng.IntN(4), 4))
		for i := range v.Len() {
			m.fill(v.Index(i), name)
		}
	case reflect.String:
		v.SetString(m.text(name))
	case reflect.Bool:
		v.SetBool(m.rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(m.number(name))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(m.rng.Uint32N(200)))
	}
}

func (m *frameMaker) text(field string) string {
	switch field {
	case "Topic", "Topics", "TopicNames", "ResourceName":
		return framesTopic(m.rng.IntN(framesTopics))
	case "Group", "Groups", "CoordinatorKey", "CoordinatorKeys":
		return fmt.Sprintf("frames-group-%d", m.rng.IntN(framesGroups))
	case "ProtocolType":
		return "consumer"
	}
	return [...]string{"", "range", "retention.ms", "cleanup.policy", "1", "a-member", "x"}[m.rng.IntN(7)]
}

func (m *frameMaker) number(field string) int64 {
	switch field {
	case "Partition", "Partitions":
		return m.rng.Int64N(framesPartitions)
	case "TimeoutMillis", "MaxWaitMillis":
		return m.rng.Int64N(200)
	case "SessionTimeoutMillis", "RebalanceTimeoutMillis":
		return 6000
	case "Acks":
		return m.rng.Int64N(3) - 1
	case "ResourceType":
		return [...]int64{2, 4, 2, 8}[m.rng.IntN(4)]
	case "MaxBytes", "PartitionMaxBytes":
		return 1 << 20
	}
	return int64(int8(m.rng.Uint32()))
}

// tame keeps requests from costing more than they are worth, and makes more of
// them go through.
func (m *frameMaker) tame(req kmsg.Request) {
	switch r := req.(type) {
	case *kmsg.ProduceRequest:
		if m.rng.IntN(8) > 0 {
			r.TransactionID = nil
		}
		for i := range r.Topics {
			for j := range r.Topics[i].Partitions {
				r.Topics[i].Partitions[j].Records = m.records()
			}
		}
	case *kmsg.CreateTopicsRequest:
		r.ValidateOnly = m.rng.IntN(4) > 0
		for i := range r.Topics {
			t := &r.Topics[i]
			t.NumPartitions, t.ReplicationFactor = framesPartitions, 3
			t.ReplicaAssignment = nil
			if m.rng.IntN(2) == 0 {
				t.Configs = nil
			}
		}
	case *kmsg.CreatePartitionsRequest:
		for i := range r.Topics {
			r.Topics[i].Count, r.Topics[i].Assignment = 1+m.rng.Int32N(6), nil
		}
	}
}

// records returns a batch, half of them of an idempotent producer.
func (m *frameMaker) records() []byte {
	b := batch{producerID: -1, epoch: -1, sequence: -1}
	if m.rng.IntN(2) == 0 {
		b.producerID, b.epoch, b.sequence = 1<<50+m.rng.Int64N(4), 0, m.rng.Int32N(3)
	}
	for range 1 + m.rng.IntN(4) {
		b.values = append(b.values, padding[:m.rng.IntN(len(padding))])
	}
	raw := b.encode()
	if m.rng.IntN(3) > 0 {
		return raw
	}
	const header = 61
	raw = append(raw[:header:header], gzipped(raw[header:])...)
	raw[22] = 1 // gzip
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	return sealed(raw)
}

// sealed makes the checksum of a batch right, in place.
func sealed(raw []byte) []byte {
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

// A spoil is one way to damage a frame. One that leaves the connection inside a
// frame, or beside one, is the connection's last.
type spoil struct {
	name string
	last bool
	do   func(m *frameMaker, frame []byte) []byte
}

var spoils = []spoil{
	{"none", false, func(_ *frameMaker, f []byte) []byte { return f }},
	{"bits", false, func(m *frameMaker, f []byte) []byte {
		for range 1 + m.rng.IntN(8) {
			f[m.within(f)] ^= 1 << m.rng.IntN(8)
		}
		return f
	}},
	{"cut", false, func(m *frameMaker, f []byte) []byte { return resized(f[:m.within(f)]) }},
	{"cut, size kept", true, func(m *frameMaker, f []byte) []byte { return f[:m.within(f)] }},
	{"bytes too many", false, func(m *frameMaker, f []byte) []byte { return resized(append(f, f[m.within(f):]...)) }},
	{"length", false, func(m *frameMaker, f []byte) []byte {
		extreme := [...]uint32{0x7fffffff, 0xffffffff, 0xfffffffe, 0x80000000, 0x00ffffff, uint32(len(f)), 0}
		at := m.within(f)
		copy(f[at:], binary.BigEndian.AppendUint32(nil, extreme[m.rng.IntN(len(extreme))]))
		return f
	}},
	{"count", false, func(m *frameMaker, f []byte) []byte {
		at := m.within(f)
		copy(f[at:], [...]string{"\xff\xff\xff\xff\x0f", "\xff\xff\xff\xff\x07", "\xff\xff\x03", "\x00"}[m.rng.IntN(4)])
		return f
	}},
	{"inserted", false, func(m *frameMaker, f []byte) []byte {
		at := m.within(f)
		return resized(append(append(append([]byte(nil), f[:at]...), make([]byte, 1+m.rng.IntN(9))...), f[at:]...))
	}},
	{"other version", false, func(m *frameMaker, f []byte) []byte {
		binary.BigEndian.PutUint16(f[4+2*m.rng.IntN(2):], uint16(m.rng.IntN(100)-1))
		return f
	}},
	{"size", true, func(m *frameMaker, f []byte) []byte {
		sizes := [...]uint32{0, 1, 7, 0xffffffff, 0x80000000, 0x7fffffff, 8 << 20, uint32(len(f)), uint32(max(len(f)-9, 0))}
		binary.BigEndian.PutUint32(f, sizes[m.rng.IntN(len(sizes))])
		return f
	}},
	{"interleaved", true, func(m *frameMaker, f []byte) []byte {
		at, other := m.within(f), m.whole()
		return append(append(append([]byte(nil), f[:at]...), other...), f[at:]...)
	}},
	{"garbage", true, func(m *frameMaker, f []byte) []byte {
		for i := range f {
			f[i] = byte(m.rng.Uint32())
		}
		return f
	}},
	{"bits of a batch", false, func(m *frameMaker, f []byte) []byte { return m.spoiledBatch() }},
}

// within returns a place in a frame after its size.
func (m *frameMaker) within(f []byte) int { return 4 + m.rng.IntN(len(f)-4) }

// resized makes the size of a frame right, in place.
func resized(f []byte) []byte {
	binary.BigEndian.PutUint32(f, uint32(len(f)-4))
	return f
}

// spoiledBatch is a Produce request around a batch whose checksum is right and
// whose content is not.
func (m *frameMaker) spoiledBatch() []byte {
	raw := m.records()
	for range 1 + m.rng.IntN(4) {
		raw[21+m.rng.IntN(len(raw)-21)] ^= 1 << m.rng.IntN(8)
	}
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(9)
	req.Acks, req.TimeoutMillis = -1, 200
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = m.rng.Int32N(framesPartitions), sealed(raw)
	tp := kmsg.NewProduceRequestTopic()
	tp.Topic, tp.Partitions = framesTopic(m.rng.IntN(framesTopics)), append(tp.Partitions, p)
	req.Topics = append(req.Topics, tp)
	m.corr++
	return m.fmtr.AppendRequest(nil, req, m.corr)
}

// spoiled returns a damaged frame and how it was damaged.
func (m *frameMaker) spoiled() ([]byte, *spoil) {
	s := &spoils[m.rng.IntN(len(spoils))]
	return s.do(m, m.whole()), s
}

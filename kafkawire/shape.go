package kafkawire

import (
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// requestShapes says what the requests in the allow-list are made of, in the
// versions served: just enough to walk one to its end before kmsg takes memory
// for it. kmsg believes an array length up to the number of bytes left, which
// makes 100 bytes and more out of each byte of a hostile request, and it reads
// over bytes after the end.
//
// A digit is a field of so many bytes, s a string, b a byte field, (x) an
// array of plain fields, [x y] an array of structs; @3 limits the field before
// it to versions from 3 and @0-3 to those. Nullable or not makes no difference
// here. Tagged fields stand at the end of every struct and are not written out,
// but where kmsg looks into one, in whatever version: {n x} is the tagged field
// n, <x y> a struct that is no element of an array.
var requestShapes = map[kmsg.Key]string{
	kmsg.Produce:                 "s 2 4 [s [4 b]]",
	kmsg.Fetch:                   "4 4 4 4 1 4@7 4@7 [s [4 4@9 8 4@12 8@5 4 {0 8 8} {1 8}]] [s (4)]@7 s@11 {0 s} {1 <4 8>}",
	kmsg.ListOffsets:             "4 1@2 [s [4 4@4 8]]",
	kmsg.Metadata:                "[s] 1@4 1@8 1@8",
	kmsg.OffsetCommit:            "s 4 s s@7 8@2-4 [s [4 8 4@6 s]]",
	kmsg.OffsetFetch:             "s@0-7 [s (4)]@0-7 [s s@9 4@9 [s (4)]]@8 1@7",
	kmsg.FindCoordinator:         "s@0-3 1@1 (s)@4",
	kmsg.JoinGroup:               "s 4 4@1 s s@5 s [s b] s@8",
	kmsg.Heartbeat:               "s 4 s s@3",
	kmsg.LeaveGroup:              "s s@0-2 [s s s@5]@3",
	kmsg.SyncGroup:               "s 4 s s@3 s@5 s@5 [s b]",
	kmsg.DescribeGroups:          "(s) 1@3",
	kmsg.ListGroups:              "(s)@4 (s)@5",
	kmsg.SASLHandshake:           "s",
	kmsg.ApiVersions:             "s@3 s@3",
	kmsg.CreateTopics:            "[s 4 2 [4 (4)] [s s]] 4 1",
	kmsg.DeleteTopics:            "(s) 4",
	kmsg.DeleteRecords:           "[s [4 8]] 4",
	kmsg.InitProducerID:          "s 4 8@3 2@3",
	kmsg.OffsetForLeaderEpoch:    "4@3 [s [4 4 4]]",
	kmsg.DescribeACLs:            "1 s 1 s s 1 1",
	kmsg.CreateACLs:              "[1 s 1 s s 1 1]",
	kmsg.DeleteACLs:              "[1 s 1 s s 1 1]",
	kmsg.DescribeConfigs:         "[1 s (s)] 1 1@3",
	kmsg.AlterConfigs:            "[1 s [s s]] 1",
	kmsg.SASLAuthenticate:        "b",
	kmsg.CreatePartitions:        "[s 4 [(4)]] 4 1",
	kmsg.DeleteGroups:            "(s)",
	kmsg.IncrementalAlterConfigs: "[1 s [s 1 s]] 1",
	kmsg.OffsetDelete:            "s [s [4]]",
	kmsg.DescribeClientQuotas:    "[s 1 s] 1",
	kmsg.AlterClientQuotas:       "[[s s] [s 8 1]] 1",
	kmsg.DescribeCluster:         "1 1@1",
}

// field is one field of a shape.
type field struct {
	kind         byte // '1', '2', '4', '8' bytes; 's', 'b'; '(' and '[' for arrays; '{' and '<'
	since, until int16
	elem         []field // of arrays, tagged fields and structs
	tag          uint32  // of tagged fields
}

// compiledShapes is never written after init.
var compiledShapes = compileShapes(requestShapes)

func compileShapes(shapes map[kmsg.Key]string) map[int16][]field {
	all := make(map[int16][]field, len(shapes))
	for key, text := range shapes {
		p := shapeParser{text: text}
		all[int16(key)] = p.fields(0)
	}
	return all
}

// shapeParser reads the notation of requestShapes. It trusts it: the texts are
// in this package, and tests walk every message with the result.
type shapeParser struct {
	text string
	pos  int
}

func (p *shapeParser) fields(end byte) (all []field) {
	for p.pos < len(p.text) && p.text[p.pos] != end {
		f := field{kind: p.text[p.pos], until: 1<<15 - 1}
		p.pos++
		switch f.kind {
		case ' ':
			continue
		case '(':
			f.elem = p.fields(')')
		case '[':
			f.elem = p.fields(']')
		case '<':
			f.elem = p.fields('>')
		case '{':
			f.tag = uint32(p.text[p.pos] - '0')
			p.pos++
			f.elem = p.fields('}')
		}
		if p.pos < len(p.text) && p.text[p.pos] == '@' {
			p.pos++
			f.since, f.until = p.versions()
		}
		all = append(all, f)
	}
	p.pos++ // the closing bracket
	return all
}

func (p *shapeParser) versions() (since, until int16) {
	n := strings.IndexAny(p.text[p.pos:]+" ", " )]")
	first, last, bounded := strings.Cut(p.text[p.pos:p.pos+n], "-")
	p.pos += n
	if since = shapeVersion(first); !bounded {
		return since, 1<<15 - 1
	}
	return since, shapeVersion(last)
}

func shapeVersion(text string) int16 {
	v, _ := strconv.ParseInt(text, 10, 16)
	return int16(v)
}

// checkRequestShape walks the body of a request and returns ErrMalformed
// unless it is whole and ends where the body does. It returns
// ErrUnsupportedVersion for a request that is not in the allow-list.
func checkRequestShape(key, version int16, body []byte) error {
	api, ok := Lookup(key)
	if !ok || !api.Accepts(version) {
		return ErrUnsupportedVersion
	}
	w := shapeWalk{reader: reader{buf: body}, version: version, flexible: version >= shapeOf(key).requestFlexible}
	w.fields(compiledShapes[key], true)
	return w.end()
}

type shapeWalk struct {
	reader
	version  int16
	flexible bool
}

// fields walks one struct, or one element of a plain array, which has no tags.
func (w *shapeWalk) fields(all []field, tagged bool) {
	known := false
	for i := range all {
		f := &all[i]
		if w.version < f.since || w.version > f.until {
			continue
		}
		switch f.kind {
		case 's':
			w.nullableString(w.flexible)
		case 'b':
			w.nullableBytes(w.flexible)
		case '(', '[':
			for range w.arrayLen(w.flexible, 1) {
				w.fields(f.elem, f.kind == '[')
				if w.err != nil {
					return
				}
			}
		case '<':
			w.fields(f.elem, true)
		case '{':
			known = true
		default:
			w.span(int(f.kind - '0'))
		}
	}
	if known {
		w.knownTags(all)
		return
	}
	w.tags(tagged && w.flexible)
}

// knownTags walks the tagged fields of a struct, and into those that are in
// its shape.
func (w *shapeWalk) knownTags(all []field) {
	if !w.flexible {
		return
	}
	n := w.uvarint()
	if n > maxTags {
		w.fail("too many tagged fields")
		return
	}
	for range n {
		tag := w.uvarint()
		value := w.span(int(w.uvarint()))
		for i := range all {
			if f := &all[i]; f.kind == '{' && uint64(f.tag) == uint64(tag) && w.err == nil {
				inner := shapeWalk{reader: reader{buf: value}, version: w.version, flexible: true}
				inner.fields(f.elem, false)
				w.err = inner.err
			}
		}
	}
}

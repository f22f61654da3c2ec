//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// difference is one field of one answer in which the proxy is not like Kafka.
type difference struct {
	api         string
	version     int16
	request     string // the name of the exchange
	field       string // path with the keys of its elements
	kafka, ours string
}

// String is the difference as a row of the table in docs/protocol.md.
func (d difference) String() string {
	return fmt.Sprintf("| %s | %d | %s | `%s` | %s | %s |", d.api, d.version, d.request, d.field, d.kafka, d.ours)
}

// tree is a decoded answer: a leaf has a text, everything else has fields.
// Elements of an array are fields under their natural key, so that their order
// is not compared: Kafka's own comes out of hash maps in many answers.
type tree struct {
	text   string
	fields map[string]*tree
}

func leaf(format string, args ...any) *tree { return &tree{text: fmt.Sprintf(format, args...)} }

// normal is what must differ between two clusters, and what stands in its place:
//
//   - the port that clients are told, for each side has its own;
//   - the cluster's id;
//   - the random part of the member ids that a coordinator hands out;
//   - the words of an error message, which are for people. Whether there is a
//     message is compared.
//
// Node ids need no place here: both sides are node 1. Topic ids are in no
// version that is served. Timestamps are the requests' own. Leader epochs and
// producer ids are in the table of differences.
type normal struct {
	port      int
	clusterID string
}

var randomID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

func (n normal) string(field, s string) *tree {
	switch {
	case field == "ErrorMessage":
		return leaf("words")
	case field == "ClusterID" && s == n.clusterID:
		return leaf("the cluster's")
	}
	return leaf("%q", randomID.ReplaceAllString(s, "random"))
}

// describe turns an answer into a tree.
func (n normal) describe(field string, v reflect.Value) *tree {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return leaf("null")
		}
		return n.describe(field, v.Elem())
	case reflect.Struct:
		return n.describeStruct(v)
	case reflect.Slice:
		return n.describeSlice(field, v)
	case reflect.String:
		return n.string(field, v.String())
	}
	switch {
	case field == "ErrorCode":
		return leaf("%s", codeName(int16(v.Int())))
	case field == "Port" && int(v.Int()) == n.port:
		return leaf("the node's")
	}
	return leaf("%v", v.Interface())
}

func codeName(code int16) string {
	if code == 0 {
		return "NONE"
	}
	return kerr.TypedErrorForCode(code).Message
}

func (n normal) describeStruct(v reflect.Value) *tree {
	t := &tree{fields: map[string]*tree{}}
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch f := v.Field(i); {
		case name == "Version" && f.Kind() == reflect.Int16: // of the message, not in it
		case f.Type() == reflect.TypeFor[kmsg.Tags]():
			tags := f.Interface().(kmsg.Tags)
			tags.Each(func(key uint32, _ []byte) { t.fields[fmt.Sprintf("Tag%d", key)] = leaf("present") })
		default:
			t.fields[name] = n.describe(name, f)
		}
	}
	return t
}

func (n normal) describeSlice(field string, v reflect.Value) *tree {
	switch elem := v.Type().Elem().Kind(); {
	case elem == reflect.Uint8 && field == "RecordBatches":
		return n.describeBatches(v.Bytes())
	case v.IsNil():
		return leaf("null")
	case elem == reflect.Uint8:
		return leaf("0x%s", hex.EncodeToString(v.Bytes()))
	case elem != reflect.Struct:
		return leaf("%v", v.Interface())
	}
	t := &tree{fields: map[string]*tree{}}
	for i := range v.Len() {
		t.add(elementKey(v.Index(i)), n.describe("", v.Index(i)))
	}
	return t
}

func (t *tree) add(key string, child *tree) {
	name := "[" + key + "]"
	for i := 2; t.fields[name] != nil; i++ {
		name = fmt.Sprintf("[%s#%d]", key, i)
	}
	t.fields[name] = child
}

// elementKey is what an element of an array is called.
func elementKey(v reflect.Value) string {
	for _, name := range []string{"Topic", "Name", "Group", "Key", "ResourceName", "Partition", "NodeID", "ApiKey", "MemberID", "RelativeOffset"} {
		f := v.FieldByName(name)
		if !f.IsValid() {
			continue
		}
		if f.Kind() == reflect.Pointer {
			if f.IsNil() {
				return "null"
			}
			f = f.Elem()
		}
		if name == "ApiKey" {
			return kmsg.NameForKey(int16(f.Int()))
		}
		return randomID.ReplaceAllString(fmt.Sprint(f.Interface()), "random")
	}
	return ""
}

// describeBatches takes record batches apart; a consumer may be sent a part of
// the last one.
func (n normal) describeBatches(raw []byte) *tree {
	if raw == nil {
		return leaf("null")
	}
	t := &tree{fields: map[string]*tree{}}
	for len(raw) > 0 {
		if len(raw) < 12 {
			t.fields["[rest]"] = leaf("%d bytes", len(raw))
			break
		}
		size := 12 + int(int32(binary.BigEndian.Uint32(raw[8:])))
		var b kmsg.RecordBatch
		if size < 12 || size > len(raw) || b.ReadFrom(raw[:size]) != nil {
			t.fields["[rest]"] = leaf("%d bytes", len(raw))
			break
		}
		t.add(fmt.Sprint(b.FirstOffset), n.describe("", reflect.ValueOf(b)))
		raw = raw[size:]
	}
	return t
}

// compare calls report with every place where two trees differ.
func compare(path string, kafka, ours *tree, report func(path, kafka, ours string)) {
	if kafka.fields == nil || ours.fields == nil {
		if k, o := kafka.summary(), ours.summary(); k != o {
			report(path, k, o)
		}
		return
	}
	names := maps.Clone(kafka.fields)
	maps.Copy(names, ours.fields)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		at := path
		if at != "" && !strings.HasPrefix(name, "[") {
			at += "."
		}
		at += name
		k, o := kafka.fields[name], ours.fields[name]
		switch {
		case k == nil:
			report(at, "absent", "present")
		case o == nil:
			report(at, "present", "absent")
		default:
			compare(at, k, o, report)
		}
	}
}

func (t *tree) summary() string {
	switch {
	case t.fields == nil:
		return t.text
	case len(t.fields) == 0:
		return "empty"
	}
	return "present"
}

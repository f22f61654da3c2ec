package kafkawire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fillRandom sets the exported fields of a kmsg struct to random values. Arrays
// get up to three elements.
func fillRandom(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if rng.IntN(4) > 0 && v.Type().Elem().Kind() != reflect.Struct {
			v.Set(reflect.New(v.Type().Elem()))
			fillRandom(rng, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			switch {
			case name == "Version":
			case name == "UnknownTags":
				if rng.IntN(2) == 0 {
					v.Field(i).Addr().Interface().(*kmsg.Tags).Set(100+rng.Uint32N(9), []byte("tag"))
				}
			case v.Field(i).CanSet():
				fillRandom(rng, v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rng.IntN(4), 4))
		for i := range v.Len() {
			fillRandom(rng, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fillRandom(rng, v.Index(i))
		}
	case reflect.String:
		v.SetString("abcdefgh"[:rng.IntN(9)])
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(int8(rng.Uint32())))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(rng.Uint32N(200)))
	}
}

func randomRequest(rng *rand.Rand, key, version int16) kmsg.Request {
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	fillRandom(rng, reflect.ValueOf(req).Elem())
	return req
}

// TestRequestShapesAgree walks random requests of every API and version served
// and expects the walk to end where kmsg's encoding does, neither before nor
// after.
func TestRequestShapesAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, api := range Served() {
		for v := api.Min; v <= api.Max; v++ {
			for range 20 {
				body := randomRequest(rng, api.Key, v).AppendTo(nil)
				h := RequestHeader{Key: api.Key, Version: v}
				req, err := ParseRequest(h, body)
				if err != nil {
					t.Fatalf("%s %d: %v\n%x", api.Name, v, err, body)
				}
				if !bytes.Equal(req.AppendTo(nil), body) {
					t.Fatalf("%s %d: changed", api.Name, v)
				}
				if _, err := ParseRequest(h, append(body[:len(body):len(body)], 0)); !errors.Is(err, ErrMalformed) {
					t.Fatalf("%s %d: a byte after the end: %v", api.Name, v, err)
				}
				for cut := range body {
					if _, err := ParseRequest(h, body[:cut]); !errors.Is(err, ErrMalformed) {
						t.Fatalf("%s %d: cut at %d of %d: %v", api.Name, v, cut, len(body), err)
					}
				}
			}
		}
	}
}

func TestEveryServedAPIHasAShape(t *testing.T) {
	for _, api := range Served() {
		if len(compiledShapes[api.Key]) == 0 {
			t.Errorf("%s has no shape", api.Name)
		}
	}
	if len(compiledShapes) != len(Served()) {
		t.Errorf("%d shapes for %d APIs", len(compiledShapes), len(Served()))
	}
}

// TestParseRequestBelievesNoLength claims as many topics as there are bytes,
// which kmsg alone would take memory for.
func TestParseRequestBelievesNoLength(t *testing.T) {
	const size = 4 << 20
	body := binary.BigEndian.AppendUint32(nil, size)
	body = append(body, bytes.Repeat([]byte{0xff}, size)...)
	got := allocated(func() {
		if _, err := ParseRequest(RequestHeader{Key: 3, Version: 1}, body); !errors.Is(err, ErrMalformed) {
			t.Error(err)
		}
	})
	if got > 64<<10 {
		t.Errorf("allocated %d bytes", got)
	}
}

// TestParseRequestTagBomb claims 2^32 tagged fields inside the one of a Fetch
// that kmsg reads, which counts through them for minutes.
func TestParseRequestTagBomb(t *testing.T) {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(12)
	body := req.AppendTo(nil)
	state := append(make([]byte, 12), 0xff, 0xff, 0xff, 0xff, 0x0f) // id, epoch, its tags
	body = append(body[:len(body)-1], 1, 1, byte(len(state)))
	body = append(body, state...)
	// The walk alone first: without it the reader would be at work.
	if err := checkRequestShape(int16(kmsg.Fetch), 12, body); !errors.Is(err, ErrMalformed) {
		t.Fatalf("got %v, want %v", err, ErrMalformed)
	}
	if _, err := ParseRequest(RequestHeader{Key: int16(kmsg.Fetch), Version: 12}, body); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v, want %v", err, ErrMalformed)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	for _, c := range []struct {
		name         string
		key, version int16
		body         []byte
		want         error
	}{
		{"unknown key", 999, 0, nil, ErrUnknownAPI},
		{"key -1", -1, 0, nil, ErrUnknownAPI},
		{"not served", int16(kmsg.ConsumerGroupHeartbeat), 0, nil, ErrUnsupportedVersion},
		{"Produce 2", 0, 2, nil, ErrUnsupportedVersion},
		{"Produce 12", 0, 12, nil, ErrUnsupportedVersion},
		{"version -1", 3, -1, nil, ErrUnsupportedVersion},
		{"version highest", 3, 1<<15 - 1, nil, ErrUnsupportedVersion},
		{"array -2", 3, 1, []byte{0xff, 0xff, 0xff, 0xfe}, ErrMalformed},
		{"array highest", 3, 1, []byte{0x7f, 0xff, 0xff, 0xff}, ErrMalformed},
		{"compact array highest", 3, 9, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1, 1, 0}, ErrMalformed},
		{"string -2", 3, 1, []byte{0, 0, 0, 1, 0xff, 0xfe}, ErrMalformed},
		{"string -1", 3, 1, []byte{0, 0, 0, 1, 0xff, 0xff}, ErrMalformed},
		{"tag bomb", 3, 9, []byte{1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f}, ErrMalformed},
		{"flexible body in an older version", 3, 8, []byte{1, 1, 1, 1, 0}, ErrMalformed},
	} {
		if req, err := ParseRequest(RequestHeader{Key: c.key, Version: c.version}, c.body); !errors.Is(err, c.want) || req != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

// setTopicIDs sets every topic id, in one element of every array.
func setTopicIDs(message any, id [16]byte) {
	setID := func(v reflect.Value) {
		if v.Kind() == reflect.Slice {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			v = v.Index(0)
		}
		v.Set(reflect.ValueOf(id))
	}
	var set func(reflect.Value)
	set = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				switch name := v.Type().Field(i).Name; {
				case name == "TopicID" || name == "TopicIDs":
					setID(v.Field(i))
				case v.Field(i).CanSet():
					set(v.Field(i))
				}
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			set(v.Index(0))
		}
	}
	set(reflect.ValueOf(message).Elem())
}

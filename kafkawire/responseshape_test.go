package kafkawire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func randomResponse(rng *rand.Rand, key, version int16) kmsg.Response {
	resp := kmsg.ResponseForKey(key)
	resp.SetVersion(version)
	fillRandom(rng, reflect.ValueOf(resp).Elem())
	return resp
}

// TestResponseShapesAgree walks random answers of every API that is decoded and
// every version served, and expects the walk to end where kmsg's encoding does.
func TestResponseShapesAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for key := range compiledResponses {
		api, ok := Lookup(key)
		if !ok {
			t.Fatalf("%s is not served", kmsg.NameForKey(key))
		}
		for v := api.Min; v <= api.Max; v++ {
			for range 20 {
				body := randomResponse(rng, key, v).AppendTo(nil)
				resp := kmsg.ResponseForKey(key)
				resp.SetVersion(v)
				if err := ReadResponse(resp, body); err != nil {
					t.Fatalf("%s %d: %v\n%x", api.Name, v, err, body)
				}
				if !bytes.Equal(resp.AppendTo(nil), body) {
					t.Fatalf("%s %d: changed", api.Name, v)
				}
				for cut := range body {
					if err := ReadResponse(kmsgResponse(key, v), body[:cut]); !errors.Is(err, ErrMalformed) {
						t.Fatalf("%s %d: cut at %d of %d: %v", api.Name, v, cut, len(body), err)
					}
				}
			}
		}
	}
}

func kmsgResponse(key, version int16) kmsg.Response {
	resp := kmsg.ResponseForKey(key)
	resp.SetVersion(version)
	return resp
}

// TestResponseTagBomb claims 2^32 tagged fields, at the end of a message and
// inside a tagged field.
func TestResponseTagBomb(t *testing.T) {
	const most = "\xff\xff\xff\xff\x0f"
	fetch := kmsg.NewPtrFetchResponse()
	fetch.SetVersion(12)
	ft := kmsg.NewFetchResponseTopic()
	ft.Topic = "t"
	fp := kmsg.NewFetchResponseTopicPartition()
	fp.DivergingEpoch.Epoch = 3
	fp.RecordBatches = []byte{}
	ft.Partitions = append(ft.Partitions, fp)
	fetch.Topics = append(fetch.Topics, ft)
	diverging := fetch.AppendTo(nil)
	// One tagged field 0 of 13 bytes: 4 and 8 and the number of its own tags.
	at := bytes.Index(diverging, []byte("\x01\x00\x0d\x00\x00\x00\x03"))
	if at < 0 {
		t.Fatalf("no diverging epoch in %x", diverging)
	}
	inside := append(append(bytes.Clone(diverging[:at+2]), 17), diverging[at+3:at+15]...)
	inside = append(append(inside, most...), diverging[at+16:]...)
	for name, c := range map[string]struct {
		key, version int16
		body         []byte
	}{
		"at the end":            {int16(kmsg.DescribeConfigs), 4, []byte("\x00\x00\x00\x00\x01" + most)},
		"inside a tagged field": {int16(kmsg.Fetch), 12, inside},
	} {
		begin := time.Now()
		if err := ReadResponse(kmsgResponse(c.key, c.version), c.body); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
	}
}

func TestReadResponseRefuses(t *testing.T) {
	for _, resp := range []kmsg.Response{kmsgResponse(int16(kmsg.Fetch), 13), kmsgResponse(int16(kmsg.AddPartitionsToTxn), 1)} {
		if err := ReadResponse(resp, nil); !errors.Is(err, ErrUnknownAPI) {
			t.Errorf("%T: %v", resp, err)
		}
	}
}

// FuzzReadResponse: no panic, bounded memory and time; what is read is written
// as it was, but for unknown tagged fields and bytes after the end.
func FuzzReadResponse(f *testing.F) {
	rng := rand.New(rand.NewPCG(19, 20))
	for key := range compiledResponses {
		api, _ := Lookup(key)
		for v := api.Min; v <= api.Max; v++ {
			f.Add(key, v, randomResponse(rng, key, v).AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, body []byte) {
		if _, ok := compiledResponses[key]; !ok {
			return
		}
		resp := kmsgResponse(key, version)
		var err error
		if got, most := allocated(func() { err = ReadResponse(resp, body) }), uint64(512*len(body)+64<<10); got > most {
			t.Errorf("allocated %d bytes for %d", got, len(body))
		}
		if err != nil {
			return
		}
		out := resp.AppendTo(nil)
		again := kmsgResponse(key, version)
		if err := ReadResponse(again, out); err != nil {
			t.Fatalf("key %d version %d: written again: %v", key, version, err)
		}
		if !bytes.Equal(again.AppendTo(nil), out) {
			t.Errorf("key %d version %d: does not settle", key, version)
		}
	})
}

package check

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

const topic = "t"

// story is a history under construction.
type story struct{ rows []Event }

func (s *story) add(rows ...Event) { s.rows = append(s.rows, rows...) }

func send(p string, seq int) Event {
	return Event{Kind: Send, Topic: topic, Producer: p, Seq: seq, Idem: p != "plain"}
}

func ok(p string, seq int, offset int64) Event {
	return Event{Kind: OK, Topic: topic, Producer: p, Seq: seq, Offset: offset}
}

func fail(p string, seq int) Event {
	return Event{Kind: Fail, Topic: topic, Producer: p, Seq: seq}
}
func info(p string, seq int) Event {
	return Event{Kind: Info, Topic: topic, Producer: p, Seq: seq}
}

func poll(by string, offset int64, p string, seq int) Event {
	return Event{Kind: Poll, By: by, Topic: topic, Offset: offset, Producer: p, Seq: seq}
}

func stored(node int, offset int64, p string, seq int) Event {
	return Event{Kind: Stored, Node: node, Topic: topic, Offset: offset, Producer: p, Seq: seq}
}

// rec is a record of a broker's log.
type rec struct {
	p   string
	seq int
}

// dump makes the rows of a broker's log that starts at offset 0.
func dump(node int, log ...rec) []Event {
	var out []Event
	for i, r := range log {
		e := stored(node, int64(i), r.p, r.seq)
		if r.p == "?" {
			e.Producer, e.Broken, e.Text = "", true, `"old"`
		}
		out = append(out, e)
	}
	return append(out, Event{Kind: Read, Node: node, Topic: topic, Offset: int64(len(log))})
}

// base is four records of an idempotent producer, acknowledged and polled.
func base() *story {
	s := new(story)
	s.add(Event{Kind: Assign, By: "c1", Topic: topic})
	for i := range 4 {
		s.add(send("p1", i), ok("p1", i, int64(i)), poll("c1", int64(i), "p1", i))
	}
	return s
}

var four = []rec{{"p1", 0}, {"p1", 1}, {"p1", 2}, {"p1", 3}}

func with(log []rec, more ...rec) []rec { return append(slices.Clone(log), more...) }

// end adds the expectation that c1 is through and the three brokers' logs,
// each the same unless another one is given for node 2.
func (s *story) end(log []rec, second ...rec) {
	s.add(Event{Kind: Expect, By: "c1", Topic: topic})
	if second == nil {
		second = log
	}
	s.add(dump(1, log...)...)
	s.add(dump(2, second...)...)
	s.add(dump(3, log...)...)
}

// planted are histories with one anomaly each, and near misses, which have
// none. A finding of any other kind than those named is a false alarm.
var planted = []struct {
	name  string
	kinds string // space-separated; empty: clean
	do    func(s *story)
}{
	{"clean", "", func(s *story) { s.end(four) }},
	{"open record absent", "", func(s *story) { s.add(send("p1", 4), info("p1", 4)); s.end(four) }},
	{"open record present", "", func(s *story) {
		s.add(send("p1", 4), info("p1", 4))
		s.end(with(four, rec{"p1", 4}))
	}},
	{"unanswered record present", "", func(s *story) { s.add(send("p1", 4)); s.end(with(four, rec{"p1", 4})) }},
	{"refused record absent", "", func(s *story) { s.add(send("plain", 0), fail("plain", 0)); s.end(four) }},
	{"plain producer's records out of order", "", func(s *story) {
		s.add(send("plain", 0), info("plain", 0), send("plain", 1), info("plain", 1))
		s.end(with(four, rec{"plain", 1}, rec{"plain", 0}))
	}},
	{"plain record sent twice stands twice", "", func(s *story) {
		s.add(send("plain", 0), info("plain", 0), send("plain", 0), info("plain", 0))
		s.end(with(four, rec{"plain", 0}, rec{"plain", 0}))
	}},
	{"record refused once, sent again, present", "", func(s *story) {
		s.add(send("plain", 0), send("plain", 0), fail("plain", 0))
		s.end(with(four, rec{"plain", 0}))
	}},
	{"acknowledgements arrive out of order", "", func(s *story) {
		s.add(send("p1", 4), send("p1", 5), ok("p1", 5, 5), ok("p1", 4, 4))
		s.add(poll("c1", 4, "p1", 4), poll("c1", 5, "p1", 5))
		s.end(with(four, rec{"p1", 4}, rec{"p1", 5}))
	}},
	{"the last record is lost everywhere", "lost", func(s *story) { s.end(four[:3]) }},
	{"the last record is lost on one broker", "lost different", func(s *story) { s.end(four, four[:3]...) }},
	{"another record stands at an acknowledged offset", "lost inconsistent", func(s *story) {
		s.add(send("p1", 4), info("p1", 4))
		s.end([]rec{{"p1", 0}, {"p1", 1}, {"p1", 2}, {"p1", 4}})
	}},
	{"one broker holds one more", "different", func(s *story) {
		s.add(send("p1", 4), info("p1", 4))
		s.end(four, with(four, rec{"p1", 4})...)
	}},
	{"two brokers differ in unacknowledged records", "different inconsistent", func(s *story) {
		s.add(send("plain", 0), info("plain", 0), send("plain", 1), info("plain", 1))
		s.end(with(four, rec{"plain", 0}), with(four, rec{"plain", 1})...)
	}},
	{"two acknowledgements of one offset", "inconsistent lost", func(s *story) {
		s.add(send("plain", 0), send("p1", 4), ok("p1", 4, 4), ok("plain", 0, 4), poll("c1", 4, "p1", 4))
		s.end(with(four, rec{"p1", 4}))
	}},
	{"a consumer was given what no broker holds", "inconsistent", func(s *story) {
		s.add(send("plain", 0), info("plain", 0), send("plain", 1), info("plain", 1), poll("c1", 4, "plain", 0))
		s.end(with(four, rec{"plain", 1}))
	}},
	{"an idempotent record stands twice", "duplicate", func(s *story) { s.end(with(four, rec{"p1", 2})) }},
	{"an idempotent record stands twice, in place", "duplicate", func(s *story) { s.end(with(four, rec{"p1", 3})) }},
	{"a plain record stands twice", "duplicate", func(s *story) {
		s.add(send("plain", 0), info("plain", 0))
		s.end(with(four, rec{"plain", 0}, rec{"plain", 0}))
	}},
	{"a refused record is there", "failed-visible", func(s *story) {
		s.add(send("plain", 0), fail("plain", 0))
		s.end(with(four, rec{"plain", 0}))
	}},
	{"a record from nowhere", "foreign", func(s *story) { s.end(with(four, rec{"?", 0})) }},
	{"a record of a counter never sent", "foreign", func(s *story) { s.end(with(four, rec{"p1", 9})) }},
	{"a consumer was given a broken value", "foreign", func(s *story) {
		s.add(Event{Kind: Poll, By: "c1", Topic: topic, Offset: 4, Broken: true, Text: `"x"`})
		s.end(four)
	}},
	{"unacknowledged records out of order", "order", func(s *story) {
		s.add(send("p1", 4), send("p1", 5), info("p1", 4), info("p1", 5))
		s.end(with(four, rec{"p1", 5}, rec{"p1", 4}))
	}},
	{"an offset below one acknowledged before", "real-time", func(s *story) {
		s.add(send("p2", 0), ok("p2", 0, 5), send("p1", 4), ok("p1", 4, 4))
		s.add(poll("c1", 4, "p1", 4), poll("c1", 5, "p2", 0))
		s.end(with(four, rec{"p1", 4}, rec{"p2", 0}))
	}},
	{"sent before, acknowledged below", "", func(s *story) {
		s.add(send("p1", 4), send("p2", 0), ok("p2", 0, 5), ok("p1", 4, 4))
		s.add(poll("c1", 4, "p1", 4), poll("c1", 5, "p2", 0))
		s.end(with(four, rec{"p1", 4}, rec{"p2", 0}))
	}},
	{"a consumer skipped a record", "skipped", func(s *story) {
		s.add(Event{Kind: Assign, By: "c2", Topic: topic}, poll("c2", 0, "p1", 0), poll("c2", 2, "p1", 2))
		s.end(four)
	}},
	{"a consumer skipped the first record", "skipped", func(s *story) {
		s.add(Event{Kind: Assign, By: "c2", Topic: topic, Offset: 1}, poll("c2", 2, "p1", 2))
		s.end(four)
	}},
	{"a consumer passed over an offset that holds nothing", "gap", func(s *story) {
		s.add(send("p1", 4), ok("p1", 4, 5), poll("c1", 5, "p1", 4))
		for n := range 3 {
			s.add(dump(n+1, four...)[:4]...)
			s.add(stored(n+1, 5, "p1", 4), Event{Kind: Read, Node: n + 1, Topic: topic, Offset: 6})
		}
	}},
	{"a consumer that starts anywhere", "", func(s *story) {
		s.add(Event{Kind: Assign, By: "g", Topic: topic, Offset: -1}, poll("g", 2, "p1", 2), poll("g", 3, "p1", 3))
		s.end(four)
	}},
	{"a consumer was given a record twice", "backwards", func(s *story) { s.add(poll("c1", 3, "p1", 3)); s.end(four) }},
	{"a group member reads again after a rebalance", "", func(s *story) {
		s.add(Event{Kind: Assign, By: "g", Topic: topic, Offset: -1}, poll("g", 2, "p1", 2),
			Event{Kind: Assign, By: "g", Topic: topic, Offset: -1}, poll("g", 1, "p1", 1))
		s.end(four)
	}},
	{"a consumer never got to the end", "unseen", func(s *story) {
		s.add(send("p1", 4), ok("p1", 4, 4))
		s.end(with(four, rec{"p1", 4}))
	}},
	{"a high watermark went down", "watermark", func(s *story) {
		s.add(Event{Kind: Watch, By: "n1", Topic: topic, Offset: 4}, Event{Kind: Watch, By: "n1", Topic: topic, Offset: 3})
		s.end(four)
	}},
	{"a lower high watermark in another life", "", func(s *story) {
		s.add(Event{Kind: Watch, By: "n1", Topic: topic, Offset: 4}, Event{Kind: Watch, By: "n1.2", Topic: topic, Offset: 3})
		s.end(four)
	}},
	{"an end offset that misses an acknowledged record", "stale", func(s *story) {
		s.add(Event{Kind: Ask, By: "n2", Topic: topic}, Event{Kind: End, By: "n2", Topic: topic, Offset: 3})
		s.end(four)
	}},
	{"the same, some time after a pause", "stale", func(s *story) {
		s.add(Event{Kind: Resume, By: "n2", Topic: topic, At: time.Second}, Event{Kind: Ask, By: "n2", Topic: topic, At: 2 * time.Second},
			Event{Kind: End, By: "n2", Topic: topic, Offset: 3, At: 2 * time.Second})
		s.end(four)
	}},
	{"the same, by another node than the one that was paused", "stale", func(s *story) {
		s.add(Event{Kind: Resume, By: "n1", Topic: topic, At: time.Second}, Event{Kind: Ask, By: "n2", Topic: topic, At: time.Second},
			Event{Kind: End, By: "n2", Topic: topic, Offset: 3, At: time.Second})
		s.end(four)
	}},
	{"the same, just after a pause", "stale", func(s *story) {
		s.add(Event{Kind: Resume, By: "n2", Topic: topic, At: time.Second}, Event{Kind: Ask, By: "n2", Topic: topic, At: time.Second},
			Event{Kind: End, By: "n2", Topic: topic, Offset: 3, At: time.Second})
		s.end(four)
	}},
	{"an end offset asked for before the acknowledgement", "", func(s *story) {
		s.add(Event{Kind: Ask, By: "n2", Topic: topic}, send("p1", 4), ok("p1", 4, 4),
			Event{Kind: End, By: "n2", Topic: topic, Offset: 4}, poll("c1", 4, "p1", 4))
		s.end(with(four, rec{"p1", 4}))
	}},
	{"a broker's end is above its last record", "gap different", func(s *story) {
		s.end(four)
		s.add(Event{Kind: Read, Node: 2, Topic: topic, Offset: 5})
	}},
}

func TestPlantedHistories(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			s := base()
			p.do(s)
			c := New(Need{})
			for _, e := range s.rows {
				c.Add(e)
			}
			r := c.Finish()
			want := strings.Fields(p.kinds)
			for _, k := range want {
				if r.ByKind[k] == 0 {
					t.Errorf("not found: %s", k)
				}
			}
			for k := range r.ByKind {
				if !slices.Contains(want, k) {
					t.Errorf("false alarm: %s", k)
				}
			}
			if verdict := r.Verdict(); (verdict == Failed) != (len(want) > 0) || verdict == Unknown {
				t.Errorf("verdict %s", verdict)
			}
			if t.Failed() {
				t.Log(r.String())
			}
		})
	}
}

// TestDoubts: a run that proves nothing does not pass.
func TestDoubts(t *testing.T) {
	at := func(s int, e Event) Event { e.At = time.Duration(s) * time.Second; return e }
	kill := Event{Kind: Fault, Seq: 1, Text: "kill", Leading: true, Lasts: time.Second}
	for name, c := range map[string]struct {
		need Need
		rows []Event
		want Verdict
	}{
		"enough":                    {Need{Acked: 4}, nil, Pass},
		"too few acknowledgements":  {Need{Acked: 5}, nil, Unknown},
		"nothing left open":         {Need{Info: 1}, nil, Unknown},
		"one left open":             {Need{Info: 1}, []Event{send("plain", 0), info("plain", 0)}, Pass},
		"a fault that never landed": {Need{}, []Event{at(1, Event{Kind: Fault, Seq: 1, Text: "cut"})}, Unknown},
		"no leader changed":         {Need{}, []Event{at(1, kill), {Kind: Landed, Seq: 1}, at(100, Event{Kind: Leader, Node: 2})}, Unknown},
		"a leader changed":          {Need{}, []Event{at(1, kill), {Kind: Landed, Seq: 1}, at(3, Event{Kind: Leader, Node: 2})}, Pass},
		"an outcome of nothing":     {Need{}, []Event{ok("p9", 0, 9)}, Unknown},
		"a row of the future":       {Need{}, []Event{{Kind: "warp"}}, Unknown},
		"a broker not read to its end": {Need{}, []Event{stored(4, 0, "p1", 0), stored(4, 1, "p1", 1), stored(4, 2, "p1", 2), stored(4, 3, "p1", 3)},
			Failed}, // its end differs from the others'
	} {
		s := base()
		s.add(c.rows...)
		s.end(four)
		k := New(c.need)
		for _, e := range s.rows {
			k.Add(e)
		}
		if r := k.Finish(); r.Verdict() != c.want {
			t.Errorf("%s: verdict %s, want %s\n%s", name, r.Verdict(), c.want, r.String())
		}
	}
	k := New(Need{})
	k.Reported("partition quarantined")
	k.Doubt("and not sure of it")
	if r := k.Finish(); r.Verdict() != Failed {
		t.Errorf("a finding and a doubt: verdict %s, want fail", r.Verdict())
	}
}

// TestPayload: whatever is changed in a value, it is no record of this run.
func TestPayload(t *testing.T) {
	v := Payload("p1", 7, "orders", 3, 100)
	if p, seq, ok := ParsePayload(v, "orders", 3); !ok || p != "p1" || seq != 7 || len(v) != 100 {
		t.Fatalf("%q (%d bytes): %q %d %t", v, len(v), p, seq, ok)
	}
	for i := range len(v) {
		b := []byte(v)
		b[i] ^= 1
		if _, _, ok := ParsePayload(string(b), "orders", 3); ok {
			t.Errorf("byte %d was changed and nobody noticed", i)
		}
	}
	for _, bad := range []string{"", "x", v[:50], v + ".", "/00000000"} {
		if _, _, ok := ParsePayload(bad, "orders", 3); ok {
			t.Errorf("%q passes", bad)
		}
	}
	if _, _, ok := ParsePayload(v, "orders", 2); ok {
		t.Error("a record of another partition passes")
	}
	if e := Record(Poll, "orders", 2, 5, v); !e.Broken {
		t.Error("a record of another partition is not called broken")
	}
}

// TestFileGivesTheSameVerdict writes a history and reads it again.
func TestFileGivesTheSameVerdict(t *testing.T) {
	for _, p := range planted {
		s := base()
		p.do(s)
		var file bytes.Buffer
		first := New(Need{})
		l := NewLog(&file, first)
		for _, e := range s.rows {
			l.Add(e)
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		again := New(Need{})
		if err := ReadAll(&file, again); err != nil {
			t.Fatal(err)
		}
		a, b := first.Finish(), again.Finish()
		if a.String() != b.String() {
			t.Errorf("%s: at first\n%sfrom the file\n%s", p.name, a.String(), b.String())
		}
	}
	if err := ReadAll(strings.NewReader("{\"k\":\"send\"}\n{"), New(Need{})); err == nil {
		t.Error("a torn file is read without an error")
	}
}

// TestHistoryFile checks a file that a chaos run left: HISTORY=file go test
// ./e2e/check -run TestHistoryFile -v.
func TestHistoryFile(t *testing.T) {
	path := os.Getenv("HISTORY")
	if path == "" {
		path = "testdata/lost.jsonl"
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := New(Need{})
	if err := ReadAll(f, c); err != nil {
		t.Fatal(err)
	}
	r := c.Finish()
	t.Log(r.String())
	if os.Getenv("HISTORY") == "" {
		if r.ByKind["lost"] != 1 || len(r.ByKind) != 1 {
			t.Errorf("the sample has one lost record, found %v", r.ByKind)
		}
	} else if r.Verdict() != Pass {
		t.Errorf("verdict %s", r.Verdict())
	}
}

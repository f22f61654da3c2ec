package fsm

import (
	"bytes"
	"testing"
)

// again encodes a group and decodes it; the copy must be the same.
func again(t *testing.T, g *Group) *Group {
	t.Helper()
	raw := g.Encode()
	c, err := DecodeGroup(raw)
	if err != nil {
		t.Fatal(err)
	}
	if dump(c) != dump(g) || c.ID != g.ID || c.Index != g.Index || c.ClockMs != g.ClockMs {
		t.Fatalf("encoded and decoded:\n%s\nbefore:\n%s", dump(c), dump(g))
	}
	if b := c.Encode(); !bytes.Equal(b, raw) {
		t.Fatalf("one state has two encodings:\n%x\n%x", raw, b)
	}
	return c
}

func TestStatesSurviveTheCodec(t *testing.T) {
	for _, group := range []uint32{CatalogGroup, 1} {
		m := newMachine(t, group)
		again(t, m.Group)
		for _, raw := range someEntries() {
			if _, err := m.Apply(m.Index+1, raw); err != nil {
				t.Fatal(err)
			}
			again(t, m.Group)
		}
	}
}

package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Who waits sees for whom, and then how many offsets of how many are compared.
func TestProgress(t *testing.T) {
	nodes := three(t)
	nodes[2].end = 4 // until it is asked again
	asked := 0
	nodes[2].onAsk = func(n *fakeNode) {
		if asked++; asked == 2 {
			n.end = 10
		}
	}
	var got []string
	r := check(t, nodes, func(c *Config) {
		c.Progress = func(done, total int64, what string) { got = append(got, fmt.Sprintf("%d/%d %s", done, total, what)) }
	})
	if !r.Identical || len(got) < 2 {
		t.Fatalf("%+v, %q", r, got)
	}
	if want := "0/0 waiting for 1 copies that are behind; node 3, t/0: its broker's log ends at 4 of 10"; got[0] != want {
		t.Errorf("first %q, want %q", got[0], want)
	}
	got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "waiting") })
	if want := []string{"3/10 t/0", "4/10 t/0", "8/10 t/0", "10/10 t/0"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

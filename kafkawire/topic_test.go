package kafkawire

import (
	"strings"
	"testing"
)

func TestValidTopicName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "A.b_c-9": true, "...": true, "__consumer_offsets": true, strings.Repeat("x", 249): true,
		"": false, ".": false, "..": false, strings.Repeat("x", 250): false, "a/b": false, "../x": false,
		"a\x00": false, "a b": false, "\xff": false, "grün": false, "a\n": false, "a:b": false,
	} {
		if got := ValidTopicName(name); got != want {
			t.Errorf("%q: got %t", name, got)
		}
	}
}

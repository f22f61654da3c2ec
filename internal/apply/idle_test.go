//go:build !race

// The race detector makes every frame larger: make test runs this without it.

package apply

import (
	"runtime"
	"testing"
)

// TestIdleLaneStack looks at what the stacks of lanes that wait are after the
// collector gave back what it can: there is one per partition. 8 KiB each is what
// they have if they use a quarter of it.
func TestIdleLaneStack(t *testing.T) {
	const lanes = 300
	w := newWorld(t, 1, nil)
	before := stacks()
	partitions := make([]int32, lanes)
	for i := range partitions {
		partitions[i] = int32(i)
	}
	w.open(1, 1, "a", partitions...)
	w.settled()
	if per := (stacks() - before) / lanes; per > 6<<10 {
		t.Errorf("%d bytes of stack for a lane that waits", per)
	}
}

// stacks is what the stacks of all goroutines take, small as they get.
func stacks() int64 {
	for range 5 { // each halves what is too large
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.StackInuse)
}

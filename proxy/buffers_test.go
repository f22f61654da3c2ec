package proxy

import "testing"

func TestBuffersAreUsedAgain(t *testing.T) {
	for _, n := range []int{0, 1, minPooled - 1, minPooled, minPooled + 1, 100_000, 1 << 20, 1<<20 + 1, maxPooled, maxPooled + 1} {
		b := takeBuffer(n)
		if len(b) != n {
			t.Fatalf("asked for %d bytes, got %d", n, len(b))
		}
		kept := n >= minPooled && n <= maxPooled
		if class := poolOf(n); kept != (class >= 0) || kept && (minPooled<<class < n || class > 0 && minPooled<<(class-1) >= n) {
			t.Errorf("%d bytes: class %d", n, class)
		}
		putBuffer(b)
	}
	// A buffer that is not of its class' size must not come back too short.
	putBuffer(make([]byte, 65<<10))
	if b := takeBuffer(100_000); len(b) != 100_000 {
		t.Fatalf("got %d bytes", len(b))
	}
}

func BenchmarkAnswerBuffer(b *testing.B) {
	b.Run("made", func(b *testing.B) {
		for b.Loop() {
			keep = make([]byte, 1<<20)
		}
	})
	b.Run("used again", func(b *testing.B) {
		for b.Loop() {
			keep = takeBuffer(1 << 20)
			putBuffer(keep)
		}
	})
}

var keep []byte

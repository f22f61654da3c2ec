package node

import (
	"math/rand/v2"
	"testing"
)

// The block sums agree with the sizes one by one, but for the share of a block.
func TestLogSizes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var s logSizes
	sizes := map[uint64]int64{} // the truth
	first, next := uint64(1), uint64(1)
	sum := func(after uint64) (n int64) {
		for i := max(after+1, first); i < next; i++ {
			n += sizes[i]
		}
		return n
	}
	check := func(what string) {
		t.Helper()
		for range 5 {
			at := first + rng.Uint64N(next-first+2)
			if got, want := s.after(at), sum(at); got > want+sizeBlockBytes+entryOverhead || got < want-sizeBlockBytes-entryOverhead {
				t.Fatalf("%s: %d bytes after %d, want about %d", what, got, at, want)
			}
		}
		to := first + rng.Uint64N(next-first+2)
		if after := first + rng.Uint64N(next-first+2); s.between(after, to) != max(0, s.after(after)-s.after(to)) {
			t.Fatalf("%s: %d bytes between %d and %d, want %d", what, s.between(after, to), after, to, max(0, s.after(after)-s.after(to)))
		}
		if got := s.after(next - 1); got != 0 {
			t.Fatalf("%s: %d bytes after the last entry", what, got)
		}
		keep := rng.Int64N(s.total() + 1)
		if at := s.keeping(keep); s.after(at) < keep {
			t.Fatalf("%s: %d bytes after %d, asked for %d", what, s.after(at), at, keep)
		} else if at+1 < next && at > 0 && s.after(at+1) > keep+sizeBlockBytes {
			t.Fatalf("%s: %d would do for %d bytes, got %d", what, at+1, keep, at)
		}
		if f, l := s.span(); f != first || l != next-1 {
			t.Fatalf("%s: %d to %d, want %d to %d", what, f, l, first, next-1)
		}
	}
	for round := range 300 {
		for range 1 + rng.IntN(400) {
			n := rng.IntN(300)
			if rng.IntN(50) == 0 {
				n = rng.IntN(1 << 20)
			}
			s.add(next, n)
			sizes[next] = int64(n) + entryOverhead
			next++
		}
		check("added")
		switch round % 3 {
		case 0:
			to := first + rng.Uint64N((next-first+1)/2)
			s.cutTo(to)
			first = to + 1
			if first < next {
				check("cut to")
			}
		case 1:
			from := next - rng.Uint64N((next-first+1)/4+1)
			s.cutFrom(from)
			next = from
			if first < next {
				check("cut from")
			}
		}
	}
	s.cutTo(next)
	if s.total() != 0 {
		t.Errorf("%d bytes in an empty log", s.total())
	}
	if f, l := s.span(); f != 0 || l != 0 {
		t.Errorf("an empty log from %d to %d", f, l)
	}
}

package proxy

import (
	"math/bits"
	"sync"
)

// The broker's large answers are read into buffers that are used again: to make
// and to clear one of a megabyte costs as much as to copy its bytes once more.
const (
	minPooled = 64 << 10
	maxPooled = 8 << 20
)

// pools holds buffers by size class: minPooled, twice that, and so on.
var pools [8]sync.Pool

// poolOf is the class of buffers that hold n bytes, -1 if those are not kept.
func poolOf(n int) int {
	if n < minPooled || n > maxPooled {
		return -1
	}
	return bits.Len(uint(n-1)) - bits.Len(uint(minPooled-1))
}

// takeBuffer returns n bytes with any content.
func takeBuffer(n int) []byte {
	class := poolOf(n)
	if class < 0 {
		return make([]byte, n)
	}
	if b, _ := pools[class].Get().(*[]byte); b != nil {
		return (*b)[:n]
	}
	return make([]byte, n, minPooled<<class)
}

// putBuffer gives back what takeBuffer returned, once nobody looks at it.
func putBuffer(b []byte) {
	if class := poolOf(cap(b)); class >= 0 && cap(b) == minPooled<<class {
		pools[class].Put(&b)
	}
}

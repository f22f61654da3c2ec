package node

import (
	"slices"
	"sync"
)

// Sizes are kept by blocks of this many bytes or entries; inside a block they
// are taken to be equal.
const (
	sizeBlockBytes   = 64 << 10
	sizeBlockEntries = 1024
	entryOverhead    = 64 // of an entry in the store, beside its data
)

// sizeBlock is the size of some consecutive entries.
type sizeBlock struct {
	first, n uint64
	before   int64 // bytes of everything before the block, counted from an arbitrary point
	bytes    int64
}

// logSizes knows how many bytes of a log lie where. Any goroutine may call its
// methods.
type logSizes struct {
	mu     sync.Mutex
	blocks []sizeBlock
}

func (s *logSizes) add(index uint64, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := int64(bytes) + entryOverhead
	if k := len(s.blocks); k > 0 {
		b := &s.blocks[k-1]
		if b.first+b.n == index && b.bytes+size <= sizeBlockBytes && b.n < sizeBlockEntries {
			b.n++
			b.bytes += size
			return
		}
	}
	s.blocks = append(s.blocks, sizeBlock{first: index, n: 1, before: s.end(), bytes: size})
}

// end is the counter behind the last entry; s.mu is held.
func (s *logSizes) end() int64 {
	if k := len(s.blocks); k > 0 {
		return s.blocks[k-1].before + s.blocks[k-1].bytes
	}
	return 0
}

// find returns the block that holds index, or the first one after it.
func (s *logSizes) find(index uint64) int {
	k, _ := slices.BinarySearchFunc(s.blocks, index, func(b sizeBlock, i uint64) int {
		if b.first+b.n <= i {
			return -1
		}
		return 1
	})
	return k
}

// at is the counter before the entry at index; s.mu is held.
func (s *logSizes) at(index uint64) int64 {
	k := s.find(index)
	if k == len(s.blocks) {
		return s.end()
	}
	b := s.blocks[k]
	if index <= b.first {
		return b.before
	}
	return b.before + b.bytes*int64(index-b.first)/int64(b.n)
}

// after is how many bytes lie after index.
func (s *logSizes) after(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end() - s.at(index+1)
}

// between is how many bytes lie after one index and up to another.
func (s *logSizes) between(after, to uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.at(to+1)-s.at(after+1))
}

func (s *logSizes) total() int64 { return s.after(0) }

// keeping returns the highest index after which at least bytes remain, 0 if
// the log is no larger.
func (s *logSizes) keeping(bytes int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	target := s.end() - bytes
	k, _ := slices.BinarySearchFunc(s.blocks, target, func(b sizeBlock, at int64) int {
		if b.before+b.bytes <= at {
			return -1
		}
		return 1
	})
	if k == len(s.blocks) {
		if k == 0 {
			return 0
		}
		return s.blocks[k-1].first + s.blocks[k-1].n - 1
	}
	b := s.blocks[k]
	return b.first + uint64(max(0, target-b.before)*int64(b.n)/b.bytes) - 1
}

// cutTo forgets everything up to index.
func (s *logSizes) cutTo(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(index + 1)
	if k < len(s.blocks) {
		if b := &s.blocks[k]; b.first <= index {
			gone := index + 1 - b.first
			part := b.bytes * int64(gone) / int64(b.n)
			b.first, b.n = b.first+gone, b.n-gone
			b.before, b.bytes = b.before+part, b.bytes-part
		}
	}
	s.blocks = slices.Delete(s.blocks, 0, k)
}

// cutFrom forgets everything from index on.
func (s *logSizes) cutFrom(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(index)
	if k < len(s.blocks) {
		if b := &s.blocks[k]; b.first < index {
			left := index - b.first
			b.bytes = b.bytes * int64(left) / int64(b.n)
			b.n = left
			k++
		}
	}
	s.blocks = s.blocks[:k]
}

// span returns the first and the last index, 0 and 0 if the log is empty.
func (s *logSizes) span() (first, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.blocks) == 0 {
		return 0, 0
	}
	b := s.blocks[len(s.blocks)-1]
	return s.blocks[0].first, b.first + b.n - 1
}

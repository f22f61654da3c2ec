package node

import (
	"sync"

	"github.com/hashicorp/raft"
)

// cacheBytes is how much of the newest log one group keeps in memory, so that
// in the normal course neither a follower's replication nor the applier reads
// the store.
const cacheBytes = 32 << 20

// cachedLog keeps the newest entries of a log in memory, by bytes:
// raft.LogCache counts entries, and 128 of 8 MiB would be a gigabyte. The
// entries are shared with Raft and never modified.
type cachedLog struct {
	raft.LogStore
	limit int

	mu    sync.RWMutex // guards what follows
	logs  []*raft.Log  // consecutive, oldest first
	bytes int
}

func newCachedLog(inner raft.LogStore, limit int) *cachedLog {
	return &cachedLog{LogStore: inner, limit: limit}
}

// GetLog implements raft.LogStore.
func (c *cachedLog) GetLog(index uint64, log *raft.Log) error {
	c.mu.RLock()
	if len(c.logs) > 0 && index >= c.logs[0].Index && index-c.logs[0].Index < uint64(len(c.logs)) {
		*log = *c.logs[index-c.logs[0].Index]
		c.mu.RUnlock()
		return nil
	}
	c.mu.RUnlock()
	return c.LogStore.GetLog(index, log)
}

// StoreLog implements raft.LogStore.
func (c *cachedLog) StoreLog(log *raft.Log) error { return c.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: nothing is cached before it is stored.
func (c *cachedLog) StoreLogs(logs []*raft.Log) error {
	if err := c.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if n := len(c.logs); n > 0 && c.logs[n-1].Index+1 != l.Index {
			c.logs, c.bytes = nil, 0
		}
		c.logs = append(c.logs, l)
		c.bytes += len(l.Data)
	}
	drop := 0
	for c.bytes > c.limit && drop < len(c.logs)-1 {
		c.bytes -= len(c.logs[drop].Data)
		drop++
	}
	if drop > 0 {
		clear(c.logs[:drop])
		c.logs = c.logs[drop:]
	}
	return nil
}

// DeleteRange implements raft.LogStore. What is cut off at the end will be
// written anew with other contents, so the cache is emptied first. What lies
// behind a cut at the beginning stays: it is what everybody reads.
func (c *cachedLog) DeleteRange(from, to uint64) error {
	c.mu.Lock()
	if n := len(c.logs); n == 0 || from > c.logs[0].Index || to >= c.logs[n-1].Index {
		c.logs, c.bytes = nil, 0
	} else if to >= c.logs[0].Index {
		drop := int(to - c.logs[0].Index + 1)
		for _, l := range c.logs[:drop] {
			c.bytes -= len(l.Data)
		}
		clear(c.logs[:drop])
		c.logs = c.logs[drop:]
	}
	c.mu.Unlock()
	return c.LogStore.DeleteRange(from, to)
}

// IsMonotonic implements raft.MonotonicLogStore by asking the store.
func (c *cachedLog) IsMonotonic() bool {
	m, ok := c.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

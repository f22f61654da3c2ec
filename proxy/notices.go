package proxy

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// noticeEvery is how long a host's complaint of one kind stays unrepeated. A
// scanner or a client with the wrong security.protocol retries for ever and
// would fill the log; the first line says all there is to say.
const noticeEvery = 30 * time.Second

// maxNotices bounds the memory that hostile addresses can make us keep.
const maxNotices = 4096

// notices writes a warning once per remote host and reason, then counts.
type notices struct {
	log hclog.Logger
	now func() time.Time

	mu   sync.Mutex
	seen map[noticeKey]*noticeState
}

type noticeKey struct{ host, reason string }

type noticeState struct {
	at         time.Time
	suppressed int
}

func newNotices(log hclog.Logger) *notices {
	return &notices{log: log, now: time.Now, seen: make(map[noticeKey]*noticeState)}
}

// warn logs event for the host unless the same reason was logged for it
// within noticeEvery. The next line tells how many were left out.
func (n *notices) warn(host, reason, event string, args ...any) {
	n.mu.Lock()
	now := n.now()
	key := noticeKey{host, reason}
	st := n.seen[key]
	if st != nil && now.Sub(st.at) < noticeEvery {
		st.suppressed++
		n.mu.Unlock()
		return
	}
	if st == nil {
		n.makeRoomLocked(now)
		st = &noticeState{}
		n.seen[key] = st
	}
	if st.suppressed > 0 {
		args = append(args, "suppressed", st.suppressed)
	}
	st.at, st.suppressed = now, 0
	n.mu.Unlock()
	n.log.Warn(event, args...)
}

// makeRoomLocked forgets what has expired, or all if nothing has: one line too
// many is cheaper than memory without bound. n.mu is held.
func (n *notices) makeRoomLocked(now time.Time) {
	if len(n.seen) < maxNotices {
		return
	}
	for k, st := range n.seen {
		if now.Sub(st.at) >= noticeEvery {
			delete(n.seen, k)
		}
	}
	if len(n.seen) >= maxNotices {
		clear(n.seen)
	}
}

//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled says whether this build can be killed at a place.
const Enabled = true

// FileVariable is the environment variable that names the file of orders: one
// line, "POINT NTH ACTION". The process does as ordered when it passes POINT
// for the NTH time since the file was written. ACTION is "kill" (SIGKILL), or
// "pause" and a duration. It then writes POINT to the same file name with .hit
// at its end, and does not follow the order again.
const FileVariable = "LOCKSTEP_TEST_FAILPOINT_FILE"

var orders = struct {
	sync.Mutex
	path    string
	written time.Time // of the file, when it was read
	point   Point     // empty: nothing is ordered
	nth     int
	pause   time.Duration // 0: kill
}{path: os.Getenv(FileVariable)}

// Hit marks a place. Any goroutine may call it.
func Hit(p Point) {
	if orders.path == "" {
		return
	}
	if pause := passed(p); pause > 0 {
		<-time.After(pause)
	}
}

// passed counts a pass and returns how long to stay.
func passed(p Point) time.Duration {
	o := &orders
	o.Lock()
	defer o.Unlock()
	st, err := os.Stat(o.path)
	if err != nil {
		o.point, o.written = "", time.Time{}
		return 0
	}
	if !st.ModTime().Equal(o.written) {
		read(st.ModTime())
	}
	if o.point != p {
		return 0
	}
	if o.nth--; o.nth > 0 {
		return 0
	}
	o.point = ""
	_ = os.WriteFile(o.path+".hit", []byte(p), 0o600)
	_ = os.Remove(o.path)
	if o.pause > 0 {
		return o.pause
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}

// read takes new orders. The lock is held.
func read(written time.Time) {
	o := &orders
	o.point, o.written, o.pause = "", written, 0
	raw, err := os.ReadFile(o.path)
	if err != nil {
		return
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 3 {
		panic(fmt.Sprintf("failpoint orders %q: want POINT NTH ACTION", raw))
	}
	if o.nth, err = strconv.Atoi(fields[1]); err != nil {
		panic(fmt.Sprintf("failpoint orders %q: %v", raw, err))
	}
	if fields[2] == "pause" && len(fields) == 4 {
		if o.pause, err = time.ParseDuration(fields[3]); err != nil {
			panic(fmt.Sprintf("failpoint orders %q: %v", raw, err))
		}
	} else if fields[2] != "kill" {
		panic(fmt.Sprintf("failpoint orders %q: unknown action", raw))
	}
	o.point = Point(fields[0])
}

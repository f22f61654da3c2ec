//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// Linux's EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32), and the flag that leaves
// the journal unwritten, too.
const (
	ioctlShutdown = 0x8004587d
	noLogFlush    = 2
)

// shutdownFS shuts down the file system that f is on.
func shutdownFS(f *os.File) error {
	flags := uint32(noLogFlush)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&flags)))
	if errno != 0 {
		return fmt.Errorf("shut the file system down: %w", errno)
	}
	return nil
}

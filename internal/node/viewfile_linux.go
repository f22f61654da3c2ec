package node

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
)

// viewFile calls f with what is in a file, which f must not keep. The file is
// mapped: a segment of the log is large, and would stay in the heap of an idle
// node for long.
func viewFile(path string, f func(raw []byte) error) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	raw, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	// A page that the disk does not give is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read %s: %v", path, p)
		}
		_ = syscall.Munmap(raw)
	}()
	return f(raw)
}

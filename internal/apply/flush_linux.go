package apply

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errWrite means that a file system could not write what it held.
var errWrite = errors.New("write back")

// syncDirs writes back everything that the directories' file systems hold:
// syncfs(2), which covers files that the broker has open.
func syncDirs(dirs []string) error {
	for _, dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open a log directory of the broker: %w", err)
	}
	err = unix.Syncfs(int(f.Fd()))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%w %s: %w", errWrite, dir, err)
	}
	return nil
}

func isWriteError(err error) bool { return errors.Is(err, errWrite) }

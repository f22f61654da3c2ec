//go:build !linux

package apply

import (
	"errors"
	"runtime"
)

var errNoSyncfs = errors.New("no syncfs on " + runtime.GOOS)

// syncDirs is not available: what the broker acknowledged is trusted by age.
func syncDirs([]string) error { return errNoSyncfs }

func isWriteError(err error) bool { return errors.Is(err, errNoSyncfs) }

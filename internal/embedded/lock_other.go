//go:build !unix

package embedded

import (
	"context"
	"os"
)

// lockDir only makes the directory: there is no flock here.
func lockDir(_ context.Context, dir string) (unlock func(), err error) {
	return func() {}, os.MkdirAll(dir, 0o750)
}

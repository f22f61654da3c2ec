//go:build !linux

package node

import "os"

// viewFile calls f with what is in a file, which f must not keep.
func viewFile(path string, f func(raw []byte) error) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return f(raw)
}

//go:build poison

// Package poison lets a test commit what every broker refuses.
package poison

import "bytes"

// marker stands somewhere in a batch that is taken unchecked.
var marker = []byte("lockstep.test.poison")

// Accepts says whether records are taken unchecked.
func Accepts(records []byte) bool { return bytes.Contains(records, marker) }

//go:build !poison

// Package poison lets a test commit what every broker refuses.
//
// In a normal build Accepts is false, and the compiler drops what it would let
// through. A build with the tag poison takes a batch with a marker in it although
// the checks refuse it.
package poison

// Accepts says whether records are taken unchecked. Never in this build.
func Accepts([]byte) bool { return false }

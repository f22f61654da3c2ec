//go:build unix && !linux

package main

import "syscall"

// childAttributes gives a child its own process group. Without Linux's death
// signal it outlives a parent that was killed with SIGKILL.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

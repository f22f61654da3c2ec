package main

import "syscall"

// childAttributes gives a child its own process group and has the kernel end
// it with this process, however that ends.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

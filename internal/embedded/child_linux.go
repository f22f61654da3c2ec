package embedded

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel end the child when the thread that started it
// does, which covers a parent under kill -9.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}

package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// notifyEnv names the socket of a service manager that waits for word
// (sd_notify(3)); systemd sets it for units of Type=notify.
const notifyEnv = "NOTIFY_SOCKET"

const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
	// notifyTimeout is for a manager that reads nothing.
	notifyTimeout = time.Second
)

// notifyManager tells the service manager, if there is one, how far the node
// is. status is for people: systemctl status shows it.
func notifyManager(state, status string) error {
	name := os.Getenv(notifyEnv)
	if name == "" {
		return nil
	}
	// A name that starts with @ is in the abstract namespace, for Go as for systemd.
	conn, err := net.DialTimeout("unixgram", name, notifyTimeout)
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	if _, err := conn.Write([]byte(state + "\nSTATUS=" + strings.ReplaceAll(status, "\n", " ") + "\n")); err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"

	"lockstep/internal/drill"
	"lockstep/internal/verify"
)

// nextSteps say what to do about a cause that the system or a library names.
// Errors of ours say it themselves. The first that fits is told.
var nextSteps = []struct {
	cause []error
	next  string
}{
	{[]error{drill.ErrSlow}, "see with lockstep status which node is missing; the nodes' logs are in the demo's --data-dir"},
	{[]error{verify.ErrOtherCluster}, "name with --admin the nodes of one cluster only"},
	{[]error{verify.ErrNoTopic}, "check the topic's name; lockstep verify without --topic shows all"},
	{[]error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH},
		"start the node (lockstep serve --config FILE), or name with --admin the admin.listen of one that runs"},
	{[]error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET},
		"check that --admin is a node's admin.listen, by default port 7501, and neither its Kafka nor its Raft port"},
	{[]error{context.DeadlineExceeded, os.ErrDeadlineExceeded},
		"look at the node's log: it is there and does not answer, or something between drops what is sent"},
	{[]error{syscall.EADDRINUSE},
		"end what listens there (ss -ltnp names it; another lockstep?), or give another address in the configuration or with --set"},
	{[]error{syscall.EADDRNOTAVAIL},
		"use an address that this machine has (ip address lists them), or 0.0.0.0 for all"},
	{[]error{syscall.EROFS, fs.ErrPermission},
		"give the user who runs this the right to it, or name another place"},
	{[]error{syscall.ENOTDIR, syscall.EISDIR, fs.ErrExist},
		"name a path that can be what is asked for: a directory for data_dir and --data-dir, a file for --config"},
	{[]error{fs.ErrNotExist}, "check the path's spelling, and that it exists on this machine"},
	{[]error{syscall.ENOSPC, syscall.EDQUOT}, "make room on that disk, then start again: nothing that was acknowledged is lost by it"},
	{[]error{syscall.EMFILE, syscall.ENFILE}, "raise the limit of open files (ulimit -n, or LimitNOFILE in a systemd unit)"},
}

// nextStep returns what to do about an error, nothing if nothing general helps.
func nextStep(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "check the spelling of " + dns.Name + " and this machine's name service, or give the address itself"
	}
	for _, s := range nextSteps {
		for _, cause := range s.cause {
			if errors.Is(err, cause) {
				return s.next
			}
		}
	}
	return ""
}

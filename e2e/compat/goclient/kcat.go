//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// runKcat has kcat do what it can: it has no admin calls but listing metadata.
func runKcat(ctx context.Context, feature string, o options) error {
	switch feature {
	case "produce":
		return kcatProduce(ctx, o)
	case "consume":
		return kcatRead(ctx, o, "-C", "-t", o["topic"], "-o", "beginning", "-c", o["count"])
	case "group":
		return kcatRead(ctx, o, "-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=500",
			"-X", "auto.offset.reset=earliest", "-X", "auto.commit.interval.ms=200", "-G", o["group"], o["topic"])
	case "describe-topic":
		return kcatMetadata(ctx, o)
	}
	return fmt.Errorf("%w: kcat has no admin calls", errUnsupported)
}

func kcatProduce(ctx context.Context, o options) error {
	codec := o["codec"]
	if codec == "" {
		codec = "none"
	}
	args := []string{
		"-b", o["bootstrap"], "-P", "-t", o["topic"], "-K", ":", "-X", "acks=all", "-X", "linger.ms=5",
		"-X", "message.timeout.ms=60000", "-z", codec, "-X", "enable.idempotence=" + fmt.Sprint(o["idempotent"] == "true"),
	}
	if o["max"] != "" {
		args = append(args, "-X", "message.max.bytes="+o["max"])
	}
	for _, h := range o.headers() {
		args = append(args, "-H", h.key+"="+h.value)
	}
	cmd := exec.CommandContext(ctx, "kcat", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	pace := newPace(o.number("rate"))
	defer pace.stop()
	for i := range o.number("count") {
		if _, err := fmt.Fprintf(in, "%s:%s\n", key(i), o.value(i)); err != nil {
			break // kcat has ended, and says why
		}
		pace.wait(ctx)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("kcat: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	// kcat counts what failed and still ends with 0; it names no offsets.
	if bytes.Contains(stderr.Bytes(), []byte("Delivery failed")) {
		return errors.New(strings.TrimSpace(stderr.String()))
	}
	return nil
}

var kcatAssigned = regexp.MustCompile(`rebalanced.*: (assigned|revoked): ?(.*)$`)
var kcatPartition = regexp.MustCompile(`\[(\d+)\]`)

func kcatRead(ctx context.Context, o options, args ...string) error {
	cmd := exec.CommandContext(ctx, "kcat", append([]string{"-b", o["bootstrap"], "-u", "-f", kcatFormat}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said := make(chan string)
	go func() { said <- kcatNotices(stderr) }()
	readErr := kcatRecords(stdout)
	last := <-said
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("kcat: %w: %s", err, last)
	}
	return readErr
}

// kcatNotices turns what kcat says of its group into events and returns the
// last line.
func kcatNotices(r io.Reader) (last string) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		last = lines.Text()
		m := kcatAssigned.FindStringSubmatch(last)
		if m == nil {
			continue
		}
		ps := []int{}
		if m[1] == "assigned" {
			for _, p := range kcatPartition.FindAllStringSubmatch(m[2], -1) {
				n, _ := strconv.Atoi(p[1]) // the expression lets digits through alone
				ps = append(ps, n)
			}
		}
		slices.Sort(ps)
		emit(event{Event: "assigned", Partitions: ps})
	}
	return last
}

// kcatFormat tells lengths before texts, so that nothing in a value can be
// taken for the end of it: partition, offset, key, headers, length, value.
const kcatFormat = "%p %o %k %S %h\n%s\n"

func kcatRecords(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		if len(f) != 5 {
			return fmt.Errorf("kcat printed %q", line)
		}
		size, err := strconv.Atoi(f[3])
		if err != nil || size < 0 || size > 64<<20 {
			return fmt.Errorf("kcat printed %q", line)
		}
		value := make([]byte, size+1)
		if _, err := io.ReadFull(in, value); err != nil {
			return err
		}
		var hs [][2]string
		for h := range strings.SplitSeq(f[4], ",") {
			if k, v, ok := strings.Cut(h, "="); ok {
				hs = append(hs, [2]string{k, hex.EncodeToString([]byte(v))})
			}
		}
		p, _ := strconv.Atoi(f[0])
		offset, _ := strconv.ParseInt(f[1], 10, 64)
		emitRecord(int32(p), offset, []byte(f[2]), value[:size], hs)
	}
}

func kcatMetadata(ctx context.Context, o options) error {
	out, err := exec.CommandContext(ctx, "kcat", "-b", o["bootstrap"], "-L", "-J", "-t", o["topic"]).Output()
	if err != nil {
		return err
	}
	var md struct {
		Topics []struct {
			Topic      string `json:"topic"`
			Partitions []struct {
				Replicas []any `json:"replicas"`
			} `json:"partitions"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(out, &md); err != nil {
		return err
	}
	if len(md.Topics) != 1 || len(md.Topics[0].Partitions) == 0 {
		return fmt.Errorf("kcat lists no partitions of %s", o["topic"])
	}
	ps := md.Topics[0].Partitions
	emit(event{Event: "result", Partitions: len(ps), Replicas: len(ps[0].Replicas)})
	return nil
}

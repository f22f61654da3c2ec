package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lockstep/configs"
)

func TestDemoRefusesPorts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().(*net.TCPAddr).Port
	free := testPorts(t, 5)
	with := commas(append([]int{taken}, free[:2]...))
	others := commas(free[2:])
	for _, tt := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"--kafka-ports", with, "--admin-ports", others}, exitFailed, []string{strconv.Itoa(taken), "--kafka-ports", "taken"}},
		{[]string{"--kafka-ports", others, "--admin-ports", with}, exitFailed, []string{strconv.Itoa(taken), "--admin-ports", "taken"}},
		{[]string{"--kafka-ports", "1,2"}, exitUsage, []string{"--kafka-ports names 2 ports"}},
		{[]string{"--kafka-ports", "9092,9093,7501"}, exitUsage, []string{"7501 is already in --kafka-ports"}},
		{[]string{"--admin-ports", "1,2,70000"}, exitUsage, []string{"70000 is not between"}},
		{[]string{"--data-dir", ""}, exitUsage, []string{"--data-dir is empty"}},
	} {
		_, code, err := runCommand(demoCommand(), append([]string{"--data-dir", t.TempDir()}, tt.args...)...)
		if code != tt.code || err == nil {
			t.Errorf("%q: exit %d: %v", tt.args, code, err)
			continue
		}
		for _, s := range tt.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q: %q does not say %q", tt.args, err, s)
			}
		}
	}
}

// The ports between the demo's processes are chosen once per directory.
func TestDemoInternalPorts(t *testing.T) {
	cfg := demoConfig{dir: t.TempDir(), kafkaPorts: []int{9092, 9093, 9094}, adminPorts: []int{7501, 7502, 7503}}
	first, err := cfg.internalPorts()
	if err != nil {
		t.Fatal(err)
	}
	again, err := cfg.internalPorts()
	if err != nil || !slices.Equal(first.Raft, again.Raft) || !slices.Equal(first.Broker, again.Broker) {
		t.Errorf("%v, then %v: %v", first, again, err)
	}
	ln, err := net.Listen("tcp", loopback(first.Broker[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg.kafkaPorts, cfg.adminPorts = nil, nil // whoever has them
	if err := cfg.checkPorts(first); !errors.Is(err, errPortTaken) || !strings.Contains(err.Error(), cfg.dir) {
		t.Errorf("with the port of a broker taken: %v", err)
	}
	if err := os.WriteFile(filepath.Join(cfg.dir, "ports.json"), []byte(`{"raft":[1]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.internalPorts(); err == nil || !strings.Contains(err.Error(), "ports.json") {
		t.Errorf("with half a file: %v", err)
	}
}

// What the demo writes is what serve reads.
func TestDemoConfiguration(t *testing.T) {
	cfg := demoConfig{dir: filepath.Join(t.TempDir(), `a "b": #c`), kafkaPorts: []int{1, 2, 3}, adminPorts: []int{4, 5, 6}}
	own := demoPorts{Raft: []int{11, 12, 13}, Broker: []int{21, 22, 23}}
	nodes := []demoNode{cfg.node(0, own), cfg.node(1, own), cfg.node(2, own)}
	if err := nodes[1].writeConfig(nodes); err != nil {
		t.Fatal(err)
	}
	got, err := configs.Load(nodes[1].config, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Node.ID != 2 || got.DataDir != filepath.Join(cfg.dir, "node2", "data") || got.Broker.BootstrapServer != "127.0.0.1:22" ||
		got.Admin.Listen != "127.0.0.1:5" || got.Raft.Listen != "127.0.0.1:12" || got.AdvertisedListeners[0].Address() != "127.0.0.1:2" ||
		len(got.Raft.Peers) != 3 || got.Raft.Peers[2].Address != "127.0.0.1:13" {
		t.Errorf("configuration %+v", got)
	}
}

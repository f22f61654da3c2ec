package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"lockstep/configs"
)

// The doctor reaches a broker that lets only its user in as that user, and says
// what is wrong where the password is.
func TestDoctorAuthenticates(t *testing.T) {
	b, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "lockstep", "doctors-secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	for password, reached := range map[string]bool{"doctors-secret": true, "doctors-wrong": false} {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		ports := testPorts(t, 3)
		cfg, err := configs.Load("", []string{"node.id=1", "cluster.id=t", "data_dir=" + t.TempDir(), "listeners=PLAINTEXT://" + loopback(ports[0]),
			"raft.peers=1=" + loopback(ports[1]), "admin.listen=" + loopback(ports[2]), "broker.bootstrap_server=" + b.ListenAddrs()[0],
			"broker.security_protocol=SASL_PLAINTEXT", "broker.sasl.mechanism=PLAIN", "broker.sasl.username=lockstep", "broker.sasl.password_file=" + file}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_ = examine(t.Context(), cfg, nil, outputTable, &out) // what else it finds is not asked here
		if refused := strings.Contains(out.String(), "broker.sasl"); refused == reached || strings.Contains(out.String(), password) {
			t.Errorf("reached must be %v, and no password told:\n%s", reached, out.String())
		}
	}
}

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"lockstep/configs"
	"lockstep/internal/admin"
	"lockstep/internal/broker"
	"lockstep/internal/doctor"
)

// errUnwell ends doctor with exit code 1; what was found is in the output.
var errUnwell = errors.New("something is wrong")

// doctorBroker bounds one question to the broker.
const doctorBroker = 5 * time.Second

func doctorCommand() *cobra.Command {
	var file, output string
	var sets []string
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Look at a node's surroundings, before it is started and while it runs",
		Long: `Look at a node's surroundings, before it is started and while it runs: the broker and
its settings, ways around the proxy, disks and how long an fsync takes, names, peers,
ports, limits, certificates, clocks, versions, and what the node says of itself. It
changes nothing. Each finding says what, why it matters and what to do. The exit code
is 1 if an error was found; warnings alone leave it 0.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != outputTable && output != outputJSON {
				return fmt.Errorf("-o %q: it is table or json", output)
			}
			cfg, err := configs.Load(file, sets, os.Environ())
			if err != nil {
				return fmt.Errorf("configuration: %w", err)
			}
			secure, err := adminClientTLS(cmd)
			if err != nil {
				return failed(err)
			}
			ctx, cancel := interruptible()
			defer cancel()
			return failed(examine(ctx, cfg, secure, output, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the node's configuration")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "set one key, as in --set raft.groups=1 (may be repeated)")
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table or json")
	adminTLSFlags(cmd)
	return cmd
}

// examine prints what is found. secureAdmin is how the other nodes' admin ports are
// asked, where they have TLS.
func examine(ctx context.Context, cfg configs.Config, secureAdmin *tls.Config, output string, w io.Writer) error {
	secure, user, err := brokerSecurity(cfg.Broker)
	if err != nil {
		return err
	}
	b := broker.NewAdmin(broker.Config{BootstrapServer: cfg.Broker.BootstrapServer, TLS: secure, SASL: user,
		RequestTimeout: min(cfg.Broker.RequestTimeout, doctorBroker), Logger: hclog.NewNullLogger()})
	found := doctor.Examine(ctx, doctorChecks(cfg, b, secureAdmin))
	if err := b.Close(); err != nil {
		return err
	}
	if err := printFindings(w, found, output); err != nil {
		return err
	}
	if doctor.Bad(found) {
		return errUnwell
	}
	return nil
}

func doctorChecks(cfg configs.Config, b *broker.Admin, secureAdmin *tls.Config) []doctor.Check {
	var advertised []string
	for _, l := range cfg.AdvertisedListeners {
		advertised = append(advertised, l.Address())
	}
	var peers []doctor.Peer
	for _, p := range cfg.Raft.Peers {
		if p.ID != cfg.Node.ID {
			peers = append(peers, doctor.Peer{ID: p.ID, Address: p.Address})
		}
	}
	ports := map[string]string{"raft.listen": cfg.Raft.Listen, "admin.listen": cfg.Admin.Listen}
	for _, l := range cfg.Listeners {
		ports["listeners "+l.Name] = l.Address()
	}
	checks := doctor.BrokerChecks(b, cfg.Broker.BootstrapServer, advertised, int64(cfg.Raft.MaxEntryBytes))
	checks = append(checks, doctor.DiskChecks(cfg.DataDir, cfg.Broker.LogDirs, cfg.Raft.StoreTimeout, int64(cfg.Raft.LogLimitBytes))...)
	checks = append(checks, doctor.LimitChecks(cfg.Limits.MaxConnections, int64(cfg.Limits.MemoryBudget))...)
	checks = append(checks, doctor.AddressChecks(advertised, peers)...)
	if cfg.Raft.TLS.Enabled() {
		checks = append(checks, doctor.CertificateCheck("raft.tls", cfg.Raft.TLS.CertFile))
	}
	if cfg.SSL.CertFile != "" {
		checks = append(checks, doctor.CertificateCheck("ssl", cfg.SSL.CertFile))
	}
	if t := cfg.Admin.TLS; t.Enabled() {
		checks = append(checks, doctor.CertificateCheck("admin.tls", t.CertFile))
		if t.CAFile != "" {
			checks = append(checks, doctor.CertificateCheck("admin.tls.ca_file", t.CAFile),
				doctor.SharedAuthorityCheck(t.CAFile, map[string]string{"ssl.ca_file": cfg.SSL.CAFile, "raft.tls.ca_file": cfg.Raft.TLS.CAFile}))
		}
	}
	if cfg.Admin.ReadableToken() {
		checks = append(checks, doctor.ReadableTokenCheck(cfg.Admin.Listen))
	}
	return append(checks, doctor.RunningCheck(func(ctx context.Context) (*doctor.Running, error) { return askRunning(ctx, cfg.Admin, secureAdmin) }, ports))
}

// askRunning is what the node itself says, if it runs. It must show the certificate
// that is configured; secure is for the others.
func askRunning(ctx context.Context, cfg configs.Admin, secure *tls.Config) (*doctor.Running, error) {
	client := admin.NewClient()
	if cfg.TLS.Enabled() {
		own, err := ownTLS(cfg.TLS.CertFile)
		if err != nil {
			return nil, err
		}
		client = admin.NewTLSClient(own)
	}
	defer client.Close()
	st, _, err := client.Status(ctx, cfg.Listen)
	if errors.Is(err, admin.ErrStrangeNode) {
		return nil, fmt.Errorf("%s shows another certificate than %s holds, or one that is no server's: %w", cfg.Listen, cfg.TLS.CertFile, err)
	}
	if err != nil {
		return nil, err
	}
	out := &doctor.Running{TLS: secure, Problems: st.Problems, Versions: make(map[int32]string), Admin: make(map[int32]string)}
	for _, n := range st.Nodes {
		if n.Alive {
			out.Versions[n.ID] = n.Version
		}
		if n.Admin != "" {
			out.Admin[n.ID] = admin.Registered(n.Admin)
		}
	}
	return out, nil
}

func printFindings(w io.Writer, found []doctor.Finding, output string) error {
	if output == outputJSON {
		return json.NewEncoder(w).Encode(found)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range found {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Severity, f.Check, f.What)
		if f.Why != "" {
			fmt.Fprintf(t, "\t\twhy: %s\n", f.Why)
		}
		if f.Next != "" {
			fmt.Fprintf(t, "\t\tnext: %s\n", f.Next)
		}
	}
	return t.Flush()
}

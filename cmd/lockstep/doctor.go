package main

import (
	"context"
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
var errUnwell = errors.New("errors were found: do what stands behind next, and ask again")

// doctorBroker bounds one question to the broker.
const doctorBroker = 5 * time.Second

func doctorCommand() *cobra.Command {
	var file, output string
	var sets, others []string
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Look at a node's surroundings, before it is started and while it runs",
		Long: `Look at a node's surroundings, before it is started and while it runs: the broker and
its settings, quotas, topics from before lockstep, ways around the proxy, disks and how long
an fsync takes, names, peers, ports, limits, certificates, and, while the node runs,
whether the other nodes reach what it advertises, clocks, versions, and what it says of
itself. It changes nothing. Each finding says what, why it matters and what to do. The
exit code is 1 if an error was found; warnings alone leave it 0.

Before the first start it sees its own broker's topics only. --brokers has it look at
the other nodes' brokers too, and say which names are in conflict.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != outputTable && output != outputJSON {
				return fmt.Errorf("-o %q: it is table or json", output)
			}
			cfg, err := configs.Load(file, sets, os.Environ())
			if err != nil {
				return fmt.Errorf("configuration: %w", err)
			}
			ctx, cancel := interruptible()
			defer cancel()
			return failed(examine(ctx, cfg, others, output, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the node's configuration")
	cmd.Flags().StringArrayVar(&sets, "set", nil, "set one key, as in --set raft.groups=1 (may be repeated)")
	cmd.Flags().StringSliceVar(&others, "brokers", nil, "brokers of other nodes, as in 2=HOST:PORT,3=HOST:PORT, asked as the node's own is")
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table or json")
	return cmd
}

func examine(ctx context.Context, cfg configs.Config, others []string, output string, w io.Writer) error {
	secure, user, err := brokerSecurity(cfg.Broker)
	if err != nil {
		return err
	}
	bc := broker.Config{BootstrapServer: cfg.Broker.BootstrapServer, TLS: secure, SASL: user,
		RequestTimeout: min(cfg.Broker.RequestTimeout, doctorBroker), Logger: hclog.NewNullLogger()}
	l := &topicLister{self: cfg.Node.ID, peers: len(cfg.Raft.Peers) - 1, admin: cfg.Admin, fresh: neverStarted(cfg.DataDir), own: newBrokerLists(bc)}
	if l.others, err = otherBrokers(others, cfg.Node.ID, cfg.Broker, bc); err != nil {
		return err
	}
	found := doctor.Examine(ctx, doctorChecks(cfg, l))
	err = l.own.close()
	for _, b := range l.others {
		err = errors.Join(err, b.close())
	}
	if err != nil {
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

func doctorChecks(cfg configs.Config, l *topicLister) []doctor.Check {
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
	user := ""
	if configs.Authenticated(cfg.Broker.SecurityProtocol) {
		user = cfg.Broker.SASL.Username
	}
	checks := doctor.BrokerChecks(l.own.Admin, cfg.Broker.BootstrapServer, user, advertised, int64(cfg.Raft.MaxEntryBytes))
	checks = append(checks, doctor.TopicChecks(l.own.Admin, nodeCalled(l.self), l.list, int64(cfg.Raft.MaxEntryBytes))...)
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
				doctor.SharedAuthorityCheck(t.CAFile, map[string]string{"ssl.ca_file": cfg.SSL.CAFile, "raft.tls.ca_file": cfg.Raft.TLS.CAFile, "broker.ssl.ca_file": cfg.Broker.SSL.CAFile}))
		}
	}
	if cfg.Admin.ReadableToken() {
		checks = append(checks, doctor.ReadableTokenCheck(cfg.Admin.Listen))
	}
	return append(checks, doctor.RunningCheck(func(ctx context.Context) (*doctor.Running, error) { return askRunning(ctx, cfg.Admin) }, ports))
}

// ownAdmin is the client for the node's own admin port, which must show the
// certificate that is configured.
func ownAdmin(cfg configs.Admin) (*admin.Client, error) {
	if !cfg.TLS.Enabled() {
		return admin.NewClient(), nil
	}
	own, err := ownTLS(cfg.TLS.CertFile)
	if err != nil {
		return nil, err
	}
	return admin.NewTLSClient(own), nil
}

// askRunning is what the node itself says, if it runs.
func askRunning(ctx context.Context, cfg configs.Admin) (*doctor.Running, error) {
	client, err := ownAdmin(cfg)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	st, _, err := client.Status(ctx, cfg.Listen)
	if errors.Is(err, admin.ErrStrangeNode) {
		return nil, fmt.Errorf("%s shows another certificate than %s holds, or one that is no server's: %w", cfg.Listen, cfg.TLS.CertFile, err)
	}
	if err != nil {
		return nil, err
	}
	out := &doctor.Running{Problems: st.Problems, Versions: make(map[int32]string), Peers: make(map[int32]doctor.PeerView)}
	for _, n := range st.Nodes {
		if n.Alive {
			out.Versions[n.ID] = n.Version
		}
	}
	reach, err := client.Reach(ctx, cfg.Listen)
	if err != nil {
		out.Unasked = err.Error()
		return out, nil
	}
	for id, r := range reach {
		out.Peers[id] = doctor.PeerView{Error: r.Error, Dialed: r.Dialed, Clock: r.Clock, Within: r.Within}
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

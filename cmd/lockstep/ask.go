package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
)

// Variables that stand for flags of commands that ask nodes. The token's holds the
// token itself, the others name files.
const (
	adminTokenVariable = "LOCKSTEP_ADMIN_TOKEN"
	adminCAVariable    = "LOCKSTEP_ADMIN_CA"
	adminCertVariable  = "LOCKSTEP_ADMIN_CERT"
	adminKeyVariable   = "LOCKSTEP_ADMIN_KEY"
)

// adminTLSFlags gives a command what it asks admin ports with TLS by.
func adminTLSFlags(cmd *cobra.Command) {
	cmd.Flags().String("admin-ca", "", "PEM file with the authority of the nodes' admin certificates, which are then asked by https; without it "+adminCAVariable+" is taken, if set")
	cmd.Flags().String("admin-cert", "", "PEM file with a certificate to show the nodes, where admin.tls.ca_file is set; without it "+adminCertVariable+" is taken, if set")
	cmd.Flags().String("admin-key", "", "private key of --admin-cert; without it "+adminKeyVariable+" is taken, if set")
}

// tokenFlag gives a command that changes something --token-file.
func tokenFlag(cmd *cobra.Command) {
	cmd.Flags().String("token-file", "", "file with the nodes' admin token; without it "+adminTokenVariable+" is taken, if set")
}

// adminClient is the client that a command asks nodes with, as its flags and the
// environment say.
func adminClient(cmd *cobra.Command) (*admin.Client, error) {
	c := admin.NewClient()
	secure, err := adminClientTLS(cmd)
	if err != nil {
		return nil, err
	}
	if secure != nil {
		c = admin.NewTLSClient(secure)
	}
	c.Token = os.Getenv(adminTokenVariable)
	if file := textFlag(cmd, "token-file"); file != "" {
		if c.Token, err = admin.ReadToken(file); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// adminClientTLS is nil where neither an authority nor a certificate is given.
func adminClientTLS(cmd *cobra.Command) (*tls.Config, error) {
	ca := cmp.Or(textFlag(cmd, "admin-ca"), os.Getenv(adminCAVariable))
	cert := cmp.Or(textFlag(cmd, "admin-cert"), os.Getenv(adminCertVariable))
	key := cmp.Or(textFlag(cmd, "admin-key"), os.Getenv(adminKeyVariable))
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	return admin.ClientTLS(ca, cert, key)
}

// textFlag is empty where the command has no such flag.
func textFlag(cmd *cobra.Command, name string) string {
	if f := cmd.Flags().Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// checkAdminAddress takes host:port, with https:// or http:// before it or not.
func checkAdminAddress(addr string) error {
	if scheme, rest, ok := strings.Cut(addr, "://"); ok {
		if scheme != "https" && scheme != "http" {
			return fmt.Errorf("%s:// is neither https:// nor http://", scheme)
		}
		addr = rest
	}
	return checkHostPort(addr)
}

func checkHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return errors.New("it is host:port, as in 127.0.0.1:7501")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is not between 1 and 65535", port)
	}
	return nil
}

// ownTLS is how the admin port of this machine's own node is asked: the
// certificate that it shows must be the one in the file, whatever name it has.
func ownTLS(certFile string) (*tls.Config, error) {
	raw, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	c.RootCAs.AddCert(cert)
	switch {
	case len(cert.DNSNames) > 0:
		c.ServerName = cert.DNSNames[0]
	case len(cert.IPAddresses) > 0:
		c.ServerName = cert.IPAddresses[0].String()
	}
	return c, nil
}

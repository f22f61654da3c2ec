package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"lockstep/configs"
	"lockstep/internal/tlsfiles"
)

// brokerSecurity is how Lockstep itself speaks to its broker; nil stands for not.
func brokerSecurity(b configs.Broker) (*tls.Config, sasl.Mechanism, error) {
	var secure *tls.Config
	var err error
	if configs.Encrypted(b.SecurityProtocol) {
		if secure, err = brokerTLS(b.SSL, b.BootstrapServer); err != nil {
			return nil, nil, err
		}
	}
	if !configs.Authenticated(b.SecurityProtocol) {
		return secure, nil, nil
	}
	text, err := os.ReadFile(b.SASL.PasswordFile)
	if err != nil {
		return nil, nil, fmt.Errorf("broker.sasl.password_file: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return nil, nil, fmt.Errorf("broker.sasl.password_file: %s is empty; write the password of %s into it", b.SASL.PasswordFile, b.SASL.Username)
	}
	switch b.SASL.Mechanism {
	case configs.MechanismPlain:
		return secure, plain.Auth{User: b.SASL.Username, Pass: password}.AsMechanism(), nil
	case configs.MechanismScramSHA256:
		return secure, scram.Auth{User: b.SASL.Username, Pass: password}.AsSha256Mechanism(), nil
	default: // validated
		return secure, scram.Auth{User: b.SASL.Username, Pass: password}.AsSha512Mechanism(), nil
	}
}

// upstreamTLS is what is spoken for clients with the broker at addr, or nil.
func upstreamTLS(b configs.Broker, addr string) (*tls.Config, error) {
	if !configs.Encrypted(b.ClientProtocol()) {
		return nil, nil
	}
	return brokerTLS(b.SSL, addr)
}

func brokerTLS(files configs.TLS, addr string) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address of the broker: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if files.CAFile != "" {
		if c.RootCAs, err = tlsfiles.ReadAuthorities(files.CAFile); err != nil {
			return nil, fmt.Errorf("broker.ssl.ca_file: %w", err)
		}
	}
	if files.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("broker.ssl: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

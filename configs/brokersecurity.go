package configs

import (
	"fmt"
	"slices"
	"strings"
)

// SASL says how the node authenticates to its broker. The password is in a file,
// so that no configuration, environment or command line holds it.
type SASL struct {
	Mechanism    string `yaml:"mechanism"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// Values of broker.security_protocol, as Kafka's security.protocol.
const (
	ProtocolPlaintext     = "PLAINTEXT"
	ProtocolSSL           = "SSL"
	ProtocolSASLPlaintext = "SASL_PLAINTEXT"
	ProtocolSASLSSL       = "SASL_SSL"
)

// Values of broker.sasl.mechanism.
const (
	MechanismPlain       = "PLAIN"
	MechanismScramSHA256 = "SCRAM-SHA-256"
	MechanismScramSHA512 = "SCRAM-SHA-512"
)

var (
	protocols  = []string{ProtocolPlaintext, ProtocolSSL, ProtocolSASLPlaintext, ProtocolSASLSSL}
	mechanisms = []string{MechanismPlain, MechanismScramSHA256, MechanismScramSHA512}
)

// Encrypted reports whether the protocol is one with TLS.
func Encrypted(protocol string) bool { return strings.HasSuffix(protocol, "SSL") }

// Authenticated reports whether the protocol is one with SASL.
func Authenticated(protocol string) bool { return strings.HasPrefix(protocol, "SASL_") }

// ClientProtocol is what is spoken where clients' connections are passed on to.
func (b Broker) ClientProtocol() string {
	if b.ClientServer == "" {
		return b.SecurityProtocol
	}
	return b.ClientSecurityProtocol
}

// AuthenticatesClients reports whether the broker has to let clients in: with a
// listener of their own, or where Lockstep itself has to say who it is.
func (b Broker) AuthenticatesClients() bool {
	return b.ClientServer != "" || Authenticated(b.SecurityProtocol)
}

func (c Config) validateBrokerSecurity(p *problems) {
	b := c.Broker
	p.oneOf("broker.security_protocol", b.SecurityProtocol, protocols)
	p.oneOf("broker.client_security_protocol", b.ClientSecurityProtocol, protocols)
	if b.ClientServer == "" && b.ClientSecurityProtocol != ProtocolPlaintext {
		p.add("broker.client_security_protocol", b.ClientSecurityProtocol, "broker.client_server is not set", "set it, or remove this key")
	}
	if b.SSL.Enabled() && !Encrypted(b.SecurityProtocol) && !Encrypted(b.ClientSecurityProtocol) {
		p.add("broker.ssl", b.SSL.CAFile, "neither protocol towards the broker is encrypted", "set broker.security_protocol or broker.client_security_protocol to SSL or SASL_SSL, or remove broker.ssl")
	}
	if (b.SSL.CertFile == "") != (b.SSL.KeyFile == "") {
		p.add("broker.ssl", fmt.Sprintf("cert_file %s, key_file %s", b.SSL.CertFile, b.SSL.KeyFile), "one without the other", "set both or none")
	}
	switch {
	case !Authenticated(b.SecurityProtocol) && b.SASL != (SASL{}):
		p.add("broker.sasl", b.SASL.Mechanism, "broker.security_protocol has no SASL", "set it to SASL_SSL or SASL_PLAINTEXT, or remove broker.sasl")
	case !Authenticated(b.SecurityProtocol):
	case !slices.Contains(mechanisms, b.SASL.Mechanism):
		p.oneOf("broker.sasl.mechanism", b.SASL.Mechanism, mechanisms)
	case b.SASL.Username == "":
		p.missing("broker.sasl.username", "name the broker's user for Lockstep, one of its super.users")
	case b.SASL.PasswordFile == "":
		p.missing("broker.sasl.password_file", "name a file that holds the password of broker.sasl.username")
	}
}

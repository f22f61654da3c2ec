package configs

import (
	"fmt"
	"slices"
)

// SSL names the PEM files of the client listeners that are called SSL or
// SASL_SSL, and says whether clients must show a certificate (Kafka:
// ssl.keystore, ssl.truststore, ssl.client.auth).
type SSL struct {
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	CAFile     string `yaml:"ca_file"`
	ClientAuth string `yaml:"client_auth"`
}

// Values of ssl.client_auth.
const (
	ClientAuthNone      = "none"
	ClientAuthRequested = "requested"
	ClientAuthRequired  = "required"
)

var clientAuths = []string{ClientAuthNone, ClientAuthRequested, ClientAuthRequired}

// Encrypted reports whether the listener speaks TLS, which its name says in
// Kafka's words.
func (l Listener) Encrypted() bool { return l.Name == "SSL" || l.Name == "SASL_SSL" }

// Authenticated reports whether clients must authenticate with SASL on the
// listener, which its name says in Kafka's words.
func (l Listener) Authenticated() bool { return l.Name == "SASL_PLAINTEXT" || l.Name == "SASL_SSL" }

// validateTrust refuses listeners that promise what they cannot keep.
func (c Config) validateTrust(p *problems) {
	s := c.SSL
	encrypted := ""
	for _, l := range c.Listeners {
		if l.Encrypted() {
			encrypted = l.String()
		}
		if l.Authenticated() && !c.Broker.AuthenticatesClients() {
			p.add("listeners", l, "the broker authenticates clients, and none of its SASL listeners is configured",
				"set broker.client_server and broker.client_security_protocol to the broker's own SASL listener")
		}
	}
	switch {
	case !slices.Contains(clientAuths, s.ClientAuth):
		p.oneOf("ssl.client_auth", s.ClientAuth, clientAuths)
	case encrypted != "" && (s.CertFile == "" || s.KeyFile == ""):
		p.add("listeners", encrypted, "TLS needs a certificate and its key", "set ssl.cert_file and ssl.key_file")
	case encrypted == "" && s != Default().SSL:
		p.add("ssl", fmt.Sprintf("cert_file %s, key_file %s, ca_file %s, client_auth %s", s.CertFile, s.KeyFile, s.CAFile, s.ClientAuth),
			"no listener is called SSL or SASL_SSL, so nothing would be encrypted", "rename a listener, or remove ssl")
	case s.ClientAuth != ClientAuthNone && s.CAFile == "":
		p.add("ssl.client_auth", s.ClientAuth, "no authority is trusted for clients' certificates", "set ssl.ca_file")
	}
}

// validateAdmin refuses an admin port that strangers can reach and change the
// cluster by.
func (c Config) validateAdmin(p *problems) {
	a := c.Admin
	host, _, err := splitAddress(a.Listen)
	asks := a.TokenFile != "" || a.TLS.CAFile != ""
	switch {
	case err != nil:
		p.add("admin.listen", a.Listen, "not an address", "write host:port, such as 127.0.0.1:7501")
	case a.TLS.Enabled() && (a.TLS.CertFile == "" || a.TLS.KeyFile == ""):
		p.add("admin.tls", fmt.Sprintf("cert_file %s, key_file %s, ca_file %s", a.TLS.CertFile, a.TLS.KeyFile, a.TLS.CAFile),
			"TLS needs a certificate and its key", "set admin.tls.cert_file and admin.tls.key_file, or remove admin.tls")
	case asks && a.Insecure:
		p.add("admin.insecure", true, "admin.token_file or admin.tls.ca_file is set as well", "remove one of the two")
	case !isLoopback(host) && !asks && !a.Insecure:
		p.add("admin.listen", a.Listen, "outside loopback whoever reaches the admin port could change the cluster",
			"set admin.token_file (openssl rand -hex 32 makes a token), or admin.tls with ca_file to ask for clients' certificates, or admin.insecure: true if the network is closed to everybody else")
	}
}

// ReadableToken reports whether the admin token travels in plain HTTP over what
// may be an open network.
func (a Admin) ReadableToken() bool {
	host, _, err := splitAddress(a.Listen)
	return a.TokenFile != "" && !a.TLS.Enabled() && (err != nil || !isLoopback(host))
}

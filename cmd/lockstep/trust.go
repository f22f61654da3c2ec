package main

import (
	"crypto/tls"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"lockstep/configs"
	"lockstep/internal/admin"
	"lockstep/internal/tlsfiles"
	"lockstep/proxy"
)

// secureListeners gives the listeners what their names promise. They are in the
// order of the configuration.
func secureListeners(cfg configs.Config, listeners []proxy.Listener, log hclog.Logger) error {
	var files *tlsfiles.Server
	for i, l := range cfg.Listeners {
		listeners[i].SASL = l.Authenticated()
		if !l.Encrypted() {
			continue
		}
		if files == nil {
			var err error
			files, err = loadTLS("ssl", tlsfiles.Files{CertFile: cfg.SSL.CertFile, KeyFile: cfg.SSL.KeyFile, CAFile: cfg.SSL.CAFile,
				ClientAuth: cfg.SSL.ClientAuth}, log)
			if err != nil {
				return err
			}
		}
		listeners[i].TLS = files.Config()
	}
	return nil
}

// loadTLS reads the files of a section of the configuration, and tells the log
// what becomes of files that replace them.
func loadTLS(section string, f tlsfiles.Files, log hclog.Logger) (*tlsfiles.Server, error) {
	s, err := tlsfiles.Load(f, func(err error) {
		if err != nil {
			log.Error("new TLS files cannot be used; the previous certificate stays in use", "of", section, "error", err,
				"next", "mend the files of "+section+"; the next connection takes them")
			return
		}
		log.Info("took new TLS files", "of", section, "certificate", f.CertFile)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", section, err)
	}
	return s, nil
}

// adminTLS is what the admin port speaks, nil for plain HTTP. Where clients'
// authority is configured, they are asked for a certificate and may have none:
// reading needs none.
func adminTLS(cfg configs.TLS, log hclog.Logger) (*tls.Config, error) {
	if !cfg.Enabled() {
		return nil, nil
	}
	f := tlsfiles.Files{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, CAFile: cfg.CAFile}
	if cfg.CAFile != "" {
		f.ClientAuth = tlsfiles.ClientAuthRequested
	}
	files, err := loadTLS("admin.tls", f, log)
	if err != nil {
		return nil, err
	}
	return files.Config(), nil
}

// adminToken is the token that changes need on the node's admin port, "" if none.
func adminToken(cfg configs.Admin) (string, error) {
	if cfg.TokenFile == "" {
		return "", nil
	}
	return admin.ReadToken(cfg.TokenFile)
}

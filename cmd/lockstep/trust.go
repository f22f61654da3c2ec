package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"lockstep/configs"
	"lockstep/internal/admin"
	"lockstep/internal/tlsfiles"
	"lockstep/proxy"
)

// adminTokenVariable holds the token itself, for commands.
const adminTokenVariable = "LOCKSTEP_ADMIN_TOKEN"

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
			files, err = tlsfiles.Load(tlsfiles.Files{CertFile: cfg.SSL.CertFile, KeyFile: cfg.SSL.KeyFile, CAFile: cfg.SSL.CAFile,
				ClientAuth: cfg.SSL.ClientAuth}, func(err error) {
				if err != nil {
					log.Error("new TLS files of the listeners cannot be used; the previous certificate stays in use", "error", err,
						"next", "mend the files of ssl; the next connection takes them")
					return
				}
				log.Info("took new TLS files for the listeners", "certificate", cfg.SSL.CertFile)
			})
			if err != nil {
				return fmt.Errorf("ssl: %w", err)
			}
		}
		listeners[i].TLS = files.Config()
	}
	return nil
}

// adminToken is the token that changes need on the node's admin port, "" if none.
func adminToken(cfg configs.Admin) (string, error) {
	if cfg.TokenFile == "" {
		return "", nil
	}
	return admin.ReadToken(cfg.TokenFile)
}

// tokenFlag gives a command that changes something --token-file. The function
// it returns makes the client that the command asks with.
func tokenFlag(cmd *cobra.Command) func() (*admin.Client, error) {
	var file string
	cmd.Flags().StringVar(&file, "token-file", "", "file with the nodes' admin token; without it "+adminTokenVariable+" is taken, if set")
	return func() (*admin.Client, error) {
		c := admin.NewClient()
		c.Token = os.Getenv(adminTokenVariable)
		if file != "" {
			var err error
			if c.Token, err = admin.ReadToken(file); err != nil {
				return nil, err
			}
		}
		return c, nil
	}
}

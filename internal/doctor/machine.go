package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	syncs     = 40
	syncBytes = 4 << 10
	slowSync  = 20 * time.Millisecond
	fullWarn  = 0.90
	certSoon  = 30 * 24 * time.Hour
)

// DiskChecks look at data_dir and at the broker's log directories. storeTimeout
// is raft.store_timeout, logLimit how much Raft log the node may keep.
func DiskChecks(dataDir string, logDirs []string, storeTimeout time.Duration, logLimit int64) []Check {
	checks := []Check{
		{"disk of data_dir", func(context.Context) []Finding { return space(existing(dataDir), uint64(logLimit)) }},
		{"fsync of data_dir", func(ctx context.Context) []Finding { return fsync(ctx, existing(dataDir), storeTimeout) }},
	}
	for _, dir := range logDirs {
		checks = append(checks, Check{"disk of " + dir, func(context.Context) []Finding { return space(dir, 0) }})
	}
	return checks
}

// existing is the directory itself, or the nearest above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func space(dir string, need uint64) []Finding {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return []Finding{{Severity: Error, What: fmt.Sprintf("%s: %v", dir, err), Why: "the node keeps its log there",
			Next: "make the directory, and let the user who runs lockstep write there"}}
	}
	unit := uint64(fs.Bsize)
	free, all := fs.Bavail*unit, fs.Blocks*unit
	what := fmt.Sprintf("%s: %d MiB of %d MiB are free", dir, free>>20, all>>20)
	switch {
	case free < need:
		return []Finding{{Severity: Warning, What: what, Why: fmt.Sprintf("the Raft log may grow to %d MiB (raft.log_limit_bytes) while the broker is away, and a full disk stops the node", need>>20),
			Next: "make room, or lower raft.log_limit_bytes"}}
	case all > 0 && float64(all-free) > fullWarn*float64(all):
		return []Finding{{Severity: Warning, What: what, Why: "a full disk stops the broker or the node", Next: "make room, or shorten the topics' retention"}}
	}
	return ok("%s", what)
}

// fsync measures what every acknowledgement waits for.
func fsync(ctx context.Context, dir string, storeTimeout time.Duration) []Finding {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return []Finding{{Severity: Error, What: fmt.Sprintf("cannot write in %s: %v", dir, err), Why: "the node keeps its log there",
			Next: "let the user who runs lockstep write there"}}
	}
	defer func() { _ = os.Remove(f.Name()) }() // it holds nothing
	defer f.Close()
	var took []time.Duration
	block := make([]byte, syncBytes)
	for i := range syncs {
		if ctx.Err() != nil {
			break
		}
		if _, err := f.WriteAt(block, int64(i)*syncBytes); err != nil {
			return []Finding{{Severity: Error, What: err.Error(), Why: "the node keeps its log there", Next: "look at the disk"}}
		}
		begin := time.Now()
		if err := f.Sync(); err != nil {
			return []Finding{{Severity: Error, What: err.Error(), Why: "a disk that cannot sync cannot keep anything", Next: "replace the disk"}}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	if len(took) == 0 {
		return unknown("try again", "nothing was measured in time")
	}
	median, worst := took[len(took)/2], took[len(took)-1]
	what := fmt.Sprintf("%s: %d syncs of %d bytes took %s at the median, %s at worst", dir, len(took), syncBytes, median.Round(10*time.Microsecond), worst.Round(10*time.Microsecond))
	switch {
	case worst > storeTimeout/2:
		return []Finding{{Severity: Error, What: what, Why: fmt.Sprintf("a write that takes longer than raft.store_timeout (%s) stops the node", storeTimeout), Next: "use another disk"}}
	case median > slowSync:
		return []Finding{{Severity: Warning, What: what, Why: "every acknowledgement waits for a sync on two nodes", Next: "put data_dir on a faster disk, not shared with the broker's logs"}}
	}
	return ok("%s", what)
}

// LimitChecks look at what the system grants: open files for connections,
// memory for the budget.
func LimitChecks(connections int, budget int64) []Check {
	return []Check{
		{"open files", func(context.Context) []Finding {
			var l syscall.Rlimit
			if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
				return unknown("look at ulimit -n", "%v", err)
			}
			// Each client has a connection to this node and one to the broker.
			if need := uint64(2*connections + 256); l.Cur < need {
				return []Finding{{Severity: Warning, What: fmt.Sprintf("%d files may be open, limits.max_connections needs %d", l.Cur, need),
					Why: "above it clients are cut off", Next: "raise LimitNOFILE of the systemd unit (ulimit -n), or lower limits.max_connections"}}
			}
			return ok("%d may be open", l.Cur)
		}},
		{"memory", func(context.Context) []Finding {
			raw, err := os.ReadFile("/proc/meminfo")
			var kib int64
			if err == nil {
				_, err = fmt.Sscanf(string(raw), "MemTotal: %d kB", &kib)
			}
			if err != nil {
				return unknown("compare limits.memory_budget with the machine's memory", "%v", err)
			}
			all := kib << 10
			if budget > all/2 {
				return []Finding{{Severity: Warning, What: fmt.Sprintf("limits.memory_budget is %d MiB, the machine has %d", budget>>20, all>>20),
					Why: "the broker and the page cache need the rest", Next: "lower limits.memory_budget"}}
			}
			return ok("the budget is %d MiB of %d", budget>>20, all>>20)
		}},
	}
}

// SharedAuthorityCheck warns where those who may change the cluster are signed by
// whoever also signs others: file is of the first, others are by their key.
func SharedAuthorityCheck(file string, others map[string]string) Check {
	return Check{"authority of admin.tls", func(context.Context) []Finding {
		own := certificatesIn(file)
		if len(own) == 0 {
			return nil // said by the check of the file itself
		}
		for _, key := range slices.Sorted(maps.Keys(others)) {
			if slices.ContainsFunc(certificatesIn(others[key]), func(c string) bool { return slices.Contains(own, c) }) {
				return []Finding{{Severity: Warning, What: "admin.tls.ca_file and " + key + " share an authority",
					Why: "whoever has a certificate of it can change the cluster", Next: "give operators an authority of their own"}}
			}
		}
		return ok("it signs nobody else")
	}}
}

// certificatesIn returns the certificates of a PEM file, none if it cannot be read.
func certificatesIn(file string) (out []string) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, string(block.Bytes))
		}
	}
}

// CertificateCheck looks at a PEM file's first certificate.
func CertificateCheck(name, file string) Check {
	return Check{"certificate of " + name, func(context.Context) []Finding {
		raw, err := os.ReadFile(file)
		if err != nil {
			return []Finding{{Severity: Error, What: err.Error(), Why: "the node does not start without it", Next: "put the file there, readable for the user who runs lockstep"}}
		}
		block, _ := pem.Decode(raw)
		if block == nil {
			return []Finding{{Severity: Error, What: file + " holds no PEM block", Why: "the node does not start with it", Next: "write the certificate in PEM"}}
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return []Finding{{Severity: Error, What: file + ": " + err.Error(), Why: "the node does not start with it", Next: "write a certificate, not a key"}}
		}
		what := fmt.Sprintf("%s holds until %s", file, cert.NotAfter.UTC().Format(time.DateTime))
		switch left := time.Until(cert.NotAfter); {
		case left < 0:
			return []Finding{{Severity: Error, What: what, Why: "whoever is shown it refuses it", Next: "renew it"}}
		case left < certSoon:
			return []Finding{{Severity: Warning, What: what, Why: "whoever is shown it refuses it after that", Next: "renew it"}}
		}
		return ok("%s", what)
	}}
}

//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// kafkaDist is an Apache Kafka release on this disk.
type kafkaDist struct {
	version string
	java    string // path of the java command
	libs    string // folder of jars
	conf    string // absolute path of log4j2.properties
	archive string // class-data archive that halves a JVM's start; may be absent
}

var errNeedsJava = errors.New("the e2e tests run real Apache Kafka and need Java 17 or newer with javac, and Maven: " +
	"install them (Debian, Ubuntu: apt-get install openjdk-17-jdk-headless maven)")

var sharedDist = sync.OnceValues(prepareKafka)

// kafka returns the release to test against; the first call of a fresh clone
// downloads it.
func kafka(t *testing.T) *kafkaDist {
	t.Helper()
	d, err := sharedDist()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// prepareKafka copies the jars named in testdata/pom.xml into
// .cache/kafka-<version> at the root of the checkout. A lock file makes it safe
// to run twice at the same time, and the marker file says a copy is complete.
func prepareKafka() (*kafkaDist, error) {
	d := &kafkaDist{}
	for _, tool := range []string{"java", "javac", "mvn"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			return nil, fmt.Errorf("%s not found: %w", tool, errNeedsJava)
		}
		if tool == "java" {
			d.java = path
		}
	}
	pom, err := filepath.Abs("testdata/pom.xml")
	if err != nil {
		return nil, fmt.Errorf("find pom: %w", err)
	}
	b, err := os.ReadFile(pom)
	if err != nil {
		return nil, fmt.Errorf("read pom: %w", err)
	}
	m := regexp.MustCompile(`<kafka.version>([^<]+)</kafka.version>`).FindSubmatch(b)
	if m == nil {
		return nil, fmt.Errorf("read %s: no kafka.version in it", pom)
	}
	d.version = string(m[1])
	d.conf = filepath.Join(filepath.Dir(pom), "log4j2.properties")

	// The pom's own sum is part of the key: the same Kafka with another logging
	// library is another folder.
	sum := sha256.Sum256(b)
	cache := filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(pom))), ".cache", "kafka-"+d.version)
	d.libs = filepath.Join(cache, "libs-"+hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.fetchJars(pom); err != nil {
		return nil, err
	}
	return d, d.makeArchive(cache)
}

func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing drops the lock
}

func (d *kafkaDist) fetchJars(pom string) error {
	marker := d.libs + ".complete"
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	if err := os.RemoveAll(d.libs); err != nil {
		return fmt.Errorf("clear %s: %w", d.libs, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var out strings.Builder
	cmd := exec.Command("mvn", "-B", "-q", "-f", pom, "dependency:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+d.libs)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := startProcess("mvn", cmd)
	if err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("fetch Apache Kafka %s with Maven: %w\n%s", d.version, err, out.String())
	}
	return os.WriteFile(marker, nil, 0o644)
}

// jvmFlags are for a short start and a small heap: C1 only, serial collector.
func (d *kafkaDist) jvmFlags(heapMiB int, logFile string) []string {
	flags := []string{
		fmt.Sprintf("-Xmx%dm", heapMiB), "-Xms128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
		"-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dlog4j2.configurationFile=" + d.conf, "-Dkafka.log.file=" + logFile,
	}
	if _, err := os.Stat(d.archive); err == nil {
		flags = append(flags, "-Xshare:auto", "-XX:SharedArchiveFile="+d.archive, "-Xlog:disable", "-Xlog:all=error:stderr")
	}
	return append(flags, "-cp", d.libs+"/*")
}

// makeArchive lets a first broker write down the classes it loaded (JEP 350),
// so that all later ones start in half the time. The archive only fits the
// JVM and the jars it was made with, hence its name.
func (d *kafkaDist) makeArchive(cache string) error {
	version, err := exec.Command(d.java, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ask java for its version: %w", err)
	}
	sum := sha256.Sum256(append(version, d.libs...))
	d.archive = filepath.Join(cache, "classes-"+hex.EncodeToString(sum[:4])+".jsa")
	if _, err := os.Stat(d.archive); err == nil {
		return nil
	}
	dir, err := os.MkdirTemp(cache, "train-*")
	if err != nil {
		return fmt.Errorf("make archive: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a leftover in the cache harms nothing
	b := &broker{dist: d, dir: dir, nodeID: 1}
	for _, port := range []*int{&b.port, &b.controllerPort} {
		if *port, err = takePort(); err != nil {
			return err
		}
	}
	b.extraFlags = []string{"-XX:ArchiveClassesAtExit=" + d.archive + ".new", "-Xlog:disable", "-Xlog:all=error:stderr"}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := b.format(ctx); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := b.proc.stop(ctx); err != nil {
		return err
	}
	if err := os.Rename(d.archive+".new", d.archive); err != nil {
		return fmt.Errorf("make class archive: %w\n%s", err, tail(b.outFile(), 20))
	}
	return nil
}

// tool runs one of Kafka's own command line classes to its end and returns
// what it printed on standard output.
func (d *kafkaDist) tool(ctx context.Context, dir, class string, args ...string) (string, error) {
	var out, errOut strings.Builder
	p, err := d.startJava(dir, class, &out, &errOut, args...)
	if err != nil {
		return "", err
	}
	if err := p.wait(ctx); err != nil {
		return out.String(), fmt.Errorf("run %s: %w\n%s", class, err, lastBytes(errOut.String(), 4000))
	}
	return out.String(), nil
}

// startJava starts a Java class and leaves it running. Its log4j output goes to
// dir/<class>.log.
func (d *kafkaDist) startJava(dir, class string, stdout, stderr io.Writer, args ...string) (*process, error) {
	short := class[strings.LastIndexByte(class, '.')+1:]
	flags := d.jvmFlags(256, filepath.Join(dir, short+".log"))
	cmd := exec.Command(d.java, append(append(flags, class), args...)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return startProcess(short, cmd)
}

func lastBytes(s string, n int) string { return s[max(0, len(s)-n):] }

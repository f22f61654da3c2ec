//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// compatClient is one client library at one version, behind a program of
// ./compat.
type compatClient struct {
	name    string
	version string
	command []string // of the program, without its feature
	env     []string
	silent  bool // its acknowledgements are not printed record by record
	grouped bool // it reads in groups only, and may read again after a rebalance
	repeats bool // without idempotence it sends a whole request again when one partition of it failed
}

func (cl *compatClient) id() string { return cl.name + "-" + cl.version }

// setUpClients makes every client ready to run. A run time that is missing is
// an error that says what to install: no client is ever left out silently.
func setUpClients(t *testing.T, dir string) []*compatClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var all []*compatClient
	var problems error
	for _, setUp := range []func(context.Context, *testing.T, string) ([]*compatClient, error){
		javaClients, goClients, pythonClients, nodeClients,
	} {
		cls, err := setUp(ctx, t, dir)
		all, problems = append(all, cls...), errors.Join(problems, err)
	}
	if problems != nil {
		t.Fatal(problems)
	}
	return all
}

// javaClients are the brokers' own release and an older one, which one program
// compiled against the older one serves.
func javaClients(ctx context.Context, t *testing.T, dir string) ([]*compatClient, error) {
	current := kafka(t)
	pom, err := filepath.Abs("compat/java/pom.xml")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(pom)
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`<kafka.version>([^<]+)</kafka.version>`).FindSubmatch(b)
	if m == nil {
		return nil, fmt.Errorf("read %s: no kafka.version in it", pom)
	}
	older := &kafkaDist{version: string(m[1]), java: current.java}
	libs, err := cached("java-"+older.version, b, func(into string) error {
		older.libs = into
		return older.fetchJars(pom)
	})
	if err != nil {
		return nil, err
	}
	classes := filepath.Join(dir, "java")
	if _, err := runTool(ctx, "javac", "-nowarn", "-d", classes, "-cp", libs+"/*", "compat/java/CompatClient.java"); err != nil {
		return nil, err
	}
	var cls []*compatClient
	for _, d := range []*kafkaDist{current, {version: older.version, libs: libs, java: current.java}} {
		cls = append(cls, &compatClient{name: "Java client", version: d.version, command: []string{
			d.java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData",
			"-Dlog4j2.configurationFile=" + current.conf, "-Dkafka.log.file=" + filepath.Join(dir, "java-"+d.version+".log"),
			"-cp", d.libs + "/*:" + classes, "CompatClient",
		}})
	}
	return cls, nil
}

// goClients are the libraries of this module at the versions of go.mod, and
// kcat of this machine, which the same program runs.
func goClients(ctx context.Context, _ *testing.T, dir string) ([]*compatClient, error) {
	program := filepath.Join(dir, "goclient")
	if _, err := runTool(ctx, "go", "build", "-tags", "e2e", "-o", program, "./compat/goclient"); err != nil {
		return nil, err
	}
	out, err := runTool(ctx, "kcat", "-V")
	if err != nil {
		return nil, fmt.Errorf("%w: the librdkafka client kcat is missing (Debian, Ubuntu: apt-get install kcat)", err)
	}
	m := regexp.MustCompile(`(?s)Version (\S+).*librdkafka (\S+)`).FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("kcat -V says %q", out)
	}
	return []*compatClient{
		{name: "kcat", version: m[1] + " (librdkafka " + m[2] + ")", command: []string{program, "kcat"}, silent: true},
		{name: "sarama", version: moduleVersion("github.com/IBM/sarama"), command: []string{program, "sarama"}},
		{name: "franz-go", version: moduleVersion("github.com/twmb/franz-go"), command: []string{program, "franz"}},
	}, nil
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	// A test binary names only what it is linked with.
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", path).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
}

// pythonClients live in a virtual environment with the versions of
// requirements.txt.
func pythonClients(ctx context.Context, _ *testing.T, _ string) ([]*compatClient, error) {
	const missing = "the Python clients need python3 with venv and pip (Debian, Ubuntu: apt-get install python3 python3-venv)"
	requirements, err := os.ReadFile("compat/python/requirements.txt")
	if err != nil {
		return nil, err
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, missing)
	}
	version, err := runTool(ctx, python, "--version")
	if err != nil {
		return nil, err
	}
	venv, err := cached("python", append([]byte(version), requirements...), func(into string) error {
		if _, err := runTool(ctx, python, "-m", "venv", into); err != nil {
			return fmt.Errorf("%w: %s", err, missing)
		}
		_, err := runTool(ctx, filepath.Join(into, "bin", "pip"), "install", "-q", "--disable-pip-version-check",
			"--only-binary", ":all:", "-r", "compat/python/requirements.txt")
		return err
	})
	if err != nil {
		return nil, err
	}
	venvPython := filepath.Join(venv, "bin", "python")
	librdkafka, err := runTool(ctx, venvPython, "-c", "import confluent_kafka; print(confluent_kafka.libversion()[0])")
	if err != nil {
		return nil, err
	}
	var cls []*compatClient
	for _, p := range []struct{ name, file string }{
		{"confluent-kafka", "confluent.py"}, {"kafka-python", "kafkapython.py"}, {"aiokafka", "aio.py"},
	} {
		m := regexp.MustCompile(`(?m)^` + p.name + `==(\S+)$`).FindSubmatch(requirements)
		if m == nil {
			return nil, fmt.Errorf("requirements.txt names no version of %s", p.name)
		}
		cl := &compatClient{name: p.name, version: string(m[1]), command: []string{venvPython, "-B", "compat/python/" + p.file}}
		if p.name == "confluent-kafka" {
			cl.version += " (librdkafka " + strings.TrimSpace(librdkafka) + ")"
		}
		cls = append(cls, cl)
	}
	return cls, nil
}

// nodeClients are installed from the lock file.
func nodeClients(ctx context.Context, _ *testing.T, _ string) ([]*compatClient, error) {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: kafkajs needs Node.js and npm (Debian, Ubuntu: apt-get install nodejs npm)", err)
		}
	}
	lock, err := os.ReadFile("compat/node/package-lock.json")
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`"node_modules/kafkajs": \{\s*"version": "([^"]+)"`).FindSubmatch(lock)
	if m == nil {
		return nil, errors.New("package-lock.json names no version of kafkajs")
	}
	modules, err := cached("node", lock, func(into string) error {
		if err := os.MkdirAll(into, 0o755); err != nil {
			return err
		}
		for _, name := range []string{"package.json", "package-lock.json"} {
			b, err := os.ReadFile("compat/node/" + name)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(into, name), b, 0o644); err != nil {
				return err
			}
		}
		_, err := runToolIn(ctx, into, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		return err
	})
	if err != nil {
		return nil, err
	}
	return []*compatClient{{
		name: "kafkajs", version: string(m[1]), command: []string{"node", "compat/node/client.js"},
		env: []string{"NODE_PATH=" + filepath.Join(modules, "node_modules"), "KAFKAJS_NO_PARTITIONER_WARNING=1"}, grouped: true, repeats: true,
	}}, nil
}

// cached returns a folder of .cache/compat that fill has filled once for this
// key. The marker beside it says that it is complete, and a lock file makes two
// runs at the same time safe.
func cached(name string, key []byte, fill func(into string) error) (string, error) {
	sum := sha256.Sum256(key)
	root, err := filepath.Abs("../.cache/compat")
	if err != nil {
		return "", err
	}
	into := filepath.Join(root, name+"-"+hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(filepath.Join(root, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(into + ".complete"); err == nil {
		return into, nil
	}
	if err := os.RemoveAll(into); err != nil {
		return "", err
	}
	if err := fill(into); err != nil {
		return "", err
	}
	return into, os.WriteFile(into+".complete", nil, 0o644)
}

// runTool runs a command to its end and returns what it printed.
func runTool(ctx context.Context, name string, args ...string) (string, error) {
	return runToolIn(ctx, "", name, args...)
}

func runToolIn(ctx context.Context, dir, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := commandTo(&out, name, args...)
	cmd.Dir = dir
	p, err := startProcess(filepath.Base(name), cmd)
	if err != nil {
		return "", err
	}
	if err := p.wait(ctx); err != nil {
		return out.String(), fmt.Errorf("run %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, lastBytes(out.String(), 2000))
	}
	return out.String(), nil
}

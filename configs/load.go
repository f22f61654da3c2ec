package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	// ErrUnknownKey is returned when the file, the environment or --set names
	// a setting that does not exist; the message names the nearest one.
	ErrUnknownKey = errors.New("unknown key")

	// ErrInvalid is returned when a known setting has a value that cannot be
	// read or cannot work; the message names key, value, cause and next step.
	ErrInvalid = errors.New("invalid configuration")
)

// maxFileBytes bounds what is read of a configuration file.
const maxFileBytes = 1 << 20

// Load reads the settings of a node: the defaults, over them the YAML file at
// path, over it the LOCKSTEP_* variables in environ (as from os.Environ), over
// them sets, each written key=value as after --set. An empty path means no
// file. What Load returns has been resolved and validated. Errors name every
// mistake of the first stage that has any, and wrap ErrUnknownKey or
// ErrInvalid unless the file could not be read.
func Load(path string, sets []string, environ []string) (Config, error) {
	c := Default()
	if path != "" {
		text, err := readFile(path)
		if err != nil {
			return Config{}, err
		}
		if err := c.applyYAML(text); err != nil {
			return Config{}, fmt.Errorf("read %s: %w", path, err)
		}
	}
	if err := errors.Join(c.applyEnviron(environ), c.applySets(sets)); err != nil {
		return Config{}, err
	}
	c = c.Resolve()
	if err := c.Validate(); err != nil {
		if path == "" {
			err = fmt.Errorf("no file is given: name it with --config (configs/ has samples)\n%w", err)
		}
		return Config{}, err
	}
	return c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open configuration file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration file: %w", err)
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("%w: %s is larger than 1 MiB: is this the configuration file?", ErrInvalid, path)
	}
	return text, nil
}

// applyYAML sets what text says over c. The document is walked by hand instead
// of decoded into the struct, so that one parser of values serves the file,
// the environment and --set, and errors can name the key and the line.
func (c *Config) applyYAML(text []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%w: this is not YAML: %w; mend the line, configs/reference.yaml shows how each key is written", ErrInvalid, err)
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the file goes on after its first YAML document: remove what follows the line ---", ErrInvalid)
	}
	w := fileWalk{config: c, keys: knownKeys(), seen: map[string]int{}}
	w.mapping(doc.Content[0], "")
	return errors.Join(w.errs...)
}

// fileWalk carries one pass over a file.
type fileWalk struct {
	config *Config
	keys   *keyTable
	seen   map[string]int // line of each path that was met
	errs   []error
}

func (w *fileWalk) mapping(n *yaml.Node, prefix string) {
	if isNull(n) {
		return // a section whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		w.failf(n, prefix, "expected keys here, each with its value after a colon")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		w.pair(n.Content[i], n.Content[i+1], prefix)
	}
}

func (w *fileWalk) pair(key, value *yaml.Node, prefix string) {
	if key.Kind != yaml.ScalarNode {
		w.failf(key, prefix, "a key must be a plain word")
		return
	}
	path := joinPath(prefix, key.Value)
	l, isLeaf := w.keys.byPath[path]
	if !isLeaf && !w.keys.sections[path] {
		w.errs = append(w.errs, fmt.Errorf("%w %s (line %d): did you mean %s?", ErrUnknownKey, path, key.Line, w.keys.nearestPath(path)))
		return
	}
	if first, twice := w.seen[path]; twice {
		w.failf(key, path, "already set on line %d: keep one of the two", first)
		return
	}
	w.seen[path] = key.Line
	switch {
	case !isLeaf:
		w.mapping(value, path)
	case isNull(value):
		w.failf(value, path, "has no value: give one, or remove the line to keep the default")
	case value.Kind == yaml.ScalarNode:
		if err := l.setText(w.config, value.Value); err != nil {
			w.failf(value, path, "%w", err)
		}
	case value.Kind == yaml.SequenceNode:
		w.sequence(l, value)
	default:
		w.failf(value, path, "expected a value here, not keys or an alias")
	}
}

// sequence turns a YAML list into the comma-separated form of the same list.
func (w *fileWalk) sequence(l leaf, n *yaml.Node) {
	if l.in(w.config).Kind() != reflect.Slice {
		w.failf(n, l.path, "takes one value, not a list")
		return
	}
	items := make([]string, 0, len(n.Content))
	_, isPeers := l.in(w.config).Interface().([]Peer)
	for _, item := range n.Content {
		switch {
		case isPeers && item.Kind == yaml.MappingNode:
			peer, ok := w.peer(item, l.path)
			if !ok {
				return
			}
			items = append(items, peer)
		case item.Kind == yaml.ScalarNode && !isNull(item):
			items = append(items, item.Value)
		default:
			w.failf(item, l.path, "expected a value for each item of the list")
			return
		}
	}
	if err := l.setText(w.config, strings.Join(items, ",")); err != nil {
		w.failf(n, l.path, "%w", err)
	}
}

// peer reads {id: 1, address: host:port} as id=host:port.
func (w *fileWalk) peer(n *yaml.Node, path string) (string, bool) {
	values := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Value != "id" && key.Value != "address" {
			w.errs = append(w.errs, fmt.Errorf("%w %s.%s (line %d): did you mean %s?", ErrUnknownKey, path, key.Value, key.Line,
				nearest(key.Value, []string{"id", "address"})))
			return "", false
		}
		if _, twice := values[key.Value]; twice || value.Kind != yaml.ScalarNode {
			w.failf(key, path, "each peer has one id and one address")
			return "", false
		}
		values[key.Value] = value.Value
	}
	if len(values) != 2 {
		w.failf(n, path, "a peer needs both, as in {id: 1, address: node-1.example:7400}")
		return "", false
	}
	return values["id"] + "=" + values["address"], true
}

// failf records a mistake at n. The format may use %w for the cause.
func (w *fileWalk) failf(n *yaml.Node, path, format string, args ...any) {
	cause := fmt.Errorf(format, args...)
	if path == "" {
		path = "the file"
	}
	w.errs = append(w.errs, fmt.Errorf("%w: %s (line %d): %w", ErrInvalid, path, n.Line, cause))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// nearestPath is nearest among the keys and sections of a file.
func (t *keyTable) nearestPath(path string) string {
	return nearest(path, append(slices.Sorted(maps.Keys(t.sections)), t.leafPaths()...))
}

// nearestLeaf is nearest among the keys that hold a value.
func (t *keyTable) nearestLeaf(path string) string { return nearest(path, t.leafPaths()) }

func (t *keyTable) leafPaths() []string {
	paths := make([]string, 0, len(t.leaves)+len(t.sections))
	for _, l := range t.leaves {
		paths = append(paths, l.path)
	}
	return paths
}

// notSettings are LOCKSTEP_* variables that are nobody's mistake: the path of
// the file itself, what commands ask nodes with (LOCKSTEP_ADMIN_TOKEN and its
// like), what the tests use (LOCKSTEP_BIN among it), and what Kubernetes and
// Docker links put into the environment for a service that is called lockstep.
var notSettings = regexp.MustCompile(`^LOCKSTEP_(CONFIG$|BIN$|ADMIN_(TOKEN|CA|CERT|KEY)$|TEST_|E2E_|([A-Z0-9_]+_)?(SERVICE_HOST$|SERVICE_PORT(_|$)|PORT$|PORT_[0-9]))`)

func (c *Config) applyEnviron(environ []string) error {
	keys := knownKeys()
	var errs []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || notSettings.MatchString(name) {
			continue
		}
		l, ok := keys.byEnv[name]
		if !ok {
			meant := envName(keys.nearestLeaf(strings.TrimPrefix(name, envPrefix)))
			errs = append(errs, fmt.Errorf("%w %s (environment): did you mean %s?", ErrUnknownKey, name, meant))
			continue
		}
		if err := l.setText(c, value); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s (environment %s): %w", ErrInvalid, l.path, name, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) applySets(sets []string) error {
	keys := knownKeys()
	var errs []error
	for _, entry := range sets {
		path, value, ok := strings.Cut(entry, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("%w: --set %q: write key=value, such as --set log.level=debug", ErrInvalid, entry))
			continue
		}
		l, ok := keys.byPath[path]
		if !ok {
			errs = append(errs, fmt.Errorf("%w %s (--set): did you mean %s?", ErrUnknownKey, path, keys.nearestLeaf(path)))
			continue
		}
		if err := l.setText(c, value); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s (--set): %w", ErrInvalid, path, err))
		}
	}
	return errors.Join(errs...)
}

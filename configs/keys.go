package configs

import (
	_ "embed"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// reference is the annotated file with every key; its comments are the one
// place where a key is explained.
//
//go:embed reference.yaml
var reference []byte

// Key describes one setting for help texts and generated documentation.
type Key struct {
	Path    string // dotted, as after --set
	Env     string // the environment variable that sets it
	Default string // as it would be written after --set; empty if there is none
	Doc     string // the comment above the key in reference.yaml, in one line
}

// Keys lists every setting in the order of reference.yaml's struct, Config.
func Keys() []Key {
	docs := referenceDocs()
	defaults := Default()
	keys := make([]Key, 0, len(knownKeys().leaves))
	for _, l := range knownKeys().leaves {
		keys = append(keys, Key{
			Path:    l.path,
			Env:     envName(l.path),
			Default: formatValue(l.in(&defaults)),
			Doc:     docs[l.path],
		})
	}
	return keys
}

// leaf is one key that holds a value.
type leaf struct {
	path  string
	index []int // of the field, for reflect.Value.FieldByIndex
}

// in returns the leaf's field in c.
func (l leaf) in(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(l.index) }

// keyTable is what is known of Config's shape. It is built once and read-only.
type keyTable struct {
	leaves   []leaf
	byPath   map[string]leaf
	byEnv    map[string]leaf
	sections map[string]bool // paths that hold keys instead of a value
}

var knownKeys = sync.OnceValue(func() *keyTable {
	t := &keyTable{byPath: map[string]leaf{}, byEnv: map[string]leaf{}, sections: map[string]bool{}}
	t.walk(reflect.TypeFor[Config](), "", nil)
	for _, l := range t.leaves {
		t.byPath[l.path] = l
		t.byEnv[envName(l.path)] = l
	}
	return t
})

func (t *keyTable) walk(typ reflect.Type, prefix string, index []int) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		path := joinPath(prefix, f.Tag.Get("yaml"))
		at := append(append([]int(nil), index...), i)
		if f.Type.Kind() == reflect.Struct {
			t.sections[path] = true
			t.walk(f.Type, path, at)
			continue
		}
		t.leaves = append(t.leaves, leaf{path: path, index: at})
	}
}

func joinPath(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// envPrefix starts every environment variable that is a setting.
const envPrefix = "LOCKSTEP_"

func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// setText sets the leaf from text, the way the environment, --set and every
// scalar in the file write it. Lists are separated by commas.
func (l leaf) setText(c *Config, text string) error {
	switch field := l.in(c).Addr().Interface().(type) {
	case *string:
		*field = text
		return nil
	case *bool:
		return setScalar(field, text, parseBool)
	case *int:
		return setScalar(field, text, parseInt)
	case *int32:
		return setScalar(field, text, parseInt32)
	case *Size:
		return setScalar(field, text, ParseSize)
	case *time.Duration:
		return setScalar(field, text, parseDuration)
	case *[]string:
		return setList(field, text, func(s string) (string, error) { return strings.TrimSpace(s), nil })
	case *[]Listener:
		return setList(field, text, ParseListener)
	case *[]Peer:
		return setList(field, text, ParsePeer)
	default:
		return fmt.Errorf("%s has the type %T, which cannot be set", l.path, field)
	}
}

func setScalar[T any](field *T, text string, parse func(string) (T, error)) error {
	v, err := parse(text)
	if err != nil {
		return err
	}
	*field = v
	return nil
}

func setList[T any](field *[]T, text string, parse func(string) (T, error)) error {
	list := []T{}
	if strings.TrimSpace(text) != "" {
		for _, item := range strings.Split(text, ",") {
			v, err := parse(item)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
	}
	*field = list
	return nil
}

func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", text)
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	return n, nil
}

func parseInt32(text string) (int32, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number up to 2147483647", text)
	}
	return int32(n), nil
}

// parseDuration refuses bare numbers: 30 could be meant in any unit.
func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if _, bare := strconv.Atoi(text); err != nil || bare == nil {
		return 0, fmt.Errorf("%q is not a duration: write a number with its unit, such as 250ms, 30s or 10m", text)
	}
	return d, nil
}

// formatValue is the inverse of setText.
func formatValue(v reflect.Value) string {
	if v.Kind() != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	items := make([]string, v.Len())
	for i := range items {
		items[i] = fmt.Sprint(v.Index(i).Interface())
	}
	return strings.Join(items, ",")
}

// referenceDocs maps each path of reference.yaml to the comment above it.
func referenceDocs() map[string]string {
	docs := map[string]string{}
	var doc yaml.Node
	if err := yaml.Unmarshal(reference, &doc); err != nil || len(doc.Content) == 0 {
		return docs // a test loads the file, so this is never shipped
	}
	collectDocs(doc.Content[0], "", docs)
	return docs
}

func collectDocs(mapping *yaml.Node, prefix string, docs map[string]string) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		path := joinPath(prefix, key.Value)
		docs[path] = commentText(key.HeadComment)
		if value.Kind == yaml.MappingNode {
			collectDocs(value, path, docs)
		}
	}
}

func commentText(comment string) string {
	var words []string
	for _, line := range strings.Split(comment, "\n") {
		words = append(words, strings.Fields(strings.TrimLeft(line, "# "))...)
	}
	return strings.Join(words, " ")
}

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// protocolDoc is what docs/protocol.md promises.
type protocolDoc struct {
	apis   map[int16]versionRange
	rows   []*intended // of TestProtocolDifferences
	rights []*intended // of TestAuthorizationMatrix; their requests begin with who asks
}

type versionRange struct{ min, max int16 }

func (r versionRange) has(v int16) bool { return v >= r.min && v <= r.max }

// intended is a row of the table of differences for one of its fields.
type intended struct {
	line           int
	api            string
	versions       versionRange
	request, field string // with * for anything
	kafka, ours    string // with * for anything
	seen           map[int16]int
}

const (
	differencesHeading = "## Differences, one by one"
	rightsHeading      = "## Differences of rights, one by one"
)

var (
	apiCell   = regexp.MustCompile(`^[A-Za-z]+ \((\d+)\)$`)
	rangeCell = regexp.MustCompile(`^(\d+)(?:–(\d+))?$`)
)

// readProtocolDoc reads both tables. It is an error if a row cannot be read.
func readProtocolDoc(t *testing.T, path string) *protocolDoc {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseProtocolDoc(string(b))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return d
}

func parseProtocolDoc(text string) (*protocolDoc, error) {
	d := &protocolDoc{apis: map[int16]versionRange{}}
	section, line := "", 0
	for s := range strings.Lines(text) {
		line++
		s = strings.TrimSpace(s)
		if strings.HasPrefix(s, "## ") {
			section = s
		}
		cells := cellsOf(s)
		if cells == nil {
			continue
		}
		if m := apiCell.FindStringSubmatch(cells[0]); m != nil && len(cells) >= 3 {
			key, err := strconv.ParseInt(m[1], 10, 16)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", line, err)
			}
			r, ok := parseRange(cells[1])
			if _, twice := d.apis[int16(key)]; !ok || twice {
				return nil, fmt.Errorf("line %d: versions %q, or an API that is listed twice", line, cells[1])
			}
			d.apis[int16(key)] = r
		}
		rows := map[string]*[]*intended{differencesHeading: &d.rows, rightsHeading: &d.rights}[section]
		if rows != nil && cells[0] != "API" && !strings.HasPrefix(cells[0], "--") {
			added, err := rowsOf(line, cells)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", line, err)
			}
			*rows = append(*rows, added...)
		}
	}
	return d, nil
}

// cellsOf splits a row of a table; nil if the line is none.
func cellsOf(s string) []string {
	if !strings.HasPrefix(s, "|") || !strings.HasSuffix(s, "|") || len(s) < 2 {
		return nil
	}
	cells := strings.Split(s[1:len(s)-1], "|")
	for i := range cells {
		cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
	}
	return cells
}

func parseRange(s string) (versionRange, bool) {
	m := rangeCell.FindStringSubmatch(s)
	if m == nil {
		return versionRange{}, false
	}
	least, _ := strconv.Atoi(m[1]) // digits
	most := least
	if m[2] != "" {
		most, _ = strconv.Atoi(m[2])
	}
	return versionRange{int16(least), int16(most)}, least <= most
}

// rowsOf reads a row of a table of differences: one for each of its fields.
func rowsOf(line int, cells []string) (out []*intended, err error) {
	if len(cells) != 7 {
		return nil, fmt.Errorf("%d cells in a row of differences, want 7", len(cells))
	}
	if cells[6] == "" {
		return nil, fmt.Errorf("a difference without a reason")
	}
	row := intended{line: line, api: cells[0], request: cells[2], kafka: cells[4], ours: cells[5]}
	r, ok := parseRange(cells[1])
	if !ok {
		return nil, fmt.Errorf("versions %q", cells[1])
	}
	row.versions = r
	for field := range strings.SplitSeq(cells[3], ",") {
		one := row
		one.field, one.seen = strings.TrimSpace(field), map[int16]int{}
		out = append(out, &one)
	}
	return out, nil
}

// lists says whether a difference is in the table, and marks its row.
func (d *protocolDoc) lists(x difference, mark bool) bool {
	found := false
	for _, row := range d.rows {
		if row.matches(x) {
			found = true
			if mark {
				row.seen[x.version]++
			}
		}
	}
	return found
}

var elementKeys = regexp.MustCompile(`\[[^\]]*\]`)

func (r *intended) matches(x difference) bool {
	field := x.field
	if !strings.Contains(r.field, "[") {
		field = elementKeys.ReplaceAllString(field, "")
	}
	return strings.EqualFold(r.api, x.api) && r.versions.has(x.version) && like(r.request, x.request) &&
		like(r.field, field) && like(r.kafka, x.kafka) && like(r.ours, x.ours)
}

// stale returns the rows of one API, or of all, and of each row the versions,
// that were never seen.
func (d *protocolDoc) stale(api string) []string {
	var out []string
	for _, row := range d.rows {
		if api != "" && !strings.EqualFold(api, row.api) {
			continue
		}
		for v := row.versions.min; v <= row.versions.max; v++ {
			if row.seen[v] == 0 {
				out = append(out, fmt.Sprintf("line %d: %s %d, %s: %s", row.line, row.api, v, row.request, row.field))
			}
		}
	}
	return out
}

// like reports whether s is pattern, in which a * stands for anything.
func like(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// TestProtocolDiffTable shows that the comparison sees what it is for: a
// difference that is not listed, one that is, and one that is listed and gone.
func TestProtocolDiffTable(t *testing.T) {
	const doc = "| ListOffsets (2) | 1–9 | ours | |\n" + differencesHeading +
		"\n| API | Versions | Request | Field | Kafka | Lockstep | Why |\n|---|---|---|---|---|---|---|\n" +
		"| ListOffsets | 4–5 | the * | `Topics.Partitions.LeaderEpoch`, `Topics[a].Name` | 0 | -1 | no epochs |\n"
	d, err := parseProtocolDoc(doc)
	if err != nil {
		t.Fatal(err)
	}
	if d.apis[2] != (versionRange{1, 9}) || len(d.rows) != 2 {
		t.Fatalf("read %v and %d rows", d.apis, len(d.rows))
	}
	answer := func(epoch int32) *kmsg.ListOffsetsResponse {
		r := kmsg.NewPtrListOffsetsResponse()
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.LeaderEpoch = epoch
		tp := kmsg.NewListOffsetsResponseTopic()
		tp.Topic, tp.Partitions = "a", append(tp.Partitions, p)
		r.Topics = append(r.Topics, tp)
		return r
	}
	diffs := differences("ListOffsets", 4, "the end", normal{}, normal{}, diffOutcome{"answered", answer(0)}, diffOutcome{"answered", answer(-1)})
	if len(diffs) != 1 || !d.lists(diffs[0], true) {
		t.Errorf("a listed difference: %v", diffs)
	}
	for _, x := range []difference{
		{"ListOffsets", 6, "the end", "Topics[a].Partitions[0].LeaderEpoch", "0", "-1"},
		{"ListOffsets", 4, "an end", "Topics[a].Partitions[0].LeaderEpoch", "0", "-1"},
		{"ListOffsets", 4, "the end", "Topics[a].Partitions[0].LeaderEpoch", "0", "1"},
		{"ListOffsets", 4, "the end", "Topics[b].Name", "0", "-1"},
		{"Fetch", 4, "the end", "Topics[a].Partitions[0].LeaderEpoch", "0", "-1"},
	} {
		if d.lists(x, true) {
			t.Errorf("not listed, and taken for it: %v", x)
		}
	}
	if stale := d.stale(""); len(stale) != 3 {
		t.Errorf("one field of four was seen in its version, but these are called stale: %v", stale)
	}
	if diffs := differences("ListOffsets", 4, "x", normal{}, normal{}, diffOutcome{"answered", answer(0)}, diffOutcome{"closed", nil}); len(diffs) != 1 {
		t.Errorf("a closed connection in place of an answer: %v", diffs)
	}
}

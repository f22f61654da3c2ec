package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestListIsComplete holds List to naming each place once, with somebody who
// passes it, and to naming every constant of this package that product files
// use.
func TestListIsComplete(t *testing.T) {
	listed := map[Point]bool{}
	for _, p := range List() {
		if listed[p.Point] {
			t.Errorf("%s is listed twice", p.Point)
		}
		if !p.Leader && !p.Follower {
			t.Errorf("%s is passed by nobody", p.Point)
		}
		listed[p.Point] = true
	}
	out, err := exec.Command("go", "doc", "-all", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for line := range strings.Lines(string(out)) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok = ok && strings.HasSuffix(strings.TrimSpace(name), " Point"); !ok {
			continue
		}
		value, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(rest), `"`), `"`)
		names++
		if !listed[Point(value)] {
			t.Errorf("%s is not listed", value)
		}
	}
	if names != len(listed) {
		t.Errorf("%d constants, %d listed", names, len(listed))
	}
}

// TestNormalBinaryKnowsNone builds the program as it is shipped and looks for
// what only a test build holds.
func TestNormalBinaryKnowsNone(t *testing.T) {
	if Enabled {
		t.Skip("this is a test build")
	}
	path := filepath.Join(t.TempDir(), "lockstep")
	if out, err := exec.Command("go", "build", "-o", path, "lockstep/cmd/lockstep").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"LOCKSTEP_TEST_FAILPOINT", "LOCKSTEP_TEST_MUTANT", "lockstep.test.poison", string(ProposeAfter), string(AppendAnswered)} {
		if strings.Contains(string(raw), s) {
			t.Errorf("the normal binary holds %q", s)
		}
	}
}

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"lockstep/internal/cluster"
)

// adoptServer is a node whose brokers hold three topics.
func adoptServer(t *testing.T, silent map[int32]string) (addr string, asked *[]string) {
	var mu sync.Mutex // topics are adopted side by side
	asked = new([]string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		*asked = append(*asked, r.Method+" "+r.URL.RequestURI())
		mu.Unlock()
		enc := json.NewEncoder(w)
		if r.URL.Path == "/foreign" {
			_ = enc.Encode(cluster.ForeignReport{Silent: silent, Topics: []cluster.ForeignTopic{
				{Name: "one", State: cluster.CopySingle, Copies: []cluster.ForeignCopy{{Node: 2, Partitions: 4, Offsets: 90, End: 100}}},
				{Name: "two", State: cluster.CopyConflict, Copies: []cluster.ForeignCopy{{Node: 1, End: 5}, {Node: 2, End: 6}}},
				{Name: "none", State: cluster.CopyEmpty, Copies: []cluster.ForeignCopy{{Node: 1}}},
				{Name: "left", State: cluster.CopyAside, Copies: []cluster.ForeignCopy{{Node: 1, End: 3}}}}})
			return
		}
		_ = enc.Encode(struct{}{})
		switch name := r.URL.Query().Get("topic"); {
		case name == "cut":
		case name == "two" && r.URL.Query().Get("from") == "":
			_ = enc.Encode(map[string]string{"error": "say which with --from"})
		default:
			_ = enc.Encode(map[string]any{"result": cluster.AdoptResult{Topic: name, Partitions: 4, Offsets: 90, Holders: []int32{2},
				Copying: []int32{1, 3}, Aside: []int32{5}, Groups: 7, Dropped: []string{"a.b"}}})
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), asked
}

func TestAdoptCommandLists(t *testing.T) {
	addr, asked := adoptServer(t, map[int32]string{3: "asleep"})
	out, code, err := runCommand(adoptCommand(), "--admin", addr)
	if code != 0 {
		t.Fatalf("exit %d, %v", code, err)
	}
	for _, want := range []string{"TOPIC", "one    single    2     4           90       100", "two    conflict  1", "two    conflict  2", "! node 3 could not be asked: asleep"} {
		if !strings.Contains(out, want) {
			t.Errorf("the list lacks %q:\n%s", want, out)
		}
	}
	if out, code, _ := runCommand(adoptCommand(), "--admin", addr, "--all"); code != exitFailed || !strings.Contains(out, "asleep") {
		t.Errorf("all, with a broker away: exit %d: %s", code, out)
	}
	if slices.ContainsFunc(*asked, func(r string) bool { return strings.HasPrefix(r, "POST") }) {
		t.Errorf("something was adopted with a broker away: %q", *asked)
	}
	var r cluster.ForeignReport
	out, code, err = runCommand(adoptCommand(), "--admin", addr, "-o", "json")
	if jerr := json.Unmarshal([]byte(out), &r); jerr != nil || code != 0 || len(r.Topics) != 4 {
		t.Errorf("as JSON: exit %d, %v, %v: %s", code, err, jerr, out)
	}
}

func TestAdoptCommandAdopts(t *testing.T) {
	addr, asked := adoptServer(t, nil)
	out, code, err := runCommand(adoptCommand(), "--admin", addr, "--all")
	if code != exitFailed || !strings.Contains(out, "! two: say which with --from") ||
		!strings.Contains(out, "adopted one: 4 partitions, 90 offsets; as it is on node 2; copied to node 1,3; kept aside on node 5; committed offsets of 7 consumer groups; settings left out: a.b") {
		t.Errorf("all: exit %d, %v: %s", code, err, out)
	}
	slices.Sort(*asked)
	if want := []string{"GET /foreign", "POST /adopt?topic=one", "POST /adopt?topic=two"}; !slices.Equal(*asked, want) {
		t.Errorf("asked %q, want %q: neither what is empty nor what is kept aside", *asked, want)
	}
	*asked = nil
	if out, code, err = runCommand(adoptCommand(), "two", "--admin", addr, "--from", "2", "--discard", "1,3", "-o", "json"); code != 0 || !strings.Contains(out, `"kept_aside":[5]`) {
		t.Errorf("one chosen: exit %d, %v: %s", code, err, out)
	}
	if want := "POST /adopt?discard=1&discard=3&from=2&topic=two"; (*asked)[1] != want {
		t.Errorf("asked %q, want %q", *asked, want)
	}
	if out, code, _ = runCommand(adoptCommand(), "cut", "--admin", addr); code != exitFailed || !strings.Contains(out, "the outcome is not known") {
		t.Errorf("an answer that ends too early: exit %d: %s", code, out)
	}
	for _, args := range [][]string{{"--all", "one"}, {"--from", "2"}, {"--discard", "2"}, {"--all", "--from", "2"}, {"one", "-o", "xml"}, {"--admin", "nowhere"}} {
		if _, code, err := runCommand(adoptCommand(), args...); code != exitUsage || err == nil {
			t.Errorf("%q: exit %d, %v", args, code, err)
		}
	}
}

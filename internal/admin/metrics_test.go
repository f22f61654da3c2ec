package admin

import (
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/internal/cluster"
)

// The leader, and nobody else, says how far the others are behind it.
func TestFollowersLag(t *testing.T) {
	t.Parallel()
	c := NewCollector(nil, Config{Self: 2}).(*collector)
	members := []cluster.MemberStatus{{Node: 1, Applied: 90}, {Node: 2, Applied: 100}, {Node: 3, Applied: 103}}
	var got []string
	gauge := func(_ *prometheus.Desc, v float64, labels ...string) { got = append(got, fmt.Sprint(labels, v)) }
	c.collectFollowers(gauge, &cluster.GroupStatus{Leader: 2, Members: members}, "7")
	if want := []string{"[7 1] 10", "[7 3] 0"}; !slices.Equal(got, want) { // 3 may have been heard of later
		t.Errorf("the leader says %v, want %v", got, want)
	}
	got = nil
	c.collectFollowers(gauge, &cluster.GroupStatus{Leader: 3, Members: members}, "7")
	c.collectFollowers(gauge, &cluster.GroupStatus{Leader: 2, Members: members[:1]}, "7")
	if got != nil {
		t.Errorf("who does not lead, or knows nothing of itself yet, says %v", got)
	}
}

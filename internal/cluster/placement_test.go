package cluster

import (
	"slices"
	"testing"
)

// Groups are spread evenly, and what has its place keeps it as far as that goes.
func TestPlanPlaces(t *testing.T) {
	t.Parallel()
	all := []int32{1, 2, 3, 4, 5}
	for name, tc := range map[string]struct {
		now     map[uint32][]int32
		members []int32
		factor  int
		moves   int // seats that change at most, of groups that had a place
	}{
		"every node has every group": {map[uint32][]int32{1: all, 2: all, 3: all, 4: all, 5: all}, all, 3, 0},
		"two nodes came":             {map[uint32][]int32{1: {1, 2, 3}, 2: {1, 2, 3}, 3: {1, 2, 3}, 4: {1, 2, 3}, 5: {1, 2, 3}}, all, 3, 6},
		"as it should be":            {map[uint32][]int32{1: {1, 2, 3}, 2: {3, 4, 5}, 3: {1, 4, 5}}, all, 3, 0},
		"fewer nodes than asked for": {map[uint32][]int32{1: {1}, 2: {1}}, []int32{1, 2}, 3, 2},
		"a node went":                {map[uint32][]int32{1: {1, 2, 9}, 2: {2, 3, 9}}, []int32{1, 2, 3, 4}, 3, 3},
		"nobody":                     {map[uint32][]int32{1: {1}}, nil, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			load := make(map[int32]int)
			moves := 0
			for g, ids := range planPlaces(tc.now, tc.members, tc.factor) {
				if len(ids) != min(tc.factor, len(tc.members)) || !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
					t.Errorf("group %d goes to %v", g, ids)
				}
				for _, id := range ids {
					load[id]++
					if !slices.Contains(tc.members, id) {
						t.Errorf("group %d goes to node %d", g, id)
					}
					if !slices.Contains(tc.now[g], id) {
						moves++
					}
				}
			}
			if moves > tc.moves {
				t.Errorf("%d seats move, want at most %d", moves, tc.moves)
			}
			for _, id := range tc.members {
				for _, other := range tc.members {
					if load[id]-load[other] > 1 {
						t.Errorf("node %d holds %d groups, node %d %d", id, load[id], other, load[other])
					}
				}
			}
		})
	}
}

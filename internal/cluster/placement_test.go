package cluster

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
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
			for g, ids := range planPlaces(tc.now, tc.members, nil, tc.factor) {
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

// A group is in as many racks as it can be: the loss of one takes no majority along.
func TestPlanPlacesMindsRacks(t *testing.T) {
	t.Parallel()
	six := []int32{1, 2, 3, 4, 5, 6}
	twos := map[int32]string{1: "a", 2: "a", 3: "b", 4: "b", 5: "c", 6: "c"}
	every := func(n uint32, ids ...int32) map[uint32][]int32 {
		out := make(map[uint32][]int32)
		for g := range n {
			out[g+1] = ids
		}
		return out
	}
	for name, tc := range map[string]struct {
		now     map[uint32][]int32
		members []int32
		racks   map[int32]string
		factor  int
		most    int // nodes of one group in one rack
		moves   int // seats that change at most
		uneven  int // groups that a node may hold more than another
	}{
		"three racks of two":           {every(6, six...), six, twos, 3, 1, 0, 1},
		"a rack came":                  {every(6, 1, 2, 3), six, twos, 3, 1, 12, 1},
		"two of a group in one rack":   {map[uint32][]int32{1: {1, 2, 3}}, six, twos, 3, 1, 1, 1},
		"as it should be":              {map[uint32][]int32{1: {1, 3, 5}, 2: {2, 4, 6}}, six, twos, 3, 1, 0, 1},
		"five copies in three racks":   {every(6, six...), six, twos, 5, 2, 0, 1},
		"two racks":                    {every(4, six...), six, map[int32]string{1: "a", 2: "a", 3: "a", 4: "b", 5: "b", 6: "b"}, 3, 2, 0, 1},
		"one rack":                     {every(4, six...), six, map[int32]string{1: "a", 2: "a", 3: "a", 4: "a", 5: "a", 6: "a"}, 3, 3, 0, 1},
		"a rack of one":                {every(4, 1, 2, 3), []int32{1, 2, 3, 4, 5}, map[int32]string{1: "a", 2: "b", 3: "b", 4: "c", 5: "c"}, 3, 1, 4, 2},
		"a node without a rack":        {every(3, six...), six, map[int32]string{1: "a", 2: "a", 3: "a", 4: "a", 5: "", 6: ""}, 3, 1, 0, 3},
		"fewer nodes than asked for":   {every(2, 1, 2), []int32{1, 2}, twos, 3, 2, 0, 0},
		"a node went, its rack stayed": {map[uint32][]int32{1: {2, 3, 5}, 2: {2, 4, 6}}, []int32{1, 3, 4, 5, 6}, twos, 3, 1, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			load := make(map[int32]int)
			moves := 0
			for g, ids := range planPlaces(tc.now, tc.members, tc.racks, tc.factor) {
				if len(ids) != min(tc.factor, len(tc.members)) {
					t.Errorf("group %d goes to %v", g, ids)
				}
				in := make(map[string]int)
				for _, id := range ids {
					load[id]++
					if rack := tc.racks[id]; rack != "" {
						in[rack]++
					}
					if !slices.Contains(tc.now[g], id) {
						moves++
					}
				}
				for rack, n := range in {
					if n > tc.most {
						t.Errorf("group %d goes to %v: %d of it in rack %s", g, ids, n, rack)
					}
				}
			}
			if moves > tc.moves {
				t.Errorf("%d seats move, want at most %d", moves, tc.moves)
			}
			for _, id := range tc.members {
				for _, other := range tc.members {
					if load[id]-load[other] > tc.uneven {
						t.Errorf("node %d holds %d groups, node %d %d", id, load[id], other, load[other])
					}
				}
			}
		})
	}
}

// Groups are moved one after the other, and each time all is planned anew from where
// they are by then: that comes to an end.
func TestPlanPlacesSettles(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var members []int32
		racks := make(map[int32]string)
		for id := range int32(1 + rnd.IntN(9)) {
			members = append(members, id+1)
			if r := rnd.IntN(5); r > 0 {
				racks[id+1] = strconv.Itoa(r)
			}
		}
		now := make(map[uint32][]int32)
		for g := range uint32(1 + rnd.IntN(8)) {
			for _, i := range rnd.Perm(10)[:1+rnd.IntN(5)] { // some are no members any more
				now[g+1] = append(now[g+1], int32(i+1))
			}
			slices.Sort(now[g+1])
		}
		factor, groups := 1+rnd.IntN(5), len(now)
		steps := 0
		for ; steps <= 2*groups; steps++ {
			targets := planPlaces(now, members, racks, factor)
			again := slices.IndexFunc(slices.Sorted(maps.Keys(now)), func(g uint32) bool { return !slices.Equal(targets[g], now[g]) })
			if again < 0 {
				break
			}
			now[uint32(again+1)] = targets[uint32(again+1)]
		}
		if steps > 2*groups {
			t.Errorf("seed %d: %d groups are moved without end", seed, groups)
		}
	}
}

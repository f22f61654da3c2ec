package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"lockstep/internal/cluster"
)

// orderPlacement has a group moved to a set of nodes.
func (s *Server) orderPlacement(ctx context.Context, q url.Values) error {
	group, err := number(q, "group", 32)
	if err != nil {
		return err
	}
	since, err := number(q, "since", 64)
	if err != nil {
		return err
	}
	var nodes []int32
	for part := range strings.SplitSeq(q.Get("nodes"), ",") {
		id, err := strconv.ParseInt(part, 10, 32)
		if err != nil || id < 1 {
			return fmt.Errorf("%w: ?nodes=%q is no list of nodes", errBadOrder, q.Get("nodes"))
		}
		nodes = append(nodes, int32(id))
	}
	s.cfg.Logger.Info("order to place a group", "group", group, "nodes", fmt.Sprint(nodes))
	return s.cluster.PlaceGroup(ctx, uint32(group), nodes, uint64(since))
}

// Placement returns where a node says that the groups are, and where a
// rebalance would have them.
func (c *Client) Placement(ctx context.Context, addr string) (p cluster.PlacementReport, raw []byte, err error) {
	raw, err = c.ask(ctx, addr, "/placement", nil)
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		return p, nil, fmt.Errorf("ask %s for the placement: %w", addr, err)
	}
	return p, raw, nil
}

// PlaceGroup has a group moved to a set of nodes, from the place that was seen.
func (c *Client) PlaceGroup(ctx context.Context, addr string, group uint32, nodes []int32, since uint64) error {
	var ids []string
	for _, id := range nodes {
		ids = append(ids, strconv.Itoa(int(id)))
	}
	return c.order(ctx, addr, "/placement", url.Values{"group": {strconv.Itoa(int(group))}, "nodes": {strings.Join(ids, ",")},
		"since": {strconv.FormatUint(since, 10)}})
}

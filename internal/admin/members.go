package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/hashicorp/go-hclog"

	"lockstep/internal/cluster"
)

// Orders about the cluster's nodes. Any node takes them.
const (
	OrderAdd     = "add"
	OrderRemove  = "remove"
	OrderReplace = "replace"
)

func (s *Server) handleMembers(mux *http.ServeMux) {
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.cluster.Members())
	})
	mux.HandleFunc("GET /placement", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.cluster.Placement())
	})
	mux.HandleFunc("POST /placement", s.orderly(s.orderPlacement))
	mux.HandleFunc("POST /members", s.orderlyWarning(s.orderMember))
	mux.HandleFunc("POST /transfer", s.orderly(s.orderTransfer))
	mux.HandleFunc("POST /log-level", s.orderly(s.orderLogLevel))
}

// errBadOrder is wrapped by what is wrong with an order itself.
var errBadOrder = errors.New("bad order")

// orderTaken is the answer to an order that was taken.
type orderTaken struct {
	Ordered  bool     `json:"ordered"`
	Warnings []string `json:"warnings,omitempty"` // what the operator should know of it
}

// orderly makes a handler of an order, of which there is nothing to be warned.
func (s *Server) orderly(do func(ctx context.Context, q url.Values) error) http.HandlerFunc {
	return s.orderlyWarning(func(ctx context.Context, q url.Values) ([]string, error) { return nil, do(ctx, q) })
}

// orderlyWarning makes a handler of an order.
func (s *Server) orderlyWarning(do func(ctx context.Context, q url.Values) ([]string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch warnings, err := do(r.Context(), r.URL.Query()); {
		case errors.Is(err, errBadOrder):
			writeError(w, http.StatusBadRequest, err)
		case err != nil:
			writeError(w, http.StatusConflict, err)
		default:
			writeJSON(w, http.StatusOK, orderTaken{true, warnings})
		}
	}
}

func number(q url.Values, name string, bits int) (int64, error) {
	n, err := strconv.ParseInt(q.Get(name), 10, bits)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: ?%s=%q is no number", errBadOrder, name, q.Get(name))
	}
	return n, nil
}

func (s *Server) orderMember(ctx context.Context, q url.Values) ([]string, error) {
	id, err := number(q, "node", 32)
	if err != nil {
		return nil, err
	}
	s.cfg.Logger.Info("order about a member", "order", q.Get("order"), "node", id)
	switch q.Get("order") {
	case OrderAdd:
		return s.cluster.AddNode(ctx, int32(id), q.Get("address"))
	case OrderRemove:
		return s.cluster.RemoveNode(ctx, int32(id), false)
	case OrderReplace:
		return s.cluster.RemoveNode(ctx, int32(id), true)
	}
	return nil, fmt.Errorf("%w: ?order= is %s, %s or %s", errBadOrder, OrderAdd, OrderRemove, OrderReplace)
}

func (s *Server) orderTransfer(ctx context.Context, q url.Values) error {
	group, err := number(q, "group", 32)
	if err != nil {
		return err
	}
	to, err := number(q, "to", 32)
	if err != nil {
		return err
	}
	return s.cluster.Transfer(ctx, uint32(group), int32(to))
}

// orderLogLevel changes how much this node logs until it ends.
func (s *Server) orderLogLevel(_ context.Context, q url.Values) error {
	level := hclog.LevelFromString(q.Get("level"))
	if level == hclog.NoLevel {
		return fmt.Errorf("%w: ?level= is trace, debug, info, warn or error", errBadOrder)
	}
	s.cfg.Logger.Info("log level changes", "level", level.String())
	s.cfg.Logger.SetLevel(level)
	return nil
}

// Members returns what a node says of all nodes.
func (c *Client) Members(ctx context.Context, addr string) (ms []cluster.MemberReport, raw []byte, err error) {
	raw, err = c.ask(ctx, addr, "/members", nil)
	if err == nil {
		err = json.Unmarshal(raw, &ms)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s for the members: %w", addr, err)
	}
	return ms, raw, nil
}

// OrderMember gives an order about a node; address is for OrderAdd. It returns what
// the operator should know of an order that was taken.
func (c *Client) OrderMember(ctx context.Context, addr, order string, node int32, address string) (warnings []string, err error) {
	return c.orderWarning(ctx, addr, "/members", url.Values{"order": {order}, "node": {strconv.Itoa(int(node))}, "address": {address}})
}

// Transfer has a group's leader hand over to a node, 0 for the best placed.
func (c *Client) Transfer(ctx context.Context, addr string, group uint32, to int32) error {
	return c.order(ctx, addr, "/transfer", url.Values{"group": {strconv.Itoa(int(group))}, "to": {strconv.Itoa(int(to))}})
}

// LogLevel changes how much a node logs.
func (c *Client) LogLevel(ctx context.Context, addr, level string) error {
	return c.order(ctx, addr, "/log-level", url.Values{"level": {level}})
}

func (c *Client) order(ctx context.Context, addr, path string, q url.Values) error {
	_, err := c.orderWarning(ctx, addr, path, q)
	return err
}

func (c *Client) orderWarning(ctx context.Context, addr, path string, q url.Values) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+askTimeout/2)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, addr, path, q)
	if err != nil {
		return nil, fmt.Errorf("order from %s: %w", addr, err)
	}
	defer resp.Body.Close()
	var taken orderTaken
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&taken); err != nil {
		return nil, fmt.Errorf("%s took the order, and its answer cannot be read: %w", addr, err)
	}
	return taken.Warnings, nil
}

package admin

import (
	"context"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// What there is to know of an order that was taken comes with the answer.
func TestAnOrdersWarningsAreAnswered(t *testing.T) {
	want := []string{"node 2 is away"}
	srv := httptest.NewServer((&Server{}).orderlyWarning(func(context.Context, url.Values) ([]string, error) { return want, nil }))
	defer srv.Close()
	c := NewClient()
	defer c.Close()
	got, err := c.OrderMember(t.Context(), strings.TrimPrefix(srv.URL, "http://"), OrderRemove, 3, "")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("answered %q, %v", got, err)
	}
}

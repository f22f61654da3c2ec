package broker

import (
	"cmp"
	"context"
)

// Anonymous is the principal of a connection that does not authenticate.
const Anonymous = "ANONYMOUS"

// OwnQuotas returns the quotas that bear on this client's own connections, by
// key, as the broker would choose among those that fit: what names the user goes
// before what does not, then what names the client. An empty user stands for
// Anonymous.
func (a *Admin) OwnQuotas(ctx context.Context, user string) (map[string]float64, error) {
	all, err := a.Quotas(ctx)
	if err != nil {
		return nil, err
	}
	user = cmp.Or(user, Anonymous)
	out, best := make(map[string]float64), make(map[string]int8)
	for q, v := range all {
		if q.UserIs == 2 && q.User != user || q.ClientIs == 2 && q.Client != a.cfg.ClientID {
			continue
		}
		if rank := 3*q.UserIs + q.ClientIs; rank > best[q.Key] {
			best[q.Key], out[q.Key] = rank, v
		}
	}
	return out, nil
}

package proxy

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// DeleteGroups 0 to 2. The groups that this node coordinates are deleted on its
// broker, which refuses while they have members, and then in the catalog; the
// others are answered NOT_COORDINATOR. A group that the broker has never heard
// of, because another node coordinated it, is in the catalog alone.

func handleDeleteGroups(r *request) error {
	req, err := parse[*kmsg.DeleteGroupsRequest](r)
	if err != nil {
		return err
	}
	v := r.c.srv.cluster.View()
	resp := kmsg.NewPtrDeleteGroupsResponse()
	refuse := func(group string, code int16) {
		g := kmsg.NewDeleteGroupsResponseGroup()
		g.Group, g.ErrorCode = group, code
		resp.Groups = append(resp.Groups, g)
	}
	var ours []string
	for _, group := range req.Groups {
		if code := coordinatorCode(v, group); code != 0 {
			refuse(group, code)
			continue
		}
		ours = append(ours, group)
	}
	if req.Groups = ours; len(ours) == 0 {
		r.reply(resp)
		return nil
	}
	done := r.noteCommits(ours)
	ask(r, req, r.c.srv.cfg.Limits.UpstreamTimeout, func(got *kmsg.DeleteGroupsResponse, held *lease, err error) {
		if err != nil {
			done()
			for _, group := range ours {
				refuse(group, r.coordinatorFailed(group, err))
			}
			r.reply(resp)
			return
		}
		r.apart(func(ctx context.Context) {
			func() {
				defer done() // before the answer, and also in a panic
				for i := range got.Groups {
					r.deleteGroup(ctx, v, &got.Groups[i])
				}
			}()
			resp.Groups = append(resp.Groups, got.Groups...)
			r.replyHolding(resp, held)
		})
	})
	return nil
}

// noteCommits is NoteCommits of several groups. done is called once.
func (r *request) noteCommits(groups []string) (done func()) {
	var all []func()
	for _, group := range groups {
		all = append(all, r.c.srv.cluster.NoteCommits(group))
	}
	return func() {
		for _, one := range all {
			one()
		}
	}
}

// deleteGroup deletes in the catalog what the broker has deleted or does not
// know, and says so in its answer. The broker has checked the client's rights
// before either.
func (r *request) deleteGroup(ctx context.Context, v *View, g *kmsg.DeleteGroupsResponseGroup) {
	known := g.ErrorCode == 0
	if !known && g.ErrorCode != kerr.GroupIDNotFound.Code {
		return
	}
	g.ErrorCode = 0
	if err := r.c.srv.cluster.DeleteGroup(ctx, g.Group, v.CoordinatorEpoch(g.Group)); err != nil {
		g.ErrorCode = catalogCode(err)
		if known && g.ErrorCode == kerr.GroupIDNotFound.Code {
			g.ErrorCode = 0 // it had members once, and never committed
		}
	}
}

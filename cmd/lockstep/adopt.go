package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lockstep/internal/admin"
	"lockstep/internal/cluster"
	"lockstep/internal/progress"
)

// errNotAdopted ends adopt with exit code 1; which topics, and why, is in the
// output.
var errNotAdopted = errors.New("not every topic was adopted")

func adoptCommand() *cobra.Command {
	var f adminFlags
	var o cluster.AdoptOrder
	var all bool
	cmd := &cobra.Command{
		Use:   "adopt [TOPIC...]",
		Short: "List the topics that brokers held before lockstep, or bring them into the cluster",
		Long: `List the topics that brokers held before lockstep stood in front of them, or
bring them into the cluster.

Without arguments it lists them. A topic that is adopted keeps its records,
offsets and settings; the brokers that do not have it copy it from the one that
has. Nobody may write to the brokers past lockstep from then on.

Brokers that hold the same records under one name are all taken as they are. If
their records differ, say with --from whose are meant. The others' copies are kept
aside: nothing in them is touched, and those brokers take no part in the topic
until "lockstep rebuild TOPIC --force --admin THAT-NODE" deletes the copy there
and makes it anew. --discard gives a copy up at once. A majority of the nodes must
be able to hold the topic.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if all && len(args) > 0 {
				return errors.New("--all and names of topics exclude each other")
			}
			if len(args) == 0 && (o.From != 0 || len(o.Discard) > 0) {
				return errors.New("--from and --discard need the name of a topic")
			}
			ctx, cancel := interruptible()
			defer cancel()
			client, err := adminClient(cmd)
			if err != nil {
				return failed(err)
			}
			defer client.Close()
			a := adopting{client: client, addrs: f.addrs, output: f.output, w: cmd.OutOrStdout(), errs: cmd.ErrOrStderr()}
			if len(args) == 0 && !all {
				return failed(a.list(ctx))
			}
			return failed(a.adopt(ctx, args, o))
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "adopt every topic that is not in conflict")
	cmd.Flags().Int32Var(&o.From, "from", 0, "node whose broker's copy is meant")
	cmd.Flags().Int32SliceVar(&o.Discard, "discard", nil, "nodes whose brokers' other copies are deleted")
	tokenFlag(cmd)
	return cmd
}

// errSilentBrokers ends adopt --all where a broker cannot be asked: it may hold
// other records under any of the names.
var errSilentBrokers = errors.New("not every broker can be asked what it holds: start what is missing, or name the topics; what turns up later is kept aside")

// adopting is one run of the command.
type adopting struct {
	client *admin.Client
	addrs  []string
	output string
	w      io.Writer
	errs   io.Writer // how far it is
}

func (a *adopting) report(ctx context.Context) (*cluster.ForeignReport, error) {
	var errs []error
	for _, addr := range a.addrs {
		r, err := a.client.Foreign(ctx, addr)
		if err == nil {
			a.addrs = []string{addr}
			return r, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (a *adopting) list(ctx context.Context) error {
	r, err := a.report(ctx)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return json.NewEncoder(a.w).Encode(r)
	}
	t := tabwriter.NewWriter(a.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TOPIC\tSTATE\tNODE\tPARTITIONS\tOFFSETS\tEND")
	for _, f := range r.Topics {
		for _, c := range f.Copies {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\n", f.Name, f.State, c.Node, c.Partitions, c.Offsets, c.End)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	a.tellSilent(r)
	if len(r.Topics) == 0 {
		fmt.Fprintln(a.w, "no broker holds a topic that is not lockstep's")
	}
	return nil
}

func (a *adopting) tellSilent(r *cluster.ForeignReport) {
	if a.output == outputJSON {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(r.Silent)) {
		fmt.Fprintf(a.w, "! node %d could not be asked: %s\n", id, r.Silent[id])
	}
}

// adopted is the outcome for one topic.
type adopted struct {
	Topic  string               `json:"topic"`
	Result *cluster.AdoptResult `json:"result,omitempty"`
	Error  string               `json:"error,omitempty"`
}

// adoptAtOnce is how many topics are adopted side by side: what takes long is
// reading them, and each may be on another broker.
const adoptAtOnce = 4

// adoptAll adopts topics and notes the outcomes, each before its channel is
// closed.
func (a *adopting) adoptAll(ctx context.Context, names []string, o cluster.AdoptOrder, outcomes []adopted) []chan struct{} {
	done := make([]chan struct{}, len(names))
	free := make(chan struct{}, adoptAtOnce)
	for i := range names {
		done[i] = make(chan struct{})
	}
	go func() {
		for i, name := range names {
			free <- struct{}{}
			go func() {
				one, order := adopted{Topic: name}, o
				order.Topic = name
				var err error
				if one.Result, err = a.client.Adopt(ctx, a.addrs[0], order); err != nil {
					one.Error = err.Error()
				}
				outcomes[i] = one
				close(done[i])
				<-free
			}()
		}
	}()
	return done
}

// adopt adopts the topics named, or all that are not in conflict.
func (a *adopting) adopt(ctx context.Context, names []string, o cluster.AdoptOrder) error {
	r, err := a.report(ctx) // finds a node that answers, too
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if len(r.Silent) > 0 {
			a.tellSilent(r)
			return errSilentBrokers
		}
		for _, f := range r.Topics {
			if f.State == cluster.CopySingle || f.State == cluster.CopySame || f.State == cluster.CopyConflict {
				names = append(names, f.Name)
			}
		}
	}
	outcomes, bad := make([]adopted, len(names)), false
	bar := progress.Start(a.errs, "adopt")
	for i, done := range a.adoptAll(ctx, names, o, outcomes) {
		bar.Set(int64(i), int64(len(names)), "reading "+names[i])
		<-done
	}
	bar.Done()
	for i := range outcomes {
		bad = bad || outcomes[i].Error != ""
		if a.output != outputJSON {
			a.tell(&outcomes[i])
		}
	}
	if a.output == outputJSON {
		err = json.NewEncoder(a.w).Encode(outcomes)
	} else {
		_, err = fmt.Fprintln(a.w, "lockstep status shows how the copies get on; lockstep status --wait 1h waits for them")
	}
	if err == nil && bad {
		err = errNotAdopted
	}
	return err
}

func (a *adopting) tell(one *adopted) {
	r := one.Result
	if r == nil {
		fmt.Fprintf(a.w, "! %s: %s\n", one.Topic, one.Error)
		return
	}
	parts := []string{"as it is on node " + nodeList(r.Holders)}
	for _, p := range []struct {
		what  string
		nodes []int32
	}{{"copied to node ", r.Copying}, {"deleted before on node ", r.Discarded}, {"kept aside on node ", r.Aside}} {
		if len(p.nodes) > 0 {
			parts = append(parts, p.what+nodeList(p.nodes))
		}
	}
	if r.Groups > 0 {
		parts = append(parts, fmt.Sprintf("committed offsets of %d consumer groups", r.Groups))
	}
	if len(r.Dropped) > 0 {
		parts = append(parts, "settings left out: "+strings.Join(r.Dropped, ", "))
	}
	fmt.Fprintf(a.w, "adopted %s: %d partitions, %d offsets; %s\n", r.Topic, r.Partitions, r.Offsets, strings.Join(parts, "; "))
}

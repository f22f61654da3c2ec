package broker

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Nodes are the brokers that this one names to clients, host:port by its own
// node ids. Any goroutine.
func (a *Admin) Nodes(ctx context.Context) (map[int32]string, error) {
	meta, err := a.metadata(ctx, []kmsg.MetadataRequestTopic{})
	if err != nil {
		return nil, fmt.Errorf("ask who the broker is: %w", err)
	}
	out := make(map[int32]string, len(meta.Brokers))
	for _, b := range meta.Brokers {
		out[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	return out, nil
}

// Settings are a broker's own, by its node id. Any goroutine.
func (a *Admin) Settings(ctx context.Context, node int32) (map[string]string, error) {
	return a.DescribeConfig(ctx, kmsg.ConfigResourceTypeBroker, strconv.Itoa(int(node)))
}

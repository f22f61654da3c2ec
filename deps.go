//go:build deps

// Package deps pins the libraries while the rooms are being built.
package deps

import (
	_ "github.com/IBM/sarama"
	_ "github.com/hashicorp/go-hclog"
	_ "github.com/hashicorp/raft"
	_ "github.com/hashicorp/raft-boltdb/v2"
	_ "github.com/hashicorp/raft-wal"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/pierrec/lz4/v4"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/spf13/cobra"
	_ "github.com/twmb/franz-go/pkg/kfake"
	_ "github.com/twmb/franz-go/pkg/kgo"
	_ "github.com/twmb/franz-go/pkg/kmsg"
	_ "github.com/twmb/franz-go/pkg/kerr"
	_ "go.etcd.io/bbolt"
	_ "go.yaml.in/yaml/v3"
	_ "github.com/hashicorp/raft-wal/metadb"
)

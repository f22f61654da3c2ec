package main

import (
	"fmt"
	"sync"

	gometrics "github.com/hashicorp/go-metrics"
	goprometheus "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
)

// raftMetrics returns the metrics of hashicorp/raft itself. The library knows one
// receiver for the whole process, so all of a process's groups are counted
// together, and all nodes, where the demo has several. Any goroutine.
var raftMetrics = sync.OnceValues(func() (prometheus.Collector, error) {
	// What is not heard of for long stays: a counter that goes away and starts
	// again at zero cannot be told from a restart.
	sink, err := goprometheus.NewPrometheusSinkFrom(goprometheus.PrometheusOpts{Registerer: prometheus.NewRegistry(), Name: "raft_sink"})
	if err != nil {
		return nil, fmt.Errorf("raft's metrics: %w", err)
	}
	cfg := gometrics.DefaultConfig("")
	cfg.EnableHostname, cfg.EnableRuntimeMetrics = false, false // Go's own collector has them
	if _, err := gometrics.NewGlobal(cfg, sink); err != nil {
		return nil, fmt.Errorf("raft's metrics: %w", err)
	}
	return sink, nil
})

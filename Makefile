# Everything here needs Go and nothing else, except e2e and chaos with
# BROKER=kafka, which run real Kafka brokers and need a JDK and Maven; e2e looks
# at the status page and the alerts and needs chromium, chromedriver and
# prometheus, as rules does; compat needs kcat, Python and Node.js.

GO      ?= go
BIN     := bin/lockstep
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The linter is built once per version and Go release into .cache/bin.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := .cache/bin/golangci-lint-$(GOLANGCI_VERSION)-$(shell $(GO) env GOVERSION)

# The race detector needs cgo and a C compiler.
ifeq ($(shell $(GO) env CGO_ENABLED),1)
  RACE := $(shell command -v $(firstword $(shell $(GO) env CC)) >/dev/null 2>&1 && echo -race)
endif

TEST_TIMEOUT ?= 10m
E2E_TIMEOUT  ?= 55m
FUZZ_TIME    ?= 10s
FUZZ_JOBS    ?= $(shell nproc 2>/dev/null || echo 2)

# chaos: a seed gives the faults; SHRINK is how long a schedule that failed is
# made smaller. mutants: how often each mistake's schedule is run.
SEED     ?=
DURATION ?= 60s
BROKER   ?= embedded
SHRINK   ?= 0s
RUNS     ?= 20
# bench: ROUNDS alternate between the contestants; ROWS is a regular expression
# on a row's name, ONLY has their letters. A whole run writes docs/performance.md.
ROUNDS   ?=
ROWS     ?=
MATRIX   ?=
LONG     := ^(TestChaos|TestMutants|TestKillAtEveryFailpoint|TestCompat|TestBench|TestBenchCeiling|TestBenchFloor|TestScale)$$

# compat: QUICK=1 runs the most important features; ONLY is a regular expression
# on "client/feature".
QUICK    ?=
ONLY     ?=

.PHONY: rules build demo test e2e chaos failpoints mutants bench compat lint fuzz fmt clean man cli-docs

build: ## bin/lockstep, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(BIN) ./cmd/lockstep

demo: build ## three nodes with embedded brokers on this machine
	$(BIN) demo --data-dir data/demo

test: ## every fast test, under the race detector
ifeq ($(RACE),)
	@echo 'no C compiler found: the race detector is off for this run'
endif
	$(GO) test $(RACE) -timeout $(TEST_TIMEOUT) ./...
	$(GO) test -run '^TestIdleLaneStack$$' ./internal/apply

e2e: ## against real Kafka brokers
	$(GO) test -tags e2e -count=1 -v -timeout $(E2E_TIMEOUT) -skip '$(LONG)' ./e2e/...

chaos: ## seeded faults under load: make chaos SEED=7 DURATION=2m BROKER=kafka
	CHAOS_SEED='$(SEED)' CHAOS_DURATION='$(DURATION)' CHAOS_BROKER='$(BROKER)' CHAOS_SHRINK='$(SHRINK)' \
	  $(GO) test -tags e2e -count=1 -v -timeout 12h -run '^TestChaos$$' ./e2e

failpoints: ## kill -9 at every step between receive and acknowledge
	$(GO) test -tags e2e -count=1 -v -timeout 25m -run '^TestKillAtEveryFailpoint$$' ./e2e

mutants: ## would the checker notice? mistakes built in on purpose, RUNS times each
	E2E_MUTANT_RUNS='$(RUNS)' $(GO) test -tags e2e -count=1 -v -timeout 4h -run '^TestMutants$$' ./e2e

bench: ## beside plain and clustered Kafka: make bench ROUNDS=5 ROWS=regexp ONLY=abcd MATRIX=1
	BENCH_ROUNDS='$(ROUNDS)' BENCH_ROWS='$(ROWS)' BENCH_ONLY='$(ONLY)' BENCH_MATRIX='$(MATRIX)' \
	  BENCH_OUT='$(CURDIR)/docs/bench' BENCH_TABLE='$(if $(ROUNDS)$(ROWS)$(ONLY)$(MATRIX),,$(CURDIR)/docs/performance.md)' \
	  $(GO) test -tags e2e -count=1 -v -timeout 6h -run '^TestBench(Ceiling|Floor)?$$' ./e2e

compat: ## every client and feature; a full run writes docs/compat.md: make compat QUICK=1 ONLY=kcat
	COMPAT_QUICK='$(QUICK)' COMPAT_ONLY='$(ONLY)' COMPAT_TABLE='$(CURDIR)/docs/compat.md' \
	  $(GO) test -tags e2e -count=1 -v -timeout 60m -run '^TestCompat$$' ./e2e

lint: $(GOLANGCI) ## gofmt, then the linters and the import table of .golangci.yml
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi
	$(GOLANGCI) run ./...

# Renamed in one step, so that a build that was interrupted is not taken for
# the linter.
$(GOLANGCI):
	@mkdir -p .cache/bin/build
	GOBIN=$(CURDIR)/.cache/bin/build $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .cache/bin/build/golangci-lint $@

rules: ## the alert rules, by promtool (Debian: prometheus)
	promtool check rules deploy/prometheus/lockstep.rules.yml
	promtool test rules deploy/prometheus/lockstep.rules_test.yml

fuzz: ## every fuzz target for FUZZ_TIME, FUZZ_JOBS at once: make fuzz FUZZ_TIME=1h
	.ci/fuzz $(FUZZ_TIME) $(FUZZ_JOBS)

man: build ## manual pages in bin/man
	$(BIN) man --dir bin/man

cli-docs: ## docs/cli, one file per command, from what the commands say of themselves
	rm -rf docs/cli
	$(GO) run ./cmd/lockstep man --format markdown --dir docs/cli

fmt: ## gofmt everything
	gofmt -w .

clean: ## remove what was built and what the demo wrote
	rm -rf bin data/demo
	$(GO) clean -testcache

# Conclave. `make` or `make help` lists what there is.
# `make cluster` and `make test` need nothing but a Debian machine: `setup` installs what is missing.

SHELL := /bin/bash
CARGO := . scripts/env.sh && cargo
DATA_DIR ?= .cluster

.PHONY: help setup cluster test interop integration e2e check fix scripts-update bench jepsen build release

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing (compiler parts, Rust toolchain, ccache)
	@scripts/setup.sh

cluster: setup ## Build and run a three-node cluster on loopback; ctrl-C stops it
	@$(CARGO) build --locked --release --bin conclave
	@. scripts/env.sh && exec "$$CARGO_TARGET_DIR/release/conclave" cluster --dir "$(DATA_DIR)"

test: setup ## Everything a contributor must pass (what CI runs)
	@scripts/setup.sh test
	@scripts/test.sh

interop: setup ## Other people's clients against three nodes; FULL=1 for etcd-client's own suite
	@$(CARGO) build --locked --bin conclave
	@interop/run.sh

integration: setup ## etcd's own integration tests, where Debian's sources of etcd and Go are
	@$(CARGO) build --locked --bin conclave
	@interop/integration/run.sh

e2e: setup ## etcd's own end-to-end tests, where Debian's sources of etcd and Go are
	@$(CARGO) build --locked --bin conclave
	@interop/e2e.sh

check: setup ## Formatting, lints and docs; changes nothing
	@scripts/check.sh

fix: setup ## Format the code
	@$(CARGO) fmt --all

scripts-update: setup ## Rewrite the golden files; review the diff
	@. scripts/env.sh && UPDATE_GOLDENFILES=1 cargo test --locked -p conclave-state-machine

build: setup ## Debug build of everything
	@$(CARGO) build --locked --workspace --all-targets

release: setup ## Optimised binaries
	@$(CARGO) build --locked --release --bins

example-%: setup ## Run an example of the client crate, e.g. example-config_subscriber
	@scripts/example.sh $*

bench: release ## Ours beside Debian's etcd and the no-op ceiling
	@scripts/setup.sh test
	@. scripts/env.sh && benches/side-by-side.sh

jepsen: setup ## Fault injection on real processes, DURATION=100s SEED=1
	@. scripts/env.sh && cargo build --locked --bin conclave --bin conclave-jepsen && \
	  "$$CARGO_TARGET_DIR/debug/conclave-jepsen" --binary "$$CARGO_TARGET_DIR/debug/conclave" --duration "$${DURATION:-100s}" --seed "$${SEED:-1}"

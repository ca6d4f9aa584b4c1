#!/usr/bin/env bash
# Read-only checks: formatting, lints, documentation, dependency rules.
set -euo pipefail
. scripts/env.sh
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet
if command -v cargo-deny >/dev/null 2>&1; then
  cargo deny --offline check licenses bans sources
else
  echo "check: cargo-deny is not installed (cargo install cargo-deny): dependency rules SKIPPED here" >&2
fi

#!/usr/bin/env bash
# Read-only checks: formatting, lints, documentation.
set -euo pipefail
. scripts/env.sh
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

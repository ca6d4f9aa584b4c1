#!/usr/bin/env bash
# Everything a contributor must pass, in the order of how fast it fails.
set -euo pipefail
. scripts/env.sh
scripts/check.sh
deploy/validate.sh
cargo build --locked --workspace --bins
interop/run.sh
cargo test --locked --workspace

#!/usr/bin/env bash
# Ours beside Debian's etcd and the no-op ceiling: three nodes each, both durable, never both up at once.
# Further arguments go to `conclave-bench compare`, for example: --rounds 5 --seconds 20 --drills restart,failover,syncs
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
bin="$CARGO_TARGET_DIR/release"
exec "$bin/conclave-bench" compare --ours "$bin/conclave" --theirs "$(command -v etcd)" --noop "$bin/noop-server" "$@"

#!/usr/bin/env bash
# Runs an example of the client crate against a server of its own: scripts/example.sh NAME
set -euo pipefail
. scripts/env.sh
name=$1
cargo build --locked --bin conclave --example "$name"
log=$(mktemp)
"$CARGO_TARGET_DIR/debug/conclave" dev --port 0 --peer-port 0 >"$log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 200); do
  endpoint=$(sed -n 's/^  endpoint: //p' "$log")
  [ -n "$endpoint" ] && break
  kill -0 $server || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
"$CARGO_TARGET_DIR/debug/examples/$name" "$endpoint"

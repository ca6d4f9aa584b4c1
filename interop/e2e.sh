#!/usr/bin/env bash
# Runs etcd's own end-to-end tests (Debian's sources of 3.4.23, unchanged) with our program in the place of `etcd`: they
# start it in clusters of one and three, with TLS, users and signed tokens, and drive it by etcdctl and curl. A name or
# pattern as argument: only those tests. ETCDCTL=program: by that etcdctl, such as a link of this name to our program.
# Ports from 20000 on must be free: the tests know no others.
set -euo pipefail
cd "$(dirname "$0")"
. ../scripts/env.sh
cache="${CONCLAVE_INTEROP:-$HOME/.cache/conclave/interop}"
binary="${CONCLAVE_BINARY:-$CARGO_TARGET_DIR/debug/conclave}"
sources=/usr/share/gocode/src/go.etcd.io/etcd

# What the tests of these names ask for is not there, or is otherwise in etcd 3.5 and later, too:
without=(
  # The API of etcd 2, and what of 3.4 goes with it; other modes of the program that we have not.
  V2 TestCtlV3Migrate TestGateway TestGrpcproxy
  # Its test opens the data directory as that of an etcd.
  TestEtcdCorruptHash
  # Texts that etcd 3.5 changed: the version in the metrics, reasons in /health, fields of errors in JSON.
  TestV3Metrics TestV3CurlCipherSuitesValid TestCtlV3Alarm$ MissiongLeaderKey
  # Texts of Go's TLS in the log; a file that Debian's package has not; the release before; streams of JSON, which have no limit here.
  TestEtcdPeerCNAuth TestEtcdPeerNameAuth TestEtcdExampleConfig TestReleaseUpgrade MaxStreams_ReachLimit
)

command -v go >/dev/null && command -v etcdctl >/dev/null && [ -d "$sources/tests/e2e" ] || {
  echo "interop: etcd's end-to-end tests: SKIPPED (apt-get install golang-go golang-etcd-server-dev etcd-client)" >&2
  exit 0
}
mkdir -p "$cache"
GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$cache/go" GOFLAGS= \
  timeout 600 go test -c -o "$cache/etcd-e2e" go.etcd.io/etcd/tests/e2e

work="$(mktemp -d)"
servers() { pgrep -f "^$work/bin/etcd " || true; }
trap 'servers | xargs -r kill -9; rm -rf "$work"' EXIT
# The tests name some files relative to where they are.
mkdir -p "$work/bin" "$work/tests/e2e" "$work/integration"
cp -r "$sources/integration/fixtures" "$work/integration/"
ln -s "$binary" "$work/bin/etcd"
ln -s "${ETCDCTL:-$(command -v etcdctl)}" "$work/bin/etcdctl"
cd "$work/tests/e2e"

# Our own `etcdctl` has another version, and none of the words of Go's client about what it repeats.
[ -z "${ETCDCTL:-}" ] || without+=(TestCtlV3Version TestCtlV3AuthLeaseRevoke)

pattern="$(IFS='|'; echo "${without[*]}")"
tests="$("$cache/etcd-e2e" -test.list "${1:-.}" | grep -Ev "$pattern")"
failed=()
for test in $tests; do
  # Each in a process of its own: one that fails leaves its servers.
  timeout 180 "$cache/etcd-e2e" -bin-dir "$work/bin" -test.v -test.run "^$test\$" >"$work/log" 2>&1 </dev/null || {
    failed+=("$test")
    tail -n 20 "$work/log" | cut -c1-1000 >&2
  }
  servers | xargs -r kill -9
done
echo "interop: etcd's end-to-end tests: $(echo "$tests" | wc -l) run, ${#failed[@]} failed ${failed[*]:-}"
[ "${#failed[@]}" -eq 0 ]

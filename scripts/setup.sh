#!/usr/bin/env bash
# Installs what a build (or, with the argument `test`, the tests) needs and the machine lacks.
# Does nothing and needs no network when everything is there.
set -euo pipefail

# rustup where Debian has no package of it (before 13): the release and the sums of
# https://static.rust-lang.org/rustup/archive/VERSION/TRIPLE/rustup-init.sha256
RUSTUP_VERSION=1.28.2
RUSTUP_SHA256_x86_64=20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c
RUSTUP_SHA256_aarch64=e3853c5a252fca15252d07cb23a1bdd9377a8c6f3efa01531109281ae47f841c

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
  # Only root can give members disks that lose power (jepsen-tests/src/disk.rs).
  [ "$(id -u)" -ne 0 ] || need mkfs.ext4 e2fsprogs
fi

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)

install_packages() {
  echo "setup: installing $*" >&2
  "${sudo[@]}" apt-get update -qq
  # Debian's etcd package would start a server; this machine only wants the program.
  local policy=/usr/sbin/policy-rc.d made_policy= status=0 log
  log=$(mktemp)
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
    made_policy=yes
  fi
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1 || status=$?
  [ -z "$made_policy" ] || "${sudo[@]}" rm -f "$policy"
  if [ "$status" -ne 0 ]; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get failed; install by hand: $*" >&2
    exit "$status"
  fi
  rm -f "$log"
}

# Debian's package when it has one (13 and later), else rustup's own installer of a pinned release: also beside a
# cargo of Debian's, which that package would remove.
install_rustup() {
  if ! command -v cargo >/dev/null 2>&1 && apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
    install_packages rustup ca-certificates
    return
  fi
  local arch sum file
  arch=$(uname -m)
  sum=RUSTUP_SHA256_$arch
  [ -n "${!sum:-}" ] || { echo "setup: no Rust toolchain, and no rustup known for $arch; see https://rustup.rs, then run again" >&2; exit 1; }
  if ! command -v curl >/dev/null 2>&1 || [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
    install_packages curl ca-certificates
  fi
  file=$(mktemp -d)/rustup-init
  echo "setup: fetching rustup $RUSTUP_VERSION" >&2
  curl --proto '=https' --tlsv1.2 -fsSL --retry 3 -o "$file" \
    "https://static.rust-lang.org/rustup/archive/$RUSTUP_VERSION/$arch-unknown-linux-gnu/rustup-init"
  echo "${!sum}  $file" | sha256sum --check --quiet || { echo "setup: rustup-init has not the expected checksum; not run" >&2; exit 1; }
  chmod +x "$file"
  "$file" -y -q --no-modify-path --profile minimal --default-toolchain none
  rm -r "$(dirname "$file")"
}

[ "${#packages[@]}" -eq 0 ] || install_packages "${packages[@]}"

. scripts/env.sh # a toolchain that rustup put into the home directory
toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
# Of this version, or rustup's, which asks rust-toolchain.toml for the version.
has_cargo() {
  cargo --version 2>/dev/null | grep -q "^cargo ${toolchain//./\\.} "
}
if ! has_cargo; then
  command -v rustup >/dev/null 2>&1 || install_rustup
  . scripts/env.sh
  hash -r
  echo "setup: installing Rust $toolchain into ${RUSTUP_HOME:-$HOME/.rustup}" >&2
  rustup toolchain install "$toolchain" --profile minimal --component rustfmt --component clippy
  has_cargo || { echo "setup: $(command -v cargo || echo 'no cargo') is not of Rust $toolchain; see https://rustup.rs, then run again" >&2; exit 1; }
fi

if [ "${1:-}" = test ]; then
  # Without network these checks are skipped, aloud.
  timeout 300 deploy/validate.sh --install || echo "setup: the tools that check deploy/ could not be fetched" >&2
fi

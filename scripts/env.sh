# Build settings shared by the Makefile, CI and people; source it: `. scripts/env.sh`.
# One target directory outside the checkout and ccache, so that RocksDB compiles once per machine.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/conclave/target}"
if command -v ccache >/dev/null 2>&1; then
  export CC="ccache cc" CXX="ccache c++"
  export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/conclave/ccache}" CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-2G}"
fi

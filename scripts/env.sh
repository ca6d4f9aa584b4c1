# Build settings shared by the Makefile, CI and people; source it: `. scripts/env.sh`.
# One target directory outside the checkout and ccache, so that RocksDB compiles once per machine.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/conclave/target}"
if command -v ccache >/dev/null 2>&1; then
  export CC="ccache cc" CXX="ccache c++"
  export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/conclave/ccache}" CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-2G}"
fi
# Where rustup puts cargo; a new installation is not in the PATH of the shell that made it. Before the system's own
# cargo, which does not obey rust-toolchain.toml.
cargo_bin="${CARGO_HOME:-$HOME/.cargo}/bin"
case "$PATH:" in "$cargo_bin:"*) ;; *) export PATH="$cargo_bin:$PATH" ;; esac

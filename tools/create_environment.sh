#!/usr/bin/env bash
# Creates the virtual environment and installs one step of what the Makefile needs into it.
#
#   create_environment.sh venv  DIR           an empty environment
#   create_environment.sh torch DIR VERSION   the CPU build of torch, and nothing that could pull in CUDA
#
# PYTHON names the interpreter to use (default: python3).
set -euo pipefail

fail() {
  printf 'dormant: %s\n' "$@" >&2
  exit 1
}

create_venv() {
  local dir=$1 python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "creating $dir: '$python' is missing or older than 3.10." "Install Python 3.10 or later, or name one: make build PYTHON=/path/to/python3"
  # Debian splits ensurepip into python3-venv; virtualenv brings its own pip.
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$dir"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet "$dir"
  elif "$python" -m pip --version >/dev/null 2>&1; then
    local bootstrap
    bootstrap=$(mktemp -d)
    "$python" -m pip install --quiet --target "$bootstrap" virtualenv
    PYTHONPATH=$bootstrap "$python" -m virtualenv --quiet "$dir"
    rm -rf "$bootstrap"
  else
    fail "creating $dir: '$python' has neither ensurepip, virtualenv nor pip." "On Debian or Ubuntu: apt install python3-venv"
  fi
  "$dir/bin/python" -c 'import sysconfig, pathlib, sys
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
    fail "$dir: the headers of its Python (Python.h) are missing." "On Debian or Ubuntu: apt install python3-dev"
}

# The package index serves CUDA builds under the plain version on Linux x86-64; a CPU build has the local label +cpu.
# DORMANT_ALLOW_CUDA=1 accepts the plain version where no CPU build is found.
install_torch() {
  local dir=$1 version=$2 pip=("$1/bin/python" -m pip install --quiet)
  local constraints=(-c requirements/constraints.txt)
  if [[ $(uname -s) == Linux ]]; then
    "${pip[@]}" "${constraints[@]}" "torch==$version+cpu" 2>/dev/null ||
      "${pip[@]}" "${constraints[@]}" "torch==$version+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
      { [[ ${DORMANT_ALLOW_CUDA:-} == 1 ]] && "${pip[@]}" "${constraints[@]}" "torch==$version"; } ||
      fail "installing torch $version: no CPU build for $("$dir/bin/python" --version) was found, neither on the configured indexes nor on download.pytorch.org." \
        "Check the network, or install a CPU build of torch $version into $dir yourself and run make again."
  else
    "${pip[@]}" "${constraints[@]}" "torch==$version"
  fi
}

step=$1 dir=$2
case $step in
  venv) [[ -x $dir/bin/python ]] || create_venv "$dir" ;;
  torch)
    installed=$("$dir/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    [[ ${installed%%+*} == "$3" ]] || install_torch "$dir" "$3"
    ;;
  *) fail "unknown step '$step'; expected venv or torch" ;;
esac

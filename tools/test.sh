#!/bin/bash
# All tests: lint, types, layers, unit and contract tests, then those of several ranks and of SLURM.
#
#   bash tools/test.sh          everything that this machine can run
#   bash tools/test.sh quick    lint, types, layers, and the tests that take no time
#
# Makes its environment first (setup.sh). Every step runs, whatever became of the one before; the
# exit status is 0 only if all of them passed. No step can hang: each has a time limit.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source tools/setup.sh
case "$#:${1:-}" in
    0: | 1:quick) ;;
    *) decdpo_stop "unknown arguments: $*" "give 'quick', or nothing" ;;
esac
decdpo_setup
exec </dev/null
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
# Tests that another user of this machine runs must not tidy up the files of these.
PYTEST_DEBUG_TEMPROOT="$(mktemp -d)"
export PYTEST_DEBUG_TEMPROOT
BESIDE="$(mktemp -d)" # what the step beside the others prints
trap 'rm -rf "$PYTEST_DEBUG_TEMPROOT" "$BESIDE"' EXIT
SUMMARY=()
FAILED=0

step() { # name, time limit in seconds, command...
    local name="$1" limit="$2" began=$SECONDS status=0 verdict=passed
    shift 2
    echo
    echo "== $name"
    timeout --kill-after=20 "$limit" "$@" || status=$?
    [ "$status" -ne 124 ] && [ "$status" -ne 137 ] || verdict="ran out of its $limit s"
    [ "$status" -eq 0 ] || FAILED=1
    [ "$status" -eq 0 ] || [ "$verdict" != passed ] || verdict="FAILED ($status)"
    SUMMARY+=("$(printf '%-22s %5d s  %s' "$name" $((SECONDS - began)) "$verdict")")
}

declare -A AWAITED=()
beside() { # as step, in the background: the others go on meanwhile
    (
        step "$@" >"$BESIDE/$1.said" 2>&1
        printf '%s\n' "${SUMMARY[@]: -1}" >"$BESIDE/$1.summary"
        exit "$FAILED"
    ) &
    AWAITED["$1"]=$!
}

joined() { # name: waits for that step in the background and takes over what it found
    wait "${AWAITED["$1"]}" || FAILED=1
    cat "$BESIDE/$1.said"
    SUMMARY+=("$(cat "$BESIDE/$1.summary") (beside others)")
}

mpich() { # ranks, tests...: with MPICH's MPI in the place of the environment's, all else shared
    local venv="$PWD/.venv-mpich" ranks="$1"
    shift
    if [ ! -x "$venv/bin/mpirun" ]; then
        "$PYTHON" -m venv "$venv" || return
        local site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
        "$PYTHON" -c "$site" >"$("$venv/bin/python" -c "$site")/shared.pth"
        if ! "$venv/bin/python" -m pip install --quiet --constraint tools/constraints.txt mpich; then
            rm -rf "$venv"
            echo "MPICH cannot be installed here: its tests are left out"
            return 0
        fi
    fi
    PYTHON="$venv/bin/python" PATH="$venv/bin:$PATH" bash tools/test-ranks.sh "$ranks" "$@"
}
export -f mpich

existing() { # folders: those that exist
    local folder
    for folder in "$@"; do [ ! -d "$folder" ] || echo "$folder"; done
}

mapfile -t SOURCES < <(existing decdpo tests tools)
mapfile -t UNIT_TESTS < <(existing tests/unit tests/contract tests/slurm)
mapfile -t WHOLE_TESTS < <(existing tests/end_to_end)
mapfile -t MPI_TESTS < <(existing tests/contract tests/mpi)

statics() { # beside|step, for the types: what needs no run of a test
    "$1" "types (mypy)" 900 "$PYTHON" -m mypy
    step "lint (flake8)" 300 "$PYTHON" -m flake8 "${SOURCES[@]}"
    step "lint (isort)" 300 "$PYTHON" -m isort --check-only --quiet "${SOURCES[@]}"
    step "layers" 300 lint-imports
}

ranks() { # beside|step number [argument of pytest]...
    "$1" "tests, $2 rank(s)" 1000 bash tools/test-ranks.sh "$2" "${MPI_TESTS[@]}" "${@:3}"
}

if [ "${1:-}" = quick ]; then
    statics step
    step "tests, quick" 600 "$PYTHON" -m pytest -rs -m "not slow and not slurm" "${UNIT_TESTS[@]}"
else
    # Its jobs mostly wait.
    beside "tests, SLURM" 1500 "$PYTHON" -m pytest -rs --durations=25 -m slurm tests/slurm
    statics beside
    # Two processes share the tests, each of which mostly has one process or waits for several.
    step "tests, one process" 1500 "$PYTHON" -m pytest -rs --durations=25 -n 2 --dist worksteal \
        -m "not slurm" "${UNIT_TESTS[@]}"
    joined "types (mypy)"
    if [ "${#WHOLE_TESTS[@]}" -gt 0 ]; then
        step "tests, whole runs" 2000 "$PYTHON" -m pytest -rs --durations=25 -n 2 --dist worksteal \
            "${WHOLE_TESTS[@]}"
    fi
    if [ "${#MPI_TESTS[@]}" -gt 0 ]; then
        # Whole runs take longest; three ranks host their eight agents unevenly.
        runs=tests/mpi/test_mpi_runs.py
        ranks beside 1 -m "not slow" --ignore="$runs"
        ranks step 2 --ignore="$runs"
        joined "tests, 1 rank(s)"
        ranks step 3 -m "not slow"
        # What lies on a device, and what may be late, has met uneven hosts on three ranks.
        ranks step 4 -m "not slow" --ignore="$runs" --ignore=tests/mpi/test_mpi_direct.py \
            --ignore=tests/mpi/test_mpi_staging.py --ignore=tests/mpi/test_mpi_staleness.py
        export PYTHON
        step "tests, MPICH" 600 bash -c 'mpich "$@"' mpich 2 -m "not slow" tests/contract \
            tests/mpi/test_mpi_saving.py tests/mpi/test_mpi_stop.py
    fi
    joined "tests, SLURM"
fi

echo
echo "== summary, $SECONDS s in all"
printf '%s\n' "${SUMMARY[@]}"
exit "$FAILED"

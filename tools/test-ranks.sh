#!/bin/bash
# Run tests on several ranks: rank 0 tells, the others only if something goes wrong.
#
#   bash tools/test-ranks.sh RANKS [argument of pytest]...
#
# It uses PYTHON if it is set, as tools/test.sh does, else what is on PATH, and the mpirun beside it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

if [ "${1:-}" = --as-rank ]; then # this is one of the ranks
    shift
    rank="${PMIX_RANK:-${PMI_RANK:-0}}" # of Open MPI, of MPICH
    [ "$rank" = 0 ] || exec >"$LOGS/rank$rank" 2>&1
    # Ranks that share a folder for temporary files fail now and then: all of them tidy it up.
    export PYTEST_DEBUG_TEMPROOT="$LOGS/files$rank"
    mkdir -p "$PYTEST_DEBUG_TEMPROOT"
    exec "$@"
fi

[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || {
    echo "test-ranks: give the number of ranks, got '${1:-}'" >&2
    exit 2
}
ranks="$1"
shift
LOGS="$(mktemp -d)"
trap 'rm -rf "$LOGS"' EXIT
export LOGS
"${PYTHON:-python3}" -m decdpo.comm.mpi.mpirun -n "$ranks" --limit "${LIMIT:-900}" \
    bash "$PWD/tools/test-ranks.sh" --as-rank \
    "${PYTHON:-python3}" -m pytest --with-mpi --color=no -x -rs "$@"
status=$?
if [ "$status" -ne 0 ]; then
    for log in "$LOGS"/rank*; do
        [ -f "$log" ] || continue
        echo "-- ${log##*/}, its last lines:"
        tail -n 40 "$log"
    done
fi
exit "$status"

#!/bin/bash
# The demonstration: eight agents learn preferences together, on four ranks, without a server.
#
#   bash tools/demo.sh
#
# Makes its environment (setup.sh), deals the embedded data set to eight agents, one user each,
# trains them in three ways (tools/demo.toml), and ends with a table and the names of the pictures.
# Everything it writes lies in runs/demo, which it makes anew each time.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/setup.sh
[ $# -eq 0 ] || decdpo_stop "demo.sh takes no arguments, got: $*" "edit tools/demo.toml instead"

decdpo_setup
export OMP_NUM_THREADS=1
decdpo() { "$PYTHON" -m decdpo "$@"; }
ranks() { # command of decdpo, on four ranks
    "$PYTHON" -m decdpo.comm.mpi.mpirun -n 4 --limit 600 "$PYTHON" -m decdpo "$@"
}

rm -rf runs/demo
mkdir -p runs/demo
decdpo shard data/preferences.jsonl.gz --partition by:user --holdout 0.25 --out runs/demo/shards
for algorithm in centralized dsgd local; do
    graph=()
    [ "$algorithm" != dsgd ] || graph=(--set topology.graph=ring)
    echo
    echo "demo: $algorithm, 8 agents on 4 ranks"
    ranks train tools/demo.toml --out "runs/demo/$algorithm" --set "algorithm.kind=$algorithm" \
        ${graph[@]+"${graph[@]}"}
    decdpo evaluate "runs/demo/$algorithm" --json >"runs/demo/$algorithm/heldout.json"
done
echo
"$PYTHON" tools/demo_table.py runs/demo/{centralized,dsgd,local}
echo
echo "demo: done in $SECONDS s. The curves: runs/demo/{centralized,dsgd,local}/curves.png"

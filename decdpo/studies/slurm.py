"""Write the training cells of a study as one SLURM array job."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from decdpo.build import num_agents
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.files import replacing
from decdpo.studies.cells import Cell, Training
from decdpo.studies.study import Study

SCRIPT = """#!/bin/bash
# The unfinished training cells of the study {name}, one array task each. Submit it from the
# repository's folder (or export DECDPO_HOME=/path/to/it):
#
#   sbatch {script}
#
# Every task saves near its time limit, goes back into the queue and resumes. When the array is
# done, give the command of the study again without --slurm: it collects what the tasks measured.
# See jobs/README.md for sizes, GPUs and what to change at a centre.

#SBATCH --job-name=decdpo-{name}
#SBATCH --array=1-{count}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node={ranks}
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
##SBATCH --account=CHANGE_ME
##SBATCH --partition=CHANGE_ME

trap 'DECDPO_STOP=1' USR1
set -euo pipefail

source "${{DECDPO_HOME:-${{SLURM_SUBMIT_DIR:-.}}}}/jobs/common.sh"
cells={folder}
cell="$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" "$cells/array.txt")"
[ -n "$cell" ] || decdpo_fail "$cells/array.txt has no line $SLURM_ARRAY_TASK_ID" \\
    "write the array again: its cells may be finished"
decdpo_chain "$cells/$cell.toml" "$cells/$cell"
"""


def write_array(
    study: Study, cells: Sequence[Cell], out: Path, say: Callable[[str], None]
) -> Path:
    """Write ``array.slurm`` and a TOML file per cell, and return the script's path.

    Cells that are finished, or no training runs, are left out; the latter are run when the study
    is collected. Raises ``ConfigError`` if nothing is left.
    """
    from decdpo.studies.engine import folder_of, write_config

    wanted = [
        cell
        for cell in cells
        if type(cell.work) is Training and not cell.work.finished(folder_of(out, cell))
    ]
    if not wanted:
        raise ConfigError(
            f"the study {study.name} has no unfinished training cells",
            "give its command without --slurm",
        )
    folder = (out / "cells").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for cell in wanted:
        write_config(cell, folder_of(out, cell))
    with replacing(folder / "array.txt", mode=0o644) as partial:
        partial.write_text("".join(f"{cell.digest}\n" for cell in wanted), encoding="utf-8")
    script = out / "array.slurm"
    text = SCRIPT.format(
        name=study.name,
        script=script,
        count=len(wanted),
        folder=shlex.quote(str(folder)),
        ranks=min(4, *(_agents(cell.work) for cell in wanted if isinstance(cell.work, Training))),
    )
    with replacing(script, mode=0o755) as partial:
        partial.write_text(text, encoding="utf-8")
    rest = sum(type(cell.work) is not Training for cell in cells)
    say(f"{len(wanted)} training cells; submit them with: sbatch {script}")
    if rest:
        say(f"{rest} cells are no training runs: they are run when the study is collected")
    return script


def _agents(work: Training) -> int:
    """Return n, above which there may be no rank."""
    return num_agents(work.config, ShardIndex.load(work.config.data.shards))

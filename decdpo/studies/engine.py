"""Work through the cells of a study, and write its table, figures and summary."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from decdpo.data.index import FILE_NAME as INDEX
from decdpo.errors import ConfigError, DecdpoError, EnvironmentFault
from decdpo.files import Lock, os_fault, replacing
from decdpo.progress import Working
from decdpo.report.study_figures import draw
from decdpo.studies.cells import Cell, Memory, Training
from decdpo.studies.claims import Claim, Verdict
from decdpo.studies.mpirun import train_cell
from decdpo.studies.study import Options, Study
from decdpo.studies.summary import summary_page
from decdpo.studies.table import Row, Table

Say = Callable[[str], None]

LEFT_OUT = (
    "crc", "measuring_seconds", "pairs_per_second", "tokens_per_second", "mfu", "peak_memory_bytes",
    "parts", "waits",
)  # fmt: skip
"""Of a record's ``system``: they say how fast a machine was, or guard the record."""


@dataclass(frozen=True)
class Result:
    """What a study came to.

    table : the tidy table. verdicts : each claim with its outcome. broken : cells that failed, with
    what was wrong.
    """

    table: Table
    verdicts: Sequence[tuple[Claim, Verdict]]
    broken: Sequence[tuple[Cell, str]]


@contextmanager
def locked(out: Path, say: Say = lambda line: None) -> Iterator[None]:
    """Keep other studies out of the folder while open; a kill opens it.

    say : called if the file system has no locks, so that nothing keeps them out.

    Raises ``EnvironmentFault`` if one is at work there, or it cannot be written, ``ConfigError`` if
    it holds a run or shards.
    """
    for name, content in (("config.toml", "a run"), (INDEX, "shards")):
        if os.path.exists(out / name):
            raise ConfigError(f"{out} holds {content}", "give a folder of its own with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock(out, "study is at work")
    except OSError as fault:
        raise os_fault(
            fault, f"cannot use the folder {out}", remedy="give another one with --out"
        ) from None
    if lock.missing:
        say(f"decdpo: {lock.missing}")
    with lock:
        yield


def folder_of(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell's result."""
    return out / "cells" / cell.digest


def run_cells(
    cells: Sequence[Cell], out: Path, say: Say, part: tuple[int, int] = (0, 1), ranks: int = 0
) -> list[tuple[Cell, str]]:
    """Do every cell that is not finished, and return the broken ones with what was wrong.

    part : (k, N): only every N-th cell, from the k-th on. ranks : of ``mpirun`` for each training
    run; 0 trains in this process. A cell that fails is named, leaves
    ``error.txt`` in its folder, and does not keep the others from their work.
    """
    memory, broken = Memory(), []
    working = Working(say)
    share, parts = part
    for number, cell in enumerate(cells):
        folder = folder_of(out, cell)
        if number % parts != share or cell.work.finished(folder):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_config(cell, folder)
        error = folder / "error.txt"
        error.unlink(missing_ok=True)
        began = monotonic()
        name = f"[{number + 1}/{len(cells)}] {cell.name}"
        try:
            with working(name):
                if ranks and type(cell.work) is Training:
                    train_cell(folder, ranks)
                else:
                    cell.work.run(folder, memory)
        except Exception as fault:  # one broken cell must not cost the others
            what = str(fault) if isinstance(fault, DecdpoError) else traceback.format_exc()
            error.write_text(what + "\n", encoding="utf-8")
            broken.append((cell, what))
            say(f"{name}: BROKEN, see {error}")
        else:
            say(f"{name}: {monotonic() - began:.1f} s")
    working.close()
    return broken


def run_parts(command: Sequence[str], jobs: int) -> None:
    """Run ``command --part k/jobs`` for every k at once, each on one thread, and wait for all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, "--part", f"{k}/{jobs}"], env=environment)
        for k in range(jobs)
    ]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()


def write_config(cell: Cell, folder: Path) -> None:
    """Write the configuration of a training cell beside its folder, as ``DIGEST.toml``."""
    if isinstance(cell.work, Training):
        with replacing(folder.with_name(f"{cell.digest}.toml"), mode=0o644) as partial:
            partial.write_text(cell.work.config.to_toml(), encoding="utf-8")


def collect(study: Study, cells: Sequence[Cell], out: Path) -> Result:
    """Read every finished cell and judge the claims."""
    memory = Memory()
    rows: list[Row] = []
    broken = []
    for cell in cells:
        folder = folder_of(out, cell)
        if not cell.work.finished(folder):
            error = folder / "error.txt"
            what = "it was never finished"
            if error.exists():
                what = error.read_text(encoding="utf-8", errors="replace")
            broken.append((cell, what))
            continue
        for record in cell.work.records(folder, memory):
            numbers = {k: v for k, v in record.items() if not isinstance(v, (list, dict))}
            row = {"cell": cell.digest, **cell.labels}
            spent = record.get("system") or {}
            system = {k: v for k, v in spent.items() if k not in LEFT_OUT}
            for key, value in {**numbers, **system}.items():
                # A label says where the cell lies: lr is the run's, the record's is the round's.
                row.setdefault(key, value)
            rows.append(row)
    table = Table(rows)
    study.derive(table)
    verdicts = [(claim, claim.judge(table)) for claim in study.claims()]
    return Result(table, verdicts, broken)


def write_results(
    study: Study, options: Options, result: Result, command: str, say: Say
) -> None:
    """Write table.csv, final.csv, the figures and summary.md into the study's folder.

    Without matplotlib there are no figures; a note says so.
    """
    out, table = options.out, result.table
    table.write(out / "table.csv")
    table.final().write(out / "final.csv")
    names = []
    try:
        for figure in study.figures(table) if table.rows else ():
            names.append(draw(figure, out)[0])
    except EnvironmentFault as fault:
        say(f"no figures: {fault.what}")
    page = summary_page(study, options, table, result.verdicts, result.broken, names, command)
    with replacing(out / "summary.md", mode=0o644) as partial:
        partial.write_text(page, encoding="utf-8")


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs this program again with ``arguments``."""
    return [sys.executable, "-m", "decdpo", *arguments]

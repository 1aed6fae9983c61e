"""The SLURM array of a study on a real SLURM: its tasks measure what the study itself measures."""

import csv
from pathlib import Path

import pytest
from shells import Shell

from decdpo.data.synthetic import Choices, synthesize

STUDY = """
title = "Graphs"
seeds = 1
[grid]
"topology.graph" = ["ring", "hypercube"]
[base.run]
rounds = 20
[base.data]
shards = "{shards}"
batch_size = 4
[base.policy]
features = "columns"
[base.log]
every = 5
"""

pytestmark = pytest.mark.slurm


@pytest.fixture
def study(tmp_path):
    """A grid of which one half is impossible: three agents make no hypercube."""
    shards = tmp_path / "shards"
    synthesize(Choices(agents=3, pairs=24, dimension=8, holdout=0.25), shards)
    path = tmp_path / "graphs.toml"
    path.write_text(STUDY.format(shards=shards))
    return path


class Here:
    """A folder in which the study is run, with the environment that its jobs need."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.shell = Shell(folder)

    def study(self, *options: str, status: int) -> str:
        """Give the study's command, in this process; returns what it said."""
        self.shell("study", "../graphs.toml", "--out", "graphs", *options, status=status)
        return self.shell.said

    def rows(self, name: str) -> list[dict[str, str]]:
        """Read a table, without what depends on where and how fast it was run."""
        with (self.folder / "graphs" / name).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert all("crc" not in row for row in rows)
        placed = ("wait_seconds", "compute_seconds", "elapsed_seconds", "longest_wait_agent",
                  "longest_wait_seconds")  # fmt: skip
        return [
            {k: v for k, v in row.items() if k not in placed and "_between_" not in k}
            for row in rows
        ]


def test_an_array_measures_what_the_study_measures_and_a_broken_cell_is_named(
    slurm, real_environment, study, tmp_path
):
    folders = (tmp_path / "array", tmp_path / "alone")
    array, alone = (Here(folder, real_environment(folder)) for folder in folders)
    array.study("--slurm", status=0)
    names = (array.folder / "graphs/cells/array.txt").read_text().split()
    assert len(names) == 2
    job = slurm.submit(
        "--ntasks-per-node=2",
        array.folder / "graphs/array.slurm",
        environment=array.environment,
        folder=array.folder,
    )
    states = slurm.wait_array(job)
    output = (array.folder / "out").read_text()
    assert len(states) == 2, states
    broken = {number for number, (state, _) in states.items() if state == "FAILED"}
    good = {number for number, found in states.items() if found == ("COMPLETED", "0:0")}
    hypercube = {
        number
        for number, name in enumerate(names, start=1)
        if "hypercube" in (array.folder / f"graphs/cells/{name}.toml").read_text()
    }
    assert broken == hypercube and len(good) == 1, (states, output)
    assert {states[number][1] for number in broken} == {"2:0"}

    # A broken cell is no success.
    alone.study(status=1)
    said = array.study(status=1)
    # What the tasks finished is kept: only the cells that cannot be finished are tried again.
    tried = [line for line in said.splitlines() if line.startswith("[")]
    assert len(tried) == 1 and "hypercube" in tried[0] and "BROKEN" in tried[0], tried
    assert "broken: topology.graph hypercube, seed 0" in said
    for table in ("table.csv", "final.csv"):
        assert array.rows(table) == alone.rows(table)
    assert len(array.rows("final.csv")) == 1
    assert len(array.rows("table.csv")) == 5
    for name in ("summary.md", "graphs.svg", "graphs.png"):
        ours, theirs = (here.folder / "graphs" / name for here in (array, alone))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert "hypercube" in (array.folder / "graphs/summary.md").read_text().split("Broken cells")[1]

"""``decdpo bench exchange``: what it refuses, what it computes, and that it runs."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from decdpo.benchmarks.exchange import memory_needed, neighbours, row_of
from decdpo.comm.mpi.launch import launched_by_mpi
from decdpo.commands.studies import bench
from decdpo.errors import ConfigError, EnvironmentFault


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["exchange", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--graphs", "ring,star"), "'star' is none of ring"),
        (("--sizes", "1e4,many"), "--sizes: '1e4,many' is not a list of numbers"),
        (("--graphs", ","), "--graphs names none"),
        (("--sizes", "0"), "must be positive"),
        (("--sizes", "1.5"), "whole numbers"),
        (("--ranks", "1,2"), "1 process has no neighbour"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--limit", "nan"), "--limit is nan"),
        (("--limit", "-1"), "--limit is -1"),
        (("--out", "/"), "--out / cannot be written"),
        (("--out", "/nowhere/x"), "--out /nowhere/x cannot be written"),
    ],
)
def test_bad_arguments_are_named(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bench.run(parse(*words))


@pytest.mark.parametrize("graph", ["ring", "exponential", "complete"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_rows_are_doubly_stochastic(graph: str, ranks: int) -> None:
    w = np.zeros((ranks, ranks))
    for i in range(ranks):
        row = row_of(neighbours(graph, ranks), i)
        w[i, i], w[i, list(row.sources)] = row.own, row.weights
    assert np.allclose(w, w.T) and np.allclose(w.sum(axis=1), 1) and (w >= 0).all()
    degree = {"ring": min(2, ranks - 1), "complete": ranks - 1}.get(graph)
    assert degree is None or ((w > 0).sum(axis=1) == degree + 1).all()


def test_memory_grows_with_what_is_held() -> None:
    small, large = memory_needed(1000, 4, 2), memory_needed(1000, 4, 3)
    assert small["ours"] == large["ours"] == 2 * 4 * 1000 * 4
    assert large["ours_p2p"] - small["ours_p2p"] == 2 * 4 * 1000 * 4


@pytest.mark.skipif(launched_by_mpi() is not None, reason="mpirun cannot start mpirun")
@pytest.mark.skipif(
    not (Path(sys.executable).parent / "mpirun").exists(), reason="no mpirun beside this Python"
)
def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match="nothing was measured within 0.01 s"):
        bench.run(parse("--sizes", "1e3", "--ranks", "2", "--limit", "0.01"))


@pytest.mark.slow
@pytest.mark.skipif(launched_by_mpi() is not None, reason="mpirun cannot start mpirun")
@pytest.mark.skipif(
    not (Path(sys.executable).parent / "mpirun").exists(), reason="no mpirun beside this Python"
)
def test_it_measures_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ("--graphs", "ring", "--sizes", "1e3,1e12", "--ranks", "2", "--rounds", "3")
    assert bench.run(parse(*words, "--json", "--out", str(out))) == 0
    records = json.loads(capsys.readouterr().out)
    assert records == json.loads(out.read_text())
    found, too_large = records
    assert (found["ranks"], found["graph"], found["size"]) == (2, "ring", 1000)
    assert set(found["ms"]) == {
        "ours", "ours_p2p", "bare", "pass", "memcpy", "window", "allreduce", "gloo"
    }  # fmt: skip
    assert all(value > 0 for value in found["ms"].values())
    ms = found["ms"]
    assert found["ratio_to_bare"] == pytest.approx(ms["ours"] / ms["bare"])
    assert found["ratio_to_bare_plus_pass"] == pytest.approx(ms["ours"] / (ms["bare"] + ms["pass"]))
    assert found["ratio_to_window"] == pytest.approx(ms["ours"] / ms["window"])
    assert "GB" in too_large["skipped"]

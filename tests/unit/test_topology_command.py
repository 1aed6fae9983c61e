"""The table, the JSON and the picture of ``decdpo topology``."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from decdpo.commands.before import topology as command
from decdpo.errors import DecdpoError, TopologyError
from decdpo.report.topology_table import table
from decdpo.topology.analysis import diameter, summarize
from decdpo.topology.schedule import make_schedule


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_json_of_one_graph_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ring", "--agents", "16", "--weights", "metropolis", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rho"] == pytest.approx(0.9492530216741911, abs=1e-12)
    expected = {
        "graph": "ring", "weights": "metropolis", "nodes": 16, "edges": 16, "degree_min": 2,
        "degree_max": 2, "diameter": 8, "period": 1, "rounds_to_halve": 14,
        "messages_per_round": 32, "bytes_per_round": 32 * 4 * 10**6, "directed": False,
    }  # fmt: skip
    assert {key: answer[key] for key in expected} == expected
    assert answer["spectral_gap"] == pytest.approx(1 - answer["rho"])


def test_json_of_several_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    call("ring", "one_peer_exponential", "--agents", "8", "32", "--params", "10", "--json",
         "--value-bytes", "2")  # fmt: skip
    answers = json.loads(capsys.readouterr().out)
    assert [(a["graph"], a["nodes"], a["period"]) for a in answers] == [
        ("ring", 8, 1), ("ring", 32, 1), ("one_peer_exponential", 8, 3),
        ("one_peer_exponential", 32, 5),
    ]  # fmt: skip
    assert [a["bytes_per_round"] for a in answers] == [320, 1280, 160, 640]
    assert answers[3]["rho"] == 0 and answers[3]["rounds_to_halve"] == 5


def test_table_has_a_line_per_topology(capsys: pytest.CaptureFixture[str]) -> None:
    call("star", "exponential", "--agents", "8")
    head, star, exponential = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["graph", "weights", "agents", "edges"]
    assert star.split()[:6] == ["star", "metropolis", "8", "7", "1-7", "2"]
    assert exponential.split()[:5] == ["exponential", "uniform", "8", "24", "arcs"]
    assert len({len(head), len(star), len(exponential)}) == 1


@pytest.mark.parametrize("graph", ["star", "path", "two_clusters", "erdos_renyi", "ring"])
def test_auto_is_the_rule_that_it_names(graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(graph, "--agents", "16", "--weights", "auto", "metropolis", "--json")
    auto, metropolis = json.loads(capsys.readouterr().out)
    assert auto == metropolis
    assert graph != "star" or auto["rho"] == pytest.approx(1 - 1 / 16)


def test_a_seed_that_no_graph_uses_is_refused() -> None:
    with pytest.raises(TopologyError, match="--seed 5 would be ignored: ring, star is not random"):
        call("ring", "star", "--seed", "5")
    assert call("ring", "erdos_renyi", "--seed", "5") == 0


def test_options_go_to_the_graphs_that_use_them(capsys: pytest.CaptureFixture[str]) -> None:
    call("ring", "random_regular", "--degree", "3", "--seed", "5", "--agents", "10", "--json")
    ring, regular = json.loads(capsys.readouterr().out)
    assert (ring["degree_max"], regular["degree_max"]) == (2, 3)
    assert regular["digest"] == make_schedule("random_regular", "auto", 10, degree=3, seed=5).digest
    for words, message in (
        (("ring", "--degree", "3"), "--degree 3 would be ignored"),
        (("ring", "--file", "g.txt"), "--file g.txt would be ignored"),
        (("ring", "--params", "-1"), "--params -1"),
        (("ring", "--params", "nan"), "--params nan"),
        (("ring", "--params", "inf"), "--params inf"),
        (("ring", "--seed", "-1"), "--seed -1"),
        (("file",), "no file"),
        (("nonsense",), "unknown"),
    ):
        with pytest.raises(TopologyError, match=message):
            call(*words)


def test_a_file_brings_its_own_number_of_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.txt"
    path.write_text("0 1\n1 2\n2 3\n3 4\n")
    call("file", "--file", str(path), "--json")
    answer = json.loads(capsys.readouterr().out)
    assert (answer["nodes"], answer["edges"], answer["weights"]) == (5, 4, "metropolis")


@pytest.mark.parametrize(
    ("graph", "n", "expected"),
    [("ring", 9, 4), ("path", 300, 299), ("complete", 50, 1), ("hypercube", 64, 6), ("ring", 1, 0),
     ("exponential", 8, 3), ("random_matching", 8, None), ("ring", 10_000, None)],
)  # fmt: skip
def test_diameter(graph: str, n: int, expected: int | None) -> None:
    assert diameter(make_schedule(graph, "auto", n)) == expected


def test_no_progress_is_said_plainly(tmp_path: Path) -> None:
    # connected and aperiodic, but a single round may leave the distance as it is
    (tmp_path / "w.csv").write_text("0.5,0.5,0,0\n0,0,1,0\n0,0,0,1\n0.5,0.5,0,0\n")
    summary = summarize(
        make_schedule("file", "file", 4, file=tmp_path / "w.csv"), "file", "file", num_params=1
    )
    assert summary.rho == 1 and summary.rounds_to_halve is None
    assert "never" in table([summary])


def test_plot_draws_every_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "graphs.svg"
    kinds = "ring path star torus two_clusters exponential random_matching one_peer_exponential"
    call(*kinds.split(), "--agents", "9", "--plot", str(target))
    drawing = target.read_text()
    assert drawing.count("<g id=\"axes_") == 9
    assert [p.name for p in tmp_path.iterdir()] == ["graphs.svg"]
    for words, message in (
        (("ring", "--plot", "x.jpeg"), "unknown kind of picture"),
        (("ring", "--agents", "500", "--plot", "x.png"), "too large to draw"),
        (("ring", "--plot", str(tmp_path / "no" / "x.png")), "cannot write"),
    ):
        with pytest.raises(DecdpoError, match=message):
            call(*words)


def test_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DecdpoError, match="needs matplotlib") as caught:
        call("ring", "--plot", str(tmp_path / "x.png"))
    assert "decdpo[plot]" in caught.value.remedy


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, decdpo.commands.before.topology\n"
        "print({'numpy', 'scipy', 'networkx', 'torch', 'mpi4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_times_on_a_network_are_columns_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("ring", "one_peer_exponential", "--agents", "64", "--params", "1e6")
    network = ("--bandwidth", "8", "--latency", "100")
    call(*words, *network, "--json")
    ring, peers = json.loads(capsys.readouterr().out)
    assert ring["round_seconds"] == pytest.approx(1e-4 + 2 * 4e-3)
    assert peers["round_seconds"] == pytest.approx(1e-4 + 4e-3)
    assert peers["thousandth_seconds"] == pytest.approx(6 * peers["round_seconds"])
    assert ring["thousandth_seconds"] > 1000 * ring["round_seconds"]
    assert ring["all_reduce_seconds"] == peers["all_reduce_seconds"]
    call(*words, *network)
    title, line, _ = capsys.readouterr().out.splitlines()
    assert title.endswith("round  to 1/1000  all-reduce")
    assert line.split()[-6:] == ["8.1", "ms", "17.4", "s", "9.08", "ms"]
    call(*words)
    assert "all-reduce" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bandwidth", "0"), "--bandwidth is 0"),
        (("--bandwidth", "nan"), "--bandwidth is nan"),
        (("--bandwidth", "1", "--latency", "-1"), "--latency is -1"),
        (("--latency", "2"), "--latency 2 would be ignored without --bandwidth"),
    ],
)
def test_odd_networks_are_named(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        call("ring", *words)

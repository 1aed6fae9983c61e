"""Grids of runs: resumed, shared between processes, broken, collected."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from decdpo.cli import main
from decdpo.config import parse_override
from decdpo.data.index import ShardIndex
from decdpo.data.synthetic import Choices, synthesize
from decdpo.errors import ConfigError
from decdpo.report.curves import read_metrics
from decdpo.studies import engine
from decdpo.studies.catalogue import builtin
from decdpo.studies.cells import Cell, Memory, Training, make_config
from decdpo.studies.custom import load
from decdpo.studies.noted import clipped_gradient_sq
from decdpo.studies.study import Options

BASE = {
    "run.rounds": 4,
    "log.every": 2,
    "log.gradient_pairs": 0,
    "policy.features": "columns",
    "data.batch_size": 4,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    synthesize(Choices(agents=3, pairs=12, dimension=4, holdout=0.25), folder)
    return folder


def silent(line):
    pass


def toml(tmp_path, shards, grid='"optim.lr" = [0.1, 1.0]', more=""):
    base = "\n".join(
        f"[base.{section}]\n"
        + "\n".join(
            f"{k.split('.')[1]} = {json.dumps(v)}" for k, v in BASE.items() if k.startswith(section)
        )
        for section in ("run", "log", "policy")
    )
    text = f'title = "t"\nseeds = 2\n{more}\n[grid]\n{grid}\n{base}\n'
    text += f"[base.data]\nbatch_size = 4\nshards = {json.dumps(str(shards))}\n"
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_a_cell_measures_what_a_run_of_the_program_measures(tmp_path, shards):
    config = make_config({**BASE, "data.shards": str(shards)})
    work = Training(config, "digest")
    folder = tmp_path / "cell"
    folder.mkdir()
    work.run(folder, Memory())
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 0
    ours, theirs = work.records(folder, Memory()), work.records(tmp_path / "run", Memory())
    for record in (*ours, *theirs):
        record.pop("system", None)
    assert ours == theirs
    assert [r["round"] for r in ours] == [0, 2, 4]
    assert ours[0]["gradient_norm"] > 0 and ours[0]["consensus_distance"] == 0


def test_noted_gradients_change_nothing_and_are_those_of_the_local_batches(tmp_path, shards):
    index = ShardIndex.load(shards)
    pairs = [index.open(entry.agent) for entry in index.agents]
    few = min(entry.num_train for entry in index.agents)
    settings = {
        **BASE, "data.shards": str(shards), "run.rounds": 7, "optim.lr": 1e-9,
        "data.batch_size": few, "policy.dtype": "float64",
    }  # fmt: skip
    found = {}
    for beta in (0.5, 1.0, 1e3):
        config = make_config({**settings, "loss.beta": beta})
        rows = {}
        for noted in (False, True):
            folder = tmp_path / f"{beta} {noted}"
            folder.mkdir()
            work = Training(config, "digest", noted)
            work.run(folder, Memory())
            rows[noted] = work.records(folder, Memory())
        found[beta] = rows[True][-1].pop("clipped_gradient_sq")
        for record in (*rows[False], *rows[True]):
            record.pop("system", None)
        assert rows[True] == rows[False]
    # At x = 0 and with all pairs in a batch, g_i = -beta/2 mean dphi.
    squares = []
    for shard in pairs:
        chosen, rejected = shard.features
        mean = (chosen - rejected)[: shard.num_train].mean(axis=0)
        squares.append(mean @ mean / 4)
    assert found[0.5] == pytest.approx(np.mean(np.minimum(1, 0.25 * np.array(squares))), rel=1e-5)
    assert found[1.0] == pytest.approx(np.mean(np.minimum(1, squares)), rel=1e-5)
    assert found[1e3] == 1.0


def test_the_clipped_gradients_are_those_of_the_last_five_rounds():
    # Two of three agents take part in a round, with three local steps each.
    rows = SimpleNamespace(row=lambda i: SimpleNamespace(active=i != 1))
    run = SimpleNamespace(
        num_rounds=7, local_steps=3, agents=[SimpleNamespace(id=i) for i in range(3)],
        schedule=SimpleNamespace(mixing=lambda t: rows),
    )  # fmt: skip
    squares = [1.0] * 12 + [0.5] * 6 + [0.25] * 24
    assert clipped_gradient_sq(run, squares) == pytest.approx((6 * 0.5 + 24 * 0.25) / 30)


def test_encoded_shards_are_shared_between_cells_and_forgotten_with_the_data(shards, tmp_path):
    memory, other = Memory(), tmp_path / "other"
    synthesize(Choices(agents=3, pairs=8, dimension=4, seed=9), other)
    policy = __import__("decdpo.policies.loglinear", fromlist=["LogLinear"]).LogLinear(
        4, features="columns"
    )
    index = memory.open(str(shards))
    first = memory.encode("a", policy, index.open(0))
    assert memory.encode("a", policy, memory.open(str(shards)).open(0)) is first
    assert memory.encode("b", policy, index.open(0)) is not first
    memory.open(str(other))
    assert memory.encode("a", policy, index.open(0)) is not first


def test_cells_whose_policies_read_pairs_differently_do_not_share_them(make_model, tmp_path):
    source = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": "a b c d e " * 4, "chosen": f"{i} yes", "rejected": "no"} for i in range(8)]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    shards = tmp_path / "texts"
    main(["shard", str(source), "--agents", "2", "--out", str(shards)])
    given = {
        "data.shards": str(shards), "run.rounds": 1, "log.gradient_pairs": 0,
        "policy.kind": "causal_lm", "policy.model": str(make_model()), "data.batch_size": 2,
    }  # fmt: skip
    memory, found = Memory(), {}
    for name in ("alone", "together"):
        for key, value in (("max_length", 64), ("max_length", 16), ("dtype", "bfloat16")):
            work = Training(make_config({**given, f"policy.{key}": value}), "d")
            folder = tmp_path / name / f"{key} {value}"
            folder.mkdir(parents=True)
            work.run(folder, memory if name == "together" else Memory())
            found[name, value] = work.records(folder, memory)[-1]["logps/chosen"]
    long, short, narrow = (found["alone", value] for value in (64, 16, "bfloat16"))
    assert len({long, short, narrow}) == 3
    assert [found["together", value] for value in (64, 16, "bfloat16")] == [long, short, narrow]


def test_the_digest_names_settings_and_data_but_not_paths(shards):
    one = Cell({"seed": 0}, Training(make_config({**BASE, "data.shards": "here"}), "d"))
    moved = Cell({"seed": 0}, Training(make_config({**BASE, "data.shards": "there"}), "d"))
    faster = Cell({"seed": 0}, Training(make_config({**BASE, "optim.lr": 7.0}), "d"))
    assert one.digest == moved.digest
    assert one.digest != faster.digest
    assert one.digest != Cell({"seed": 0}, Training(one.work.config, "other data")).digest


def test_finished_cells_are_kept_and_parts_make_up_the_whole(tmp_path, shards):
    study = load(toml(tmp_path, shards))
    out = tmp_path / "out"
    cells = study.cells(Options(out))
    assert len(cells) == 4 and len({c.digest for c in cells}) == 4
    for k in range(3):
        assert engine.run_cells(cells, out, silent, (k, 3)) == []
    result = engine.collect(study, cells, out)
    assert not result.broken and len(result.table.final().rows) == 4
    done: list[str] = []
    engine.run_cells(cells, out, done.append)
    assert done == []
    more = study.cells(Options(out, seeds=3))
    engine.run_cells(more, out, done.append)
    assert len(done) == 2, "only the new seed is run"


def test_a_killed_cell_begins_again(tmp_path, shards):
    study = load(toml(tmp_path, shards))
    out = tmp_path / "out"
    cells = study.cells(Options(out))
    engine.run_cells(cells, out, silent)
    path = engine.folder_of(out, cells[1]) / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole.splitlines()[0] + "\n" + whole.splitlines()[1][:30])
    done: list[str] = []
    engine.run_cells(cells, out, done.append)
    assert len(done) == 1 and cells[1].name in done[0]
    without_times = [
        [{**json.loads(line), "system": None} for line in text.splitlines()]
        for text in (whole, path.read_text())
    ]
    assert without_times[0] == without_times[1]


def test_a_broken_cell_is_named_and_the_others_go_on(tmp_path, shards, capsys):
    path = toml(tmp_path, shards, '"topology.graph" = ["hypercube", "ring"]')
    out = tmp_path / "out"
    assert main(["study", str(path), "--out", str(out)]) == 1
    assert "hypercube" in capsys.readouterr().err
    page = (out / "summary.md").read_text()
    assert "## Broken cells" in page and "topology.graph hypercube, seed 1" in page
    study = load(path)
    result = engine.collect(study, study.cells(Options(out)), out)
    assert len(result.broken) == 2
    assert set(result.table.values("topology.graph")) == {"ring"}


def test_the_command_leaves_table_figure_and_summary(tmp_path, shards, capsys):
    pytest.importorskip("matplotlib")
    path, out = toml(tmp_path, shards), tmp_path / "out"
    assert main(["study", str(path), "--out", str(out)]) == 0
    for name in ("table.csv", "final.csv", "grid.png", "grid.svg", "summary.md"):
        assert (out / name).stat().st_size > 0, name
    table, figure = (out / "table.csv").read_bytes(), (out / "grid.svg").read_bytes()
    assert main(["study", str(path), "--out", str(out)]) == 0
    assert (out / "table.csv").read_bytes() == table
    assert (out / "grid.svg").read_bytes() == figure


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(tmp_path, shards):
    path = toml(tmp_path, shards)
    tables = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        assert main(["study", str(path), "--out", str(out), "--jobs", jobs]) == 0
        lines = (out / "final.csv").read_text().splitlines()
        head = lines[0].split(",")
        timed = {k for k, name in enumerate(head) if "seconds" in name}
        kept = [[v for k, v in enumerate(line.split(",")) if k not in timed] for line in lines]
        tables.append(kept)
    assert tables[0] == tables[1]


def test_a_slurm_array_covers_the_unfinished_cells_and_is_collected(tmp_path, shards):
    path, out = toml(tmp_path, shards), tmp_path / "out"
    study = load(path)
    cells = study.cells(Options(out))
    engine.run_cells(cells[:1], out, silent)
    assert main(["study", str(path), "--out", str(out), "--slurm"]) == 0
    script = (out / "array.slurm").read_text()
    assert "#SBATCH --array=1-3" in script
    assert "--ntasks-per-node=3" in script, "no more ranks than agents"
    subprocess.run(["bash", "-n", str(out / "array.slurm")], check=True)
    names = (out / "cells" / "array.txt").read_text().split()
    assert names == [cell.digest for cell in cells[1:]]
    # what a task of the array does
    folder = out / "cells" / names[0]
    assert main(["train", f"{folder}.toml", "--out", str(folder)]) == 0
    done: list[str] = []
    engine.run_cells(cells, out, done.append)
    assert len(done) == 2
    table = engine.collect(study, cells, out).table
    assert [r["round"] for r in table.where(cell=names[0]).rows] == [0, 2, 4]
    with pytest.raises(ConfigError, match="no unfinished"):
        from decdpo.studies.slurm import write_array

        write_array(study, cells, out, silent)


def test_an_array_leaves_out_what_is_no_run_of_the_program(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--quick", "--seeds", "1", "--agents", "2", "--slurm"]
    assert main(["study", "rates", "--out", str(out), *arguments]) == 0
    assert "1 cells are no training runs" in capsys.readouterr().err
    assert len((out / "cells" / "array.txt").read_text().split()) == 18


@pytest.mark.slow
def test_mpirun_gives_the_numbers_of_one_process_and_resumes(tmp_path, shards):
    pytest.importorskip("mpi4py")
    study = load(toml(tmp_path, shards, '"optim.lr" = [0.5]', ""))
    tables = {}
    for ranks in (0, 2):
        out = tmp_path / str(ranks)
        cells = study.cells(Options(out, seeds=1))
        if ranks:
            # As if killed before its last checkpoint, and before its last records were on the disk.
            folder = engine.folder_of(out, cells[0])
            folder.parent.mkdir(parents=True)
            engine.write_config(cells[0], folder)
            assert main(["train", f"{folder}.toml", "--out", str(folder)]) == 0
            shutil.rmtree(max((folder / "checkpoints").iterdir()))
            (folder / "metrics.jsonl").write_text("")
        assert engine.run_cells(cells, out, silent, ranks=ranks) == []
        rows = engine.collect(study, cells, out).table.rows
        tables[ranks] = [{k: r[k] for k in ("round", "gap", "loss")} for r in rows]
    assert tables[0] == tables[2] and len(tables[0]) == 3
    assert [r["round"] for r in read_metrics(folder / "metrics.jsonl")] == [0, 2, 4]


@pytest.mark.parametrize(
    ("y", "asked", "pairs"),
    [("gap", None, 0), ("gradient_norm", 3, 3), ("heldout/accuracy", None, -1), ("loss", 5, 5)],
)
def test_gradients_are_measured_of_all_pairs_only_for_what_is_made_of_them(
    y, asked, pairs, shards, tmp_path, monkeypatch
):
    given = {key: value for key, value in BASE.items() if key != "log.gradient_pairs"}
    monkeypatch.setitem(globals(), "BASE", given)
    if asked is not None:
        given["log.gradient_pairs"] = asked
    study = load(toml(tmp_path, shards, more=f'y = "{y}"'))
    options = Options(tmp_path / "out", seeds=1)
    configs = [cell.work.config for cell in study.cells(options)]
    assert [config.log.gradient_pairs for config in configs] == [pairs] * 2


@pytest.mark.parametrize(
    ("more", "grid", "what"),
    [
        ("colour = 3", '"optim.lr" = [1]', "colour"),
        ("", '"lr" = [1]', "lr"),
        ("", '"optim.lr" = 1', "optim.lr"),
        ('hue = "optim.kind"', '"optim.lr" = [1]', "hue"),
        ("", '"optim.lr" = [-1.0]', "optim.lr"),
        ("", '"optim.speed" = [1]', "optim.speed"),
        ("", '"optim.lr" = ' + "[" * 100_000, "not valid TOML"),
        ("", '"optim.lr" = [' + "9" * 5000 + "]", "not valid TOML"),
    ],
)
def test_a_grid_that_makes_no_sense_is_one_error(tmp_path, shards, capsys, more, grid, what):
    path = toml(tmp_path, shards, grid, more)
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert what in text and "remedy" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch", "--out", "x"],
        ["methods"],
        ["methods", "--out", "x", "--jobs", "0"],
        ["methods", "--out", "x", "--jobs", "2", "--ranks", "2"],
        ["methods", "--out", "x", "--data", "nowhere"],
        ["methods", "--out", "x", "--partition", "iid"],
        ["balanced-toy", "--out", "x", "--set", "optim.lr=1"],
    ],
)
def test_bad_arguments_are_one_error(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("decdpo: error:") and "remedy" in text


def test_two_studies_never_share_a_folder(tmp_path, shards, capsys):
    path, out = toml(tmp_path, shards), tmp_path / "out"
    with engine.locked(out):
        assert main(["study", str(path), "--out", str(out)]) == 2
    assert "another study" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_study_notes_it_and_goes_on(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with engine.locked(tmp_path / "out", said.append):
        pass
    assert len(said) == 1 and "has no locks" in said[0] and os.strerror(code) in said[0]


def test_a_folder_with_something_else_is_left_alone(tmp_path, shards, capsys):
    path = toml(tmp_path, shards)
    before = sorted(shards.iterdir())
    assert main(["study", str(path), "--out", str(shards)]) == 2
    assert "holds shards" in capsys.readouterr().err and sorted(shards.iterdir()) == before


def test_overrides_reach_every_cell_and_those_of_topology_only_what_has_one(tmp_path):
    options = Options(
        tmp_path, seeds=1, agents=4, overrides=("run.rounds=3", "topology.weights=uniform")
    )
    cells = builtin("methods").cells(replace(options, quick=True))
    configs = {c.labels["method"]: c.work.config for c in cells}
    assert {c.run.rounds for c in configs.values()} == {3}
    assert configs["centralized"].topology is None
    assert configs["DecDPO ring"].topology.weights == "uniform"


@pytest.mark.parametrize(
    ("name", "override", "remedy"),
    [
        ("local-steps", "algorithm.local_steps=2", "grid of your own"),
        ("local-steps", "optim.lr=0.5", "grid of your own"),
        ("methods", "topology.graph=star", "grid of your own"),
        ("methods", "algorithm.participants=2", "grid of your own"),
        ("methods", "agents.count=2", "--agents"),
        ("staleness", " staleness.max_age=1", "grid of your own"),
        ("topology", "run.seed=3", "--seeds"),
        ("topology", "data.shards=x", "--data"),
        ("advisor", "run.seed=3", "--seeds"),
    ],
)
def test_what_a_study_varies_is_not_overridden(tmp_path, name, override, remedy):
    options = Options(tmp_path, seeds=1, quick=True, overrides=("log.every=5", override))
    with pytest.raises(ConfigError, match=override.strip().partition("=")[0]) as caught:
        builtin(name).cells(options)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("methods", "optim.lr=0.5"),
        ("participation", "algorithm.local_steps=2"),
        ("heterogeneity", "topology.graph=star"),
    ],
)
def test_what_a_study_does_not_vary_may_be_overridden(tmp_path, name, override):
    options = Options(tmp_path, seeds=1, agents=4, quick=True, overrides=(override,))
    cells = builtin(name).cells(options)
    section, key, value = parse_override(override)
    chosen = [s for c in cells if (s := getattr(c.work.config, section)) is not None]
    assert {getattr(s, key) for s in chosen} == {value}


def test_an_override_of_the_topology_reaches_an_algorithm_chosen_by_another(tmp_path):
    overrides = ("algorithm.kind=dsgd", "topology.graph=star")
    options = Options(tmp_path, seeds=1, agents=4, quick=True, overrides=overrides)
    configs = [cell.work.config for cell in builtin("local-steps").cells(options)]
    assert {config.topology.graph for config in configs} == {"star"}


@pytest.mark.parametrize(
    ("grid", "arguments", "words"),
    [
        ('"optim.lr" = [0.1]', ["--set", "optim.lr=1"], "override optim.lr"),
        ('"optim.lr" = [0.1]', ["--set", " optim.lr = 1"], "change the grid"),
        ('"optim.lr" = [0.1]', ["--set", "run.seed=1"], "--seeds"),
        ('"optim.lr" = [0.1]', ["--agents", "2", "--set", "agents.count=3"], "--agents"),
        ('"agents.count" = [1, 2]', ["--agents", "3"], "agents.count"),
        ('"run.seed" = [1, 2]', [], "seeds = N"),
        ('"data.shards" = ["a", "b"]', [], "--data"),
    ],
)
def test_the_labels_of_a_grid_are_what_is_run(tmp_path, shards, capsys, grid, arguments, words):
    path = toml(tmp_path, shards, grid)
    assert main(["study", str(path), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_grid_of_rounds_stays_as_it_is_in_the_quick_version(tmp_path, shards):
    study = load(toml(tmp_path, shards, '"run.rounds" = [8, 16]'))
    cells = study.cells(Options(tmp_path / "out", quick=True))
    assert all(c.work.config.run.rounds == c.labels["run.rounds"] for c in cells)
    other = replace(Options(tmp_path / "out"), overrides=("agents.count=2", "optim.lr=0.5"))
    assert {c.work.config.agents.count for c in study.cells(other)} == {2}


def test_a_label_wins_over_a_number_of_the_same_name(tmp_path, shards):
    study = load(toml(tmp_path, shards))
    settings = {**BASE, "data.shards": str(shards), "optim.lr": 0.5, "optim.schedule": "cosine"}
    work = Training(make_config(settings), ShardIndex.load(shards).digest)
    cells = [Cell({"lr": 0.5, "seed": 0}, work)]
    engine.run_cells(cells, tmp_path, silent)
    rows = engine.collect(study, cells, tmp_path).table.rows
    assert work.records(engine.folder_of(tmp_path, cells[0]), Memory())[-1]["lr"] < 0.5
    assert [row["lr"] for row in rows] == [0.5, 0.5, 0.5]
    assert list(rows[-1])[:3] == ["cell", "lr", "seed"]


def test_help_does_not_import_torch():
    code = "import sys, decdpo.parser as c; c.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

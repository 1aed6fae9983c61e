"""TensorBoard event files: TRL's names, every round once, and only where they are wanted."""

import json
import shutil
import sys
import warnings
from types import SimpleNamespace

import pytest

from decdpo.cli import main
from decdpo.data.synthetic import Choices, synthesize
from decdpo.metrics.recorder import Metrics
from decdpo.progress import Progress

ROUNDS = 6


@pytest.fixture
def start(tmp_path):
    """Return the arguments that train into the folder ``run``."""
    synthesize(Choices(agents=2, pairs=8, dimension=3, holdout=0.25), tmp_path / "shards")
    shards = json.dumps(str(tmp_path / "shards"))
    (tmp_path / "run.toml").write_text(
        f'[data]\nshards = {shards}\nbatch_size = 2\n[policy]\nfeatures = "columns"\n'
        f"[run]\nrounds = {ROUNDS}\n[checkpoint]\nevery = 2\nkeep = 9\n"
    )
    out = ["--out", str(tmp_path / "run"), "--progress", "none"]
    return ["train", str(tmp_path / "run.toml"), *out]


def read_back(folder):
    """Return the values of every name by step, as TensorBoard's own reader has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here"
        )
        found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def records_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_shown(run):
    """Assert that the event files have every record once, under TRL's names."""
    found, records = read_back(run / "tensorboard"), records_of(run)
    for name, key in (
        ("train/loss", "loss"),
        ("train/learning_rate", "lr"),
        ("train/grad_norm", "gradient_norm"),
        ("train/rewards/chosen", "rewards/chosen"),
        ("train/rewards/margins", "rewards/margins"),
        ("train/logps/rejected", "logps/rejected"),
        ("eval/loss", "heldout/average/loss"),
        ("eval/rewards/accuracies", "heldout/average/accuracy"),
        ("train/consensus_distance", "consensus_distance"),
    ):
        assert [step for step, _ in found[name]] == list(range(ROUNDS + 1)), name
        assert [value for _, value in found[name]] == pytest.approx([r[key] for r in records])
    assert "system/seconds/compute" in found


def test_events_have_the_names_of_trl_and_go_on_after_a_lost_round(start, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert main([*start, "--set", "log.tensorboard=true"]) == 0
    assert_shown(run)
    # As after a kill: two rounds were recorded and never saved.
    shutil.rmtree(run / "checkpoints" / "round_000006")
    assert main(["resume", str(run), "--progress", "none"]) == 0
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert_shown(run)
    # What is made again to be compared needs no events, nor the package.
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["replay", str(run)]) == 0


def test_records_from_before_it_was_wanted_are_there_too(start, tmp_path):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert main([*start, "--set", "run.rounds=4"]) == 0
    wanted = ["--set", "log.tensorboard=true", "--set", f"run.rounds={ROUNDS}"]
    assert main(["resume", str(run), "--progress", "none", *wanted]) == 0
    assert_shown(run)


def test_a_process_in_the_place_of_a_lost_one_shows_what_that_had_not_written(start, tmp_path):
    pytest.importorskip("tensorboard")
    run, silent = tmp_path / "run", ["--progress", "none"]
    assert main([*start, "--set", "run.rounds=4", "--set", "log.tensorboard=true"]) == 0
    further = ["--set", f"run.rounds={ROUNDS}", "--set", "log.tensorboard=false"]
    assert main(["resume", str(run), *silent, *further]) == 0
    metrics = Metrics(
        run / "metrics.jsonl", None, every=1, rho=None, dashboard=True, start_round=0,
        progress=Progress(0, ROUNDS, enabled=False), is_root=False,
    )  # fmt: skip
    metrics.last = records_of(run)[-1]
    world, schedule = SimpleNamespace(is_root=True), SimpleNamespace(rho=None)
    metrics.changed({"lost": [0]}, SimpleNamespace(world=world, schedule=schedule, agents=[]))
    metrics.close()
    assert_shown(run)


def test_nothing_is_imported_or_written_unless_it_is_wanted(start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(start) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    Metrics(
        tmp_path / "metrics.jsonl", None, every=1, rho=None, dashboard=True, start_round=0,
        progress=Progress(0, 4, enabled=False), is_root=False,
    ).close()  # fmt: skip
    assert not (tmp_path / "tensorboard").exists()


def test_without_the_package_the_run_is_refused(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("decdpo.metrics.dashboard.find_spec", lambda name: None)
    assert main([*start, "--set", "log.tensorboard=true"]) == 2
    assert "pip install 'decdpo[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

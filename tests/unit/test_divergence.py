"""When a run counts as diverged, and what becomes of it."""

from math import inf, log, nan

import pytest
from shells import CONFIG, Shell

from decdpo.cli import main
from decdpo.metrics import recorder
from decdpo.metrics.divergence import Diverged, Divergence
from decdpo.report.curves import read_metrics


def looks(watch, *losses, norm=1.0, rounds=100):
    """Return the doubts of the losses of rounds 10, 20, ..."""
    found = []
    for step, loss in enumerate(losses, 1):
        found.append(bool(watch.look(10 * step, loss, norm, last=10 * step == rounds)))
    return found


def test_one_bad_round_is_a_doubt_and_two_in_a_row_are_a_diverged_run():
    watch = Divergence(1000.0, log(2), 0.0)
    assert looks(watch, 0.7, 1e4, 0.6, None, 1e4, 5.0) == [False, True, False, False, True, False]
    assert watch.look(70, 700.0, 1.0, last=False)
    with pytest.raises(Diverged, match=r"round 80 the training loss is 8.7e\+27, 1.3e\+28 times"):
        watch.look(80, 8.7e27, 1.0, last=False)


def test_the_same_round_looked_at_twice_is_one_look():
    watch = Divergence(1000.0, 1.0, 0.0)
    assert watch.look(10, 1e9, 1.0, last=False) and watch.look(10, 1e9, 1.0, last=False)
    with pytest.raises(Diverged):
        watch.look(10, 1e9, 1.0, last=True)


@pytest.mark.parametrize("loss", [1e9, -1e9, inf, nan])
def test_a_bad_last_round_is_enough(loss):
    with pytest.raises(Diverged) as caught:
        looks(Divergence(1000.0, 25.0, 0.0), 25.0, 26.0, loss, rounds=30)
    assert caught.value.exit_code == 1 and caught.value.collective


@pytest.mark.parametrize(
    ("start", "fine", "bad"),
    [(log(2), 690, 700), (25.0, 24_000, 26_000), (0.0, 690, 700), (-3.0, -2900, -3100)],
)
def test_losses_of_any_scale_are_measured_against_their_start(start, fine, bad):
    assert looks(Divergence(1000.0, start, 0.0), fine, bad) == [False, True]


def test_a_bounded_loss_is_caught_by_its_parameters():
    watch = Divergence(1000.0, 0.5, 30.0)
    assert looks(watch, 0.5, norm=2e9) == [False]
    assert "the parameters have the length 4e+09, at the start 30" in watch.look(
        20, 0.5, 4e9, last=False
    )


def test_zero_looks_at_nothing():
    assert looks(Divergence(0.0, 1.0, 1.0), inf, 1e99, norm=inf) == [False, False]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return what trains on synthetic choices with more options, and reads the folder."""
    monkeypatch.chdir(tmp_path)
    users = ["--agents", "3", "--pairs", "24", "--seed", "1", "--out", "users"]
    assert main(["synthesize", "choices", *users]) == 0
    (tmp_path / "run.toml").write_text(
        '[run]\nrounds = 60\n[data]\nshards = "users"\nbatch_size = 4\n'
        '[policy]\nfeatures = "columns"\ndtype = "float64"\n'
        '[loss]\nkind = "ipo"\n[checkpoint]\nevery = 4\nkeep = 2\n'
    )

    def train(name, *words):
        options = [word for pair in words for word in ("--set", pair)]
        return main(["train", "run.toml", "--out", name, "--progress", "none", *options])

    train.folder = tmp_path
    return train


def saved(folder):
    return [int(path.name[6:]) for path in sorted((folder / "checkpoints").iterdir())]


def test_a_diverging_run_is_named_and_keeps_its_last_good_checkpoint(run, capsys):
    folder = run.folder / "run"
    assert run("run", "optim.lr=5", "log.every=1") == 1
    said = capsys.readouterr().err
    assert "error: the run diverged: in round" in said and "Traceback" not in said
    losses = {r["round"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl")}
    bad = [t for t, loss in losses.items() if loss > 1000 * losses[0]]
    assert bad == [max(losses) - 1, max(losses)]
    assert saved(folder) == [t for t in (0, 4, 8, 12, 16) if t < bad[0]][-2:]
    assert "training loss" in (folder / "summary.txt").read_text()
    # From there it goes on with a smaller step.
    words = ["--allow", "optim.lr", "--set", "optim.lr=0.001", "--progress", "none"]
    assert main(["resume", "run", *words]) == 0
    assert max(saved(folder)) == 60


def test_a_checkpoint_is_looked_at_although_no_record_is_due(run, capsys):
    assert run("run", "optim.lr=5", "log.every=60") == 1
    assert "error: the run diverged: in round" in capsys.readouterr().err
    assert [r["round"] for r in read_metrics(run.folder / "run" / "metrics.jsonl")] == [0]


def test_a_run_may_be_asked_to_go_on_whatever_its_loss(run):
    wild = ("optim.lr=5", "log.every=10", "run.rounds=12", "run.diverged_above=0")
    assert run("run", *wild) == 0
    assert read_metrics(run.folder / "run" / "metrics.jsonl")[-1]["loss"] > 1e6


def test_a_resumed_run_knows_how_it_started_without_the_model_it_began_from(tmp_path, monkeypatch):
    shell, made, starts = Shell(tmp_path), [], []
    shell.make_shards(3)
    shell.write("c.toml", CONFIG.format(shards="shards"))
    usual, first = recorder.Divergence, recorder.initial_model
    monkeypatch.setattr(recorder, "Divergence", lambda *a: made.append(a[:3]) or usual(*a))
    monkeypatch.setattr(recorder, "initial_model", lambda run: starts.append(1) or first(run))
    shell("train", "c.toml", "--out", "run", "--set", "run.rounds=4")
    known, at_start = made[-1], len(starts)
    assert known[1] > 0 and at_start == 1
    shell("resume", "run", "--set", "run.rounds=6")
    assert made[-1] == known and len(starts) == at_start
    # Another configuration may start otherwise, and is measured; then that is known.
    shell("resume", "run", "--set", "run.rounds=8", "--set", "optim.lr=0.2", "--allow", "optim.lr")
    assert made[-1] == known and len(starts) == at_start + 1
    shell("resume", "run", "--set", "run.rounds=10")
    assert made[-1] == known and len(starts) == at_start + 1

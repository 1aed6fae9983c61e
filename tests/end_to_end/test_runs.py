"""Training as its users run it: any number of ranks, stopped, killed, resumed, always the same."""

import errno
import fcntl
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from limits import HANG, await_that
from shells import ROOT
from small_models import STORIES


def test_stopped_by_a_signal_and_resumed_elsewhere_it_ends_the_same(shell, config):
    options = ["--set", "run.rounds=200", "--set", "log.every=20", "--set", "optim.momentum=0.5"]
    shell("train", config, "--out", "whole", *options)
    process = shell.start("train", config, "--out", "stopped", *options, ranks=2)
    metrics = shell.folder / "stopped" / "metrics.jsonl"
    await_that(lambda: metrics.exists() and metrics.stat().st_size, "a record")
    # mpirun passes USR1 on to all ranks.
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=HANG)
    assert process.returncode == 85, said
    assert said.count("stopped early") == 1
    saved = shell("checkpoint", "show", "stopped", "--json")
    assert 0 < json.loads(saved)["round"] < 200
    shell("resume", "stopped")
    assert shell.digests("stopped") == shell.digests("whole")
    assert shell.metrics("stopped") == shell.metrics("whole")


def test_after_training_a_late_request_is_harmless_and_not_inherited(shell, config):
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        shell("train", config, "--out", "run")
        os.kill(os.getpid(), signal.SIGUSR1)
        words = ["bash", "-c", "trap 'exit 7' USR1; kill -USR1 $$; sleep 1"]
        assert subprocess.run(words, timeout=HANG).returncode == 7
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_halt_file_stops_a_run(shell, config):
    run = shell.folder / "run"

    def halt():
        await_that((run / "metrics.jsonl").exists, "a record")
        (run / "halt").touch()

    user = Thread(target=halt)
    user.start()
    options = ["--set", "run.rounds=100000", "--set", "log.every=50"]
    shell("train", config, "--out", "run", *options, status=85)
    user.join()
    assert "rm run/halt && decdpo resume run" in shell.said


def test_killed_while_it_runs_and_resumed_it_ends_the_same(shell, config):
    options = ["--set", "run.rounds=60", "--set", "checkpoint.every=2"]
    shell("train", config, "--out", "whole", *options)
    for number, rounds in enumerate((3, 31)):
        run = f"killed-{number}"
        process = shell.start("train", config, "--out", run, *options)
        path = shell.folder / run / "metrics.jsonl"
        await_that(partial(_has_lines, path, rounds), f"{rounds} records")
        process.kill()
        process.communicate()
        shell("resume", run)
        assert shell.digests(run) == shell.digests("whole")
        assert shell.metrics(run) == shell.metrics("whole")


def test_more_rounds_continue_a_finished_run(shell, config):
    shell("train", config, "--out", "long", "--set", "run.rounds=20")
    shell("train", config, "--out", "short")
    shell("resume", "short", "--set", "run.rounds=20")
    assert shell.digests("short") == shell.digests("long")
    assert shell.metrics("short") == shell.metrics("long")


def test_a_changed_key_needs_leave(shell, config):
    shell("train", config, "--out", "run")
    shell("resume", "run", "--set", "run.rounds=14", "--set", "optim.lr=0.01", status=3)
    assert "optim.lr: saved 0.1, now 0.01" in shell.said and "--allow optim.lr" in shell.said
    words = ["--set", "run.rounds=14", "--set", "optim.lr=0.01", "--allow", "optim.lr"]
    shell("resume", "run", *words)
    assert [r["lr"] for r in shell.metrics("run")][-3:] == [0.1, 0.01, 0.01]


class Kill(BaseException):
    """The process ends here."""


def test_a_kill_right_after_an_allowed_change_leaves_a_run_that_goes_on(shell, config, monkeypatch):
    shell("train", config, "--out", "run")

    def kill(run):
        raise Kill

    words = ["--set", "run.rounds=14", "--set", "optim.lr=0.01", "--allow", "optim.lr"]
    with monkeypatch.context() as patch:
        patch.setattr("decdpo.session.training.train", kill)
        with pytest.raises(Kill):
            shell("resume", "run", *words)
    shell("resume", "run")
    assert [r["lr"] for r in shell.metrics("run")][-3:] == [0.1, 0.01, 0.01]


def test_a_change_that_cannot_be_saved_is_not_noted_either(shell, config, monkeypatch):
    shell("train", config, "--out", "run")
    before = (shell.folder / "run" / "config.toml").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("decdpo.checkpoint.writer.write_part", full)
        words = ["--set", "run.rounds=14", "--set", "optim.lr=0.01", "--allow", "optim.lr"]
        shell("resume", "run", *words, status=2)
    assert (shell.folder / "run" / "config.toml").read_text() == before
    shell("resume", "run", "--set", "run.rounds=14")
    assert shell.metrics("run")[-1]["lr"] == 0.1


def test_fewer_rounds_than_are_done_are_refused_and_nothing_is_written(shell, config):
    shell("train", config, "--out", "run")
    files = ("config.toml", "run.json", "metrics.jsonl", "summary.txt")
    before = [(shell.folder / "run" / name).read_bytes() for name in files]
    shell("resume", "run", "--set", "run.rounds=11", status=2)
    assert "run.rounds = 11, but run has already done 12 rounds" in shell.said
    assert [(shell.folder / "run" / name).read_bytes() for name in files] == before
    shell("resume", "run", "--set", "run.rounds=12")


def test_a_full_disk_ends_a_run_with_one_message(shell, config, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("decdpo.metrics.recorder.Metrics.sync", full)
        shell("train", config, "--out", "run", status=2)
    assert "the run cannot go on: run: No space left on device" in shell.said
    assert shell.said.count("decdpo: error:") == 1 and "free some space" in shell.said
    shell("resume", "run")


def test_a_checkpoint_folder_that_is_lost_is_told_once(shell, config):
    process = shell.start(
        "train", config, "--out", "run", "--set", "run.rounds=100000",
        "--set", "checkpoint.every=20", ranks=2,
    )  # fmt: skip
    folder = shell.folder / "run" / "checkpoints"
    await_that((folder / "round_000020").exists, "a checkpoint")
    folder.rename(shell.folder / "elsewhere")
    folder.write_text("in the way")
    said, _ = process.communicate(timeout=HANG)
    assert process.returncode == 2 and said.count("decdpo: error:") == 1, said
    assert "the checkpoint was not written" in said


@pytest.mark.parametrize(
    "key, value",
    [("topology.graph", "star"), ("policy.dimension", "2048"), ("agents.count", "7")],
)
def test_another_model_data_or_topology_is_refused(shell, config, key, value):
    shell("train", config, "--out", "run")
    shell("resume", "run", "--set", f"{key}={value}", status=3)
    assert key.split(".")[0] in shell.said and "saved" in shell.said
    assert "Traceback" not in shell.said


def test_evaluate_and_export(shell, config):
    shell("train", config, "--out", "run", "--set", "optim.lr=10", "--set", "run.rounds=60")
    alone = json.loads(shell("evaluate", "run", "--json"))
    last = shell.metrics("run")[-1]
    assert alone["average"]["accuracy"] == last["heldout/average/accuracy"]
    assert alone["own"]["accuracy"] == last["heldout/accuracy"] > 0.55
    shell("evaluate", "run")
    assert "ada" in shell.said
    shell("export", "run", "--out", "mean")
    shell("export", "run", "--out", "third", "--agent", "3")
    with np.load(shell.folder / "mean" / "policy.npz", allow_pickle=False) as mean:
        with np.load(shell.folder / "third" / "policy.npz", allow_pickle=False) as third:
            assert mean["theta"].shape == third["theta"].shape == (4096,)
            assert 0 < np.abs(mean["theta"] - third["theta"]).max() < np.abs(mean["theta"]).max()


def test_a_run_is_measured_and_exported_elsewhere(shell, config, shards):
    copy = shell.folder / "shards"
    shutil.copytree(shards, copy)
    shell("train", config, "--out", "run", "--set", f"data.shards={copy}")
    wanted = shell("evaluate", "run", "--json")
    copy.rename(shell.folder / "moved")
    shell("evaluate", "run", "--json", status=2)
    moved = ["--set", "data.shards=moved"]
    assert shell("evaluate", "run", "--json", *moved) == wanted
    shell("export", "run", "--out", "mean", *moved)
    shell("evaluate", "run", *moved, "--set", "agents.count=7", status=3)
    assert "agents: saved 8, now 7" in shell.said
    source = Path(__file__).resolve().parents[2] / "data" / "preferences.jsonl.gz"
    shell("shard", source, "--agents", "8", "--out", "other")
    for words in (["evaluate", "run"], ["export", "run", "--out", "wrong"]):
        shell(*words, "--set", "data.shards=other", status=3)
        assert "data: saved" in shell.said and "--set data.shards=FOLDER" in shell.said
        assert "--allow" not in shell.said


def test_a_checkpoint_from_before_an_allowed_change_is_still_measured(shell, config):
    shell("train", config, "--out", "run", "--set", "checkpoint.keep=4")
    early = json.loads(shell("evaluate", "run", "--round", "8", "--json"))
    words = ["--set", "run.rounds=16", "--set", "optim.lr=0.01", "--allow", "optim.lr"]
    shell("resume", "run", *words)
    assert json.loads(shell("evaluate", "run", "--round", "8", "--json")) == early
    shell("export", "run", "--round", "8", "--out", "early")


@pytest.mark.skipif(not STORIES.exists(), reason="no language model in ../shared/models")
def test_a_language_model_trains_and_is_exported(shell, config):
    pytest.importorskip("transformers")
    with gzip.open(ROOT / "data" / "preferences.jsonl.gz", "rt") as rows:
        shell.write("few.jsonl", "".join(itertools.islice(rows, 80)))
    shell("shard", "few.jsonl", "--agents", "4", "--out", "few")
    options = ["--set", "policy.kind=causal_lm", "--set", "data.shards=few"]
    options += ["--set", f"policy.model={STORIES}", "--set", "optim.kind=adamw"]
    options += ["--set", "data.batch_size=2", "--set", "policy.max_length=64"]
    options += ["--set", "log.gradient_pairs=2", "--set", "log.heldout_pairs=2"]
    config.write_text(config.read_text().replace("dimension = 4096", ""))
    shell("train", config, "--out", "one", *options, "--set", "run.rounds=4")
    assert shell.metrics("one")[0]["rewards/margins"] == 0
    shell("export", "one", "--out", "model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(shell.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(shell.folder / "model")
    assert sum(p.numel() for p in model.parameters()) == 260_032


def test_two_jobs_cannot_train_in_one_folder(shell, config):
    shell("train", config, "--out", "run")
    with open(shell.folder / "run" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shell("resume", "run", "--set", "run.rounds=14", status=2)
    assert "another job is training in run" in shell.said


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_fault_on_one_rank_is_told_once_and_ends_all(shell, config, shards, ranks):
    copy = shell.folder / "shards"
    shutil.copytree(shards, copy)
    (copy / "agent_0006.h5").unlink()
    words = ["train", config, "--out", "run", "--set", f"data.shards={copy}"]
    shell(*words, ranks=ranks, status=2)
    assert shell.said.count("agent_0006.h5") == 1 and "Traceback" not in shell.said


def test_a_mistake_is_told_once_however_many_ranks_meet_it(shell, config):
    shell("train", config, "--out", "run", "--set", "run.round=3", ranks=2, status=2)
    assert shell.said.count("decdpo: error:") == 1 and "Traceback" not in shell.said


def test_a_rank_with_another_configuration_is_named(shell, config):
    other = shell.write("other.toml", config.read_text() + "[optim]\nlr = 0.5\n")
    first = shell.command(["train", config, "--out", "run"], 2)
    words = [*first, ":", "-n", "1", *shell.command(["train", other, "--out", "run"], None)]
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment(), capture_output=True, text=True,
        timeout=HANG,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2 and said.count("decdpo: error:") == 1
    assert "[optim] differs: process 2" in said and "lr = 0.5" in said


def test_one_lost_rank_ends_the_job(shell, config):
    # It ends because one is lost, not because the others have waited in vain.
    options = ["--set", "run.rounds=100000", "--set", f"comm.timeout={2 * HANG}"]
    process = shell.start("train", config, "--out", "run", *options, ranks=2)
    path = shell.folder / "run" / "metrics.jsonl"
    await_that(lambda: path.exists() and path.stat().st_size, "a record")
    children = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _parent(folder) == process.pid
    ]
    assert len(children) == 2
    os.kill(children[1], signal.SIGKILL)
    process.communicate(timeout=HANG)
    assert process.returncode != 0


def _has_lines(path, count):
    return path.exists() and path.read_text().count("\n") >= count


def _parent(folder):
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0

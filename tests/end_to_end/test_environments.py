"""A run's end does not depend on figures, the environment, or how Python was started."""

import subprocess
import sys


def test_a_figure_that_fails_does_not_fail_a_finished_run(shell, config, monkeypatch):
    def blank(size):
        raise ValueError("Key backend: 'module://inline' is not a valid value")

    monkeypatch.setattr("decdpo.report.curves.blank", blank)
    shell("train", config, "--out", "run")
    assert "no curves.png: the figure was not drawn: ValueError: Key backend" in shell.said
    assert "done" in shell.said and (shell.folder / "run" / "summary.txt").exists()


def test_every_command_works_without_docstrings(shell, config):
    code = (
        "from decdpo.cli import main\nfrom decdpo.parser import build_parser\n"
        "build_parser().format_help()\n"
        "for words in (['config'], ['topology', 'ring', '--agents', '8'],\n"
        "              ['train', 'run.toml', '--out', 'run'], ['resume', 'run'],\n"
        "              ['checkpoint', 'show', 'run'], ['report', 'run']):\n"
        "    status = main(words)\n"
        "    if status: raise SystemExit(f'{words}: {status}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], cwd=shell.folder, env=shell.environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# Run(" not in done.stdout


def test_an_out_that_differs_between_ranks_is_named(shell, config):
    first = shell.command(["train", config, "--out", "out_0"], 1)
    words = [*first, ":", "-n", "1", *shell.command(["train", config, "--out", "out_1"], None)]
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("decdpo: error:") == 1, done.stderr
    assert "--out differs: process 1 has out_1, most have out_0" in done.stderr
    assert not (shell.folder / "out_0").exists()


def test_more_rounds_under_a_cosine_are_refused_with_the_reason(shell, config):
    cosine = ["--set", "optim.schedule=cosine", "--set", "optim.lr=0.5", "--set", "run.rounds=10"]
    shell("train", config, "--out", "run", *cosine)
    shell("resume", "run", "--set", "run.rounds=20", status=3)
    assert "run.rounds: saved 10, now 20" in shell.said
    assert "ends with run.rounds: the step size would go from 0.0122 to 0.25" in shell.said
    shell("resume", "run", "--set", "run.rounds=20", "--allow", "run.rounds")
    assert "after round 10 of 20; the step size goes from 0.0122 to 0.25" in shell.said
    assert [round(r["lr"], 4) for r in shell.metrics("run")][9:11] == [0.0122, 0.25]


def test_a_constant_step_size_is_not_told_again(shell, config):
    shell("train", config, "--out", "run")
    shell("resume", "run", "--set", "run.rounds=14")
    assert "step size" not in shell.said

"""A run's end does not depend on figures, the environment, or how Python was started."""

import os
import shlex
import subprocess
import sys

import pytest

from decdpo.commands.catalogue import COMMANDS

LIMIT = 280
"""Seconds after which a process counts as hanging; to import torch takes most of them."""


def test_a_figure_that_fails_does_not_fail_a_finished_run(shell, config, monkeypatch):
    def plain(text):
        raise ValueError("Key backend: 'module://inline' is not a valid value")

    monkeypatch.setattr("decdpo.report.curves.plain", plain)
    shell("train", config, "--out", "run", "--set", "log.figure=true")
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
        "import sys\n"
        "print('slow to import:', [m for m in ('sympy',) if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], cwd=shell.folder, env=shell.environment(),
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# Run(" not in done.stdout
    assert done.stdout.endswith("slow to import: []\n"), done.stdout[-200:]


def test_an_out_that_differs_between_ranks_is_named(shell, config):
    first = shell.command(["train", config, "--out", "out_0"], 1)
    words = [*first, ":", "-n", "1", *shell.command(["train", config, "--out", "out_1"], None)]
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment(), capture_output=True, text=True,
        timeout=LIMIT,
    )  # fmt: skip
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
    rates = {r["round"]: round(r["lr"], 4) for r in shell.metrics("run")[1:]}
    assert (rates[10], rates[11]) == (0.0122, 0.25)


def test_a_constant_step_size_is_not_told_again(shell, config):
    shell("train", config, "--out", "run")
    shell("resume", "run", "--set", "run.rounds=14")
    assert "step size" not in shell.said


def test_a_reader_that_goes_does_not_end_training(shell, config):
    process = shell.start("train", config, "--out", "run", "--trace")
    process.stdout.close()
    assert process.wait(timeout=LIMIT) == 0
    assert shell.metrics("run")[-1]["round"] == 12
    assert (shell.folder / "run" / "summary.txt").exists()


@pytest.mark.parametrize("words", [["config"], ["topology", "ring", "--agents", "8"]])
def test_a_command_that_only_prints_leaves_quietly(shell, words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        shell.command(words, None), stdout=write_end, stderr=subprocess.PIPE, text=True,
        cwd=shell.folder, env=shell.environment(), timeout=LIMIT,
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_poor_environment_and_closed_streams_are_enough(shell, config):
    """No HOME, no folder for temporary files, a locale of 1970, a terminal of one column."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": shell.environment()["PYTHONPATH"]}
    environ |= {"TMPDIR": "/nowhere", "LC_ALL": "C", "COLUMNS": "1", "TERM": "dumb"}
    program = shlex.join(shell.command(["train", config, "--out", "run"], None))
    done = subprocess.run(
        ["bash", "-c", f"{program} <&- >&-"], cwd=shell.folder, env=environ,
        stderr=subprocess.PIPE, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "done; see run/summary.txt" in done.stderr and "Traceback" not in done.stderr
    assert shell.metrics("run")[-1]["round"] == 12


def test_streams_that_are_closed_are_opened_before_any_file(shell):
    code = (
        "import os\nfrom decdpo.terminal import open_what_is_closed\nopen_what_is_closed()\n"
        "file = open('file', 'w')\nprint('out')\nos.write(2, b'err')\n"
        "raise SystemExit(file.fileno())"
    )
    words = shlex.join([sys.executable, "-c", code])
    done = subprocess.run(
        ["bash", "-c", f"{words} <&- >&- 2>&-"], cwd=shell.folder, env=shell.environment(),
        timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode > 2 and (shell.folder / "file").read_text() == ""


@pytest.mark.parametrize("columns", ["-3", "0", "1", "2", "wide", "99999999"])
def test_help_fits_any_width(shell, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            shell(name, "--help")
        assert caught.value.code == 0


def test_a_working_directory_that_is_gone_is_one_error(shell, config):
    lost = shell.folder / "lost"
    lost.mkdir()
    program = shlex.join(shell.command(["train", config, "--out", "run"], None))
    done = subprocess.run(
        ["bash", "-c", f"cd lost && rmdir ../lost && {program}"], cwd=shell.folder,
        env=shell.environment(), capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("decdpo: error:") == 1

"""The command line itself: what it imports, and how it ends."""

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from decdpo import cli
from decdpo.commands import alone
from decdpo.commands.machine import doctor
from decdpo.commands.studies import bench
from decdpo.errors import EnvironmentFault


@pytest.mark.parametrize("command", ["report", "theory", "resume", "evaluate", "checkpoint show"])
def test_a_path_that_cannot_be_looked_at_is_an_error_not_a_traceback(command, capsys):
    assert cli.main([*command.split(), "x" * 300]) == 2
    said = capsys.readouterr().err
    assert ": File name too long" in said and "remedy: check that the path exists" in said


def test_a_source_that_cannot_be_looked_at_is_named(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["shard", "x" * 300, "--agents", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "x cannot be read" in said and str(out) not in said


def test_doctor_names_a_missing_library_without_importing_it(monkeypatch, capsys):
    missing = [("torch", False, "missing"), ("numpy", True, "1.0")]
    monkeypatch.setattr(doctor, "_libraries", lambda: missing)
    monkeypatch.setitem(sys.modules, "decdpo.session.job", None)
    assert doctor.run(argparse.Namespace(json=False)) == 2
    assert "FAIL torch          missing" in capsys.readouterr().out


def test_bench_keeps_what_it_measured_before_a_failure(monkeypatch, tmp_path, capsys):
    def measure(spec, ranks, limit):
        if ranks > 2:
            raise EnvironmentFault(f"mpirun with {ranks} ranks ended badly")
        return [{"ranks": ranks, "graph": "ring", "size": 10, "skipped": "no memory"}]

    monkeypatch.setattr(bench, "_measure", measure)
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "exchange", "--ranks", "2,4,8", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "mpirun with 4 ranks ended" in said.err and "8 ranks" not in said.err
    assert "no memory" in said.out and "no memory" in out.read_text()


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    source = tmp_path / "uni.jsonl"
    row = {"prompt": "p", "user": "J\u00fcrgen \U0001f600"}
    rows = [{**row, "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "decdpo", "shard", source, "--partition", "by:user"]
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        [*command, "--out", tmp_path / "s"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "J\\xfcrgen \\U0001f600" in done.stdout


def test_an_error_that_names_what_the_terminal_cannot_show_is_no_traceback(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["report", "\u00fc" * 3]) == 3
    stream.flush()
    assert b"\\xfc\\xfc\\xfc" in stream.buffer.getvalue()


@pytest.mark.parametrize("name", alone.STARTS_MPIRUN)
def test_what_starts_mpirun_is_not_started_by_it(name, monkeypatch):
    monkeypatch.setattr(alone, "launched_by_mpi", lambda: 3)
    with pytest.raises(EnvironmentFault, match="started 3 times") as error:
        alone.by_one_process(name, lambda args: 0)(argparse.Namespace())
    assert "--ranks" in error.value.remedy


def test_doctor_says_beforehand_what_a_start_would_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    users = ["--agents", "2", "--pairs", "8", "--out", "users"]
    assert cli.main(["synthesize", "choices", *users]) == 0
    (tmp_path / "run.toml").write_text(
        '[data]\nshards = "users"\n[policy]\nfeatures = "columns"\n[run]\nrounds = 1\n'
    )
    capsys.readouterr()
    assert cli.main(["doctor", "run.toml", "--json"]) == 0
    beforehand = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.toml", "users"]
    assert cli.main(["train", "run.toml", "--out", "run", "--progress", "none"]) == 0
    said = capsys.readouterr().err
    for line in beforehand["start"][:-1]:
        assert line in said
    assert any(line.startswith("graph     ring") for line in beforehand["start"])
    cores = len(os.sched_getaffinity(0))
    assert cli.main(["doctor", "--threads", str(cores + 1)]) == 0
    assert f"1 rank has {cores + 1} threads each" in capsys.readouterr().out


def test_a_path_that_is_not_utf8_is_sharded_and_escaped(tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / ("long" * 30)) + b"/\xff"))
    folder.mkdir(parents=True)
    rows = [{"prompt": f"p{k}", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(4)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["shard", str(folder / "a.jsonl"), "--agents", "2", "--out", str(folder / "s")]
    assert cli.main(words) == 0
    assert "\\xff/a.jsonl:" in capsys.readouterr().out
    (source,) = json.loads((folder / "s" / "index.json").read_text())["report"]["sources"]
    assert source["file"].endswith("\\xff/a.jsonl")

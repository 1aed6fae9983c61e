"""The command line itself: what it imports, and how it ends."""

import argparse
import sys

import pytest

from decdpo import cli
from decdpo.commands import bench, doctor
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
    monkeypatch.setitem(sys.modules, "decdpo.launch", None)
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

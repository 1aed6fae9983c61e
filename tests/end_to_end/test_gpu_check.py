"""``tools/gpu-check.sh``, rehearsed without a GPU."""

import json
import os
import subprocess
import sys

import pytest
from shells import ROOT

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


def check(*words):
    """Run the script; returns its exit status and all output."""
    command = ["bash", ROOT / "tools" / "gpu-check.sh", *map(str, words)]
    known = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env=known)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)  # It starts four processes that import transformers.
def test_what_a_gpu_shows_is_rehearsed_on_the_cpu(tmp_path):
    only = "attention,bits,staging"
    status, said = check("--device", "cpu", "--out", tmp_path, "--only", only, "--minutes", 8)
    assert status == 0, said
    page = json.loads((tmp_path / "check.json").read_text())
    checks = page["checks"]
    assert not [name for name, found in checks.items() if "failed" in found or "skipped" in found]
    assert [cell["way"] for cell in checks["attention"]["cells"]] == ["masked", "row"]
    assert checks["attention"]["cells"][1]["error"] < 1e-5
    assert checks["bits"]["resumed on 0 ranks from 0"] is True
    assert "is ignored with device.kind" in checks["staging"]["device"]


def test_what_is_missing_is_named(tmp_path):
    status, said = check("--device", "cpu")
    assert status == 2 and "name a folder for the results with --out" in said
    status, said = check("--out", tmp_path, "--shards", tmp_path / "none")
    assert status == 2 and "is no folder" in said
    status, said = check("--out")
    assert status == 2 and "--out needs a folder" in said

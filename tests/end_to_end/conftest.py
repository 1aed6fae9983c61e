"""Whole commands in processes of their own, with and without mpirun."""

import gzip
import json
from collections import Counter

import pytest
from shells import CONFIG, ROOT, Shell

PAIRS = 80
"""Pairs of each of the 8 users: a run mostly encodes and measures them."""


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Return a folder with a part of the embedded data set, one shard for each of 8 users."""
    folder, seen, rows = tmp_path_factory.mktemp("data"), Counter(), []
    with gzip.open(ROOT / "data" / "preferences.jsonl.gz", "rt") as lines:
        for line in lines:
            user = json.loads(line)["user"]
            seen[user] += 1
            rows += [line] if seen[user] <= PAIRS else []
    (folder / "part.jsonl").write_text("".join(rows))
    Shell(folder)("shard", "part.jsonl", "--partition", "by:user", "--out", "users")
    return folder / "users"


@pytest.fixture
def shell(tmp_path):
    """Return a shell in an empty folder."""
    return Shell(tmp_path)


@pytest.fixture
def config(shell, shards):
    """Write run.toml, a short run on the embedded data set."""
    return shell.write("run.toml", CONFIG.format(shards=shards))

"""Whole commands in processes of their own, with and without mpirun."""

import pytest
from shells import CONFIG, ROOT, Shell


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Return a folder with the embedded data set, one shard for each of 8 users."""
    folder = tmp_path_factory.mktemp("data")
    source = ROOT / "data" / "preferences.jsonl.gz"
    Shell(folder)("shard", source, "--partition", "by:user", "--out", "users")
    return folder / "users"


@pytest.fixture
def shell(tmp_path):
    """Return a shell in an empty folder."""
    return Shell(tmp_path)


@pytest.fixture
def config(shell, shards):
    """Write run.toml, a short run on the embedded data set."""
    return shell.write("run.toml", CONFIG.format(shards=shards))

"""Whole commands in processes of their own, with and without mpirun."""

import pytest
from shells import CONFIG, Shell, shards_of_users

PAIRS = 80
"""Pairs of each of the 8 users: a run mostly encodes and measures them."""


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Return a folder with a part of the embedded data set, one shard for each of 8 users."""
    return shards_of_users(tmp_path_factory.mktemp("data"), PAIRS)


@pytest.fixture
def shell(tmp_path):
    """Return a shell in an empty folder."""
    return Shell(tmp_path)


@pytest.fixture
def config(shell, shards):
    """Write run.toml, a short run on the embedded data set."""
    return shell.write("run.toml", CONFIG.format(shards=shards))

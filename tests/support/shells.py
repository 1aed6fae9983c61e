"""How tests run decdpo: in this process, under mpirun, or on the ranks that run the tests."""

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

from limits import HANG

from decdpo.cli import main
from decdpo.comm.mpi.launch import launcher_variable
from decdpo.comm.mpi.mpirun import capture, command_of, environment

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """[run]
rounds = 12
[data]
shards = "{shards}"
[policy]
dimension = 4096
[checkpoint]
every = 4
[log]
figure = false
[comm]
timeout = 200.0
"""


def shards_of_users(folder, pairs):
    """Shard so many pairs of each user of the embedded data set; returns the folder of shards."""
    seen, rows = Counter(), []
    with gzip.open(ROOT / "data" / "preferences.jsonl.gz", "rt") as lines:
        for line in lines:
            user = json.loads(line)["user"]
            seen[user] += 1
            rows += [line] if seen[user] <= pairs else []
    (folder / "part.jsonl").write_text("".join(rows))
    Shell(folder)("shard", "part.jsonl", "--partition", "by:user", "--out", "users")
    return folder / "users"


class Shell:
    """Runs decdpo in a folder of its own; ``said`` is what the last command printed.

    Without ``ranks`` a command runs in this process, which saves the time to import torch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = ""

    def command(self, words, ranks):
        program = [sys.executable, "-m", "decdpo", *map(str, words)]
        if ranks is None:
            return program
        return command_of(ranks, program)

    def environment(self):
        return environment({"PYTHONPATH": str(ROOT)})

    def __call__(self, *words, ranks=None, status=0):
        """Run a command to its end, check its status, return its standard output."""
        if ranks is None:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.chdir(self.folder):
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = main([str(word) for word in words])
            self.said = out.getvalue() + err.getvalue()
            assert code == status, f"status {code}\n{self.said}"
            return out.getvalue()
        code, out, err = capture(
            ranks, self.command(words, None), limit=HANG, cwd=self.folder,
            more={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.said = out + err
        assert code == status, f"status {code}\n{self.said}"
        return out

    def start(self, *words, ranks=None):
        """Start a command and return its process."""
        return subprocess.Popen(
            self.command(words, ranks),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def make_shards(self, agents, pairs=20):
        """Make shards of so many agents, of pairs that differ in their prompts, in ``shards``."""
        rows = [{"prompt": f"p{k}", "chosen": "good", "rejected": "bad"} for k in range(pairs)]
        self.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self("shard", "rows.jsonl", "--agents", agents, "--out", "shards")

    def digests(self, run):
        """Return one digest per agent."""
        return json.loads(self("checkpoint", "digest", run, "--json"))["agents"]

    def metrics(self, run):
        """Return the records without times and traffic."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            del record["system"]
        return records


class RankShell(Shell):
    """Runs decdpo on all ranks of these tests, or on the first one alone.

    A start of mpirun for each command would import torch on every rank anew.

    folder : the same on all ranks. share : gives every rank the text of the first one. Collective.
    """

    def __init__(self, folder, share, rank):
        super().__init__(folder)
        self.share = share
        self.rank = rank

    def __call__(self, *words, status=0):
        """Run a command on all ranks and check its status. Collective."""
        with contextlib.chdir(self.folder):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                with contextlib.redirect_stderr(io.StringIO()) as err:
                    code = main([str(word) for word in words])
        self.said = out.getvalue() + err.getvalue()
        assert code == status, f"status {code}\n{self.said}"
        return self.share(out.getvalue())

    def alone(self, *words, status=0):
        """Run a command on the first rank, as one process; returns what it printed. Collective.

        Of a command that fails (``status``) that is its standard error, too.
        """
        said = ""
        if self.rank == 0:
            with mock.patch.dict(os.environ):
                while name := launcher_variable():
                    del os.environ[name]
                said = super().__call__(*words, status=status)
        return self.share(self.said if status else said)

    def digests(self, run):
        """Return one digest per agent. Collective."""
        return json.loads(self.alone("checkpoint", "digest", run, "--json"))["agents"]

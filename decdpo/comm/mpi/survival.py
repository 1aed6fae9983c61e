"""Going on without the processes that are lost: the parts of a world that make it possible."""

import json
import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from decdpo.comm.membership import Membership
from decdpo.comm.mpi.attendance import name_process
from decdpo.comm.mpi.boot import FAULT_TOLERANT, library, tolerates_faults
from decdpo.comm.mpi.collectives import Collectives
from decdpo.comm.mpi.gathering import SurvivorCollectives
from decdpo.comm.mpi.processes import Process
from decdpo.comm.mpi.survivors import SAVE, STOP, GuardedComm, Survivors
from decdpo.comm.mpi.watchdog import Watchdog
from decdpo.comm.waiting import Deadline
from decdpo.errors import EnvironmentFault

OLDEST = (5, 0, 10)
"""The first Open MPI that is known to go on after a loss."""
START = "start with `mpirun --with-ft ulfm` of Open MPI 5.0.10 or later"
OTHERWISE = (
    'or set faults.on_loss = "abort": a lost process then ends the job, with status 75 where the '
    "others miss it, to be resumed from its checkpoint"
)


def require_ulfm() -> None:
    """Raise ``EnvironmentFault`` unless processes may be lost without the end of the job."""
    MPI = library()
    version = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
    number = re.match(r"Open MPI v(\d+)\.(\d+)\.(\d+)", version)
    if number is None or not hasattr(MPI.Comm, "Iagree"):
        why = "it has no user-level failure mitigation"
    elif tuple(map(int, number.groups())) < OLDEST:
        why = "it is older than 5.0.10"
    else:
        why = ""
    if why:
        raise EnvironmentFault(
            f"faults.on_loss asks to go on without lost processes, which {version} does not do: "
            f"{why}",
            f"{START}, {OTHERWISE}",
        )
    if not tolerates_faults():
        step = "SLURM_STEP_ID" in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ
        how = "srun ends all processes with the first" if step else f"{FAULT_TOLERANT} is not set"
        raise EnvironmentFault(
            "faults.on_loss asks to go on without lost processes, but they were not started so: "
            f"{how}",
            f"{START}, {OTHERWISE}",
        )


class Survival:
    """Who is alive, what they agree on, and who ends those that keep them waiting.

    Made on all ranks together. duplicate : makes a communicator from another. members : the agents
    and their ranks. timeout : seconds that a rank may keep the others waiting.

    Attributes
    ----------
    members : the agents on the ranks that are alive. lost : the ranks that are not.
    """

    def __init__(
        self,
        MPI: ModuleType,
        duplicate: Callable[[Any], Any],
        members: Membership,
        timeout: float,
    ) -> None:
        world = MPI.COMM_WORLD
        comms = [duplicate(world) for _ in range(3)]
        processes = Collectives(comms[0], Deadline(timeout)).texts(json.dumps(Process.this()))
        self.members = members
        self.lost: tuple[int, ...] = ()
        self._wishes = 0
        self._survivors = Survivors(
            MPI, comms[0], timeout, self.poll, self._end_absent, self._lose
        )
        self._watchdog = Watchdog(
            comms[1],
            [Process(*json.loads(text)) for text in processes],
            self._survivors.not_failed,
            lambda rank: name_process(rank, self.members),
            self._survivors.acknowledge,
            self._survivors.is_loss,
        )
        self.collectives = SurvivorCollectives(
            comms[2], self._survivors, self._end_absent, lambda: self.members
        )
        self.saves = SurvivorSaves(self)

    @property
    def first(self) -> int:
        """The lowest living rank."""
        return self._survivors.first

    def guarded(self, comm: Any) -> GuardedComm:
        """Return ``comm`` for messages whose other side may be lost."""
        return GuardedComm(comm, self._survivors)

    def commit(self, complete: bool) -> Membership:
        """Agree on a round: return the members, a new object if it must be collected again.

        Collective. complete : whether all messages of this rank have come. If they have not for too
        long although nobody was lost, whoever does not answer is ended.
        """
        before = self.members
        if not complete and not self._survivors.unsettled():
            self._end_absent()
        if not self._survivors.decide(complete, self._wishes) and self.members is before:
            self.members = before.without(())
        return self.members

    def ask(self) -> None:
        """Ask all to stop, at the end of the next round that is agreed on. Signal-safe."""
        self._wishes |= STOP

    def enter(self, round: int) -> None:
        """Do nothing: all are in the same round."""

    def due(self, round: int) -> bool:
        """Say whether all stop at the end of ``round``."""
        return bool(self._survivors.wishes & STOP)

    def save_asked(self) -> None:
        """Ask all to save at the end of the next round that is agreed on."""
        self._wishes |= SAVE

    def save_due(self) -> bool:
        """Say, once, whether all save now."""
        due = bool(self._survivors.wishes & SAVE)
        if due:
            self._survivors.wishes &= ~SAVE
            self._wishes &= ~SAVE
        return due

    def set_timeout(self, seconds: float) -> None:
        """Let a rank keep the others waiting for so long from now on."""
        self._survivors.deadline.timeout = seconds

    def poll(self) -> None:
        """Answer who asks who is there."""
        self._watchdog.poll()

    def quit(self, code: int) -> NoReturn:
        """End all living processes with the exit status ``code``: for an error of this one."""
        self._watchdog.quit(code)

    def close(self, barrier: Callable[[], None]) -> None:
        """Wait for all living ranks. Collective."""
        barrier()

    def _end_absent(self) -> bool:
        return self._watchdog.end_absent()

    def _lose(self, ranks: tuple[int, ...]) -> None:
        self._watchdog.separate(self._survivors.alive, ranks)
        self.lost = tuple(sorted({*self.lost, *ranks}))
        self.members = self.members.without(ranks)


class SurvivorSaves:
    """When all living ranks save because they were asked; in the place of ``SaveAgreement``."""

    def __init__(self, survival: Survival) -> None:
        self.ask = survival.save_asked
        self._survival = survival

    def poll(self) -> None:
        """Do nothing: the agreement on a round carries the wish."""

    def due(self, round: int) -> bool:
        """Say, at the end of ``round``, whether to save now."""
        return self._survival.save_due()

    def close(self, texts: Callable[[str], list[str]]) -> None:
        """Do nothing: nothing is in flight."""

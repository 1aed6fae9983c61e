"""The ranks that are alive, and what they agree on: the one place that calls MPI's Agree.

It needs an MPI with user-level failure mitigation (ULFM). Of that only Agree, Ack_failed and
Get_failed are used, and point-to-point messages: nothing is revoked or shrunk. Agree returns the
bitwise AND of what all living ranks give, and fails on all of them alike as long as a loss has not
been acknowledged by all.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from decdpo.comm.waiting import Deadline
from decdpo.errors import PeerLost, StallError

BITS = 30
"""Ranks whose state fits into one Agree, which takes an int."""
COMPLETE, STOP, SAVE = 1, 2, 4
"""Bits of a decision: whether all is well on a rank; what somebody wishes, if set in ``wishes``."""
IN_VAIN = 3
"""Decisions in a row that fail although nobody is lost, before the job ends."""


class Survivors:
    """The living ranks of ``comm``, the same on all of them after every decision.

    comm : of the job, used for nothing else; its errors are returned. timeout : seconds to wait for
    a rank that neither comes nor is lost. poll : is called while this rank waits. end_absent : ends
    the ranks that do not answer; says whether it found any. changed : is called with the ranks that
    are lost, after all have agreed.
    """

    def __init__(
        self,
        MPI: ModuleType,
        comm: Any,
        timeout: float,
        poll: Callable[[], object],
        end_absent: Callable[[], bool],
        changed: Callable[[tuple[int, ...]], object],
    ) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.alive: tuple[int, ...] = tuple(range(comm.Get_size()))
        self.wishes = 0
        self.deadline = Deadline(timeout, poll)
        self._mpi = MPI
        self._end_absent = end_absent
        self._changed = changed
        self._in_vain = 0

    @property
    def first(self) -> int:
        """The lowest living rank, which speaks and writes for all."""
        return self.alive[0]

    def decide(self, complete: bool, wishes: int = 0) -> bool:
        """Return whether every living rank is ``complete``. Collective among the living.

        wishes : ``STOP`` and ``SAVE``, as far as this rank wants it; then they are set in the
        attribute ``wishes`` on all of them.

        After False the losses behind it are agreed, and ``changed`` has been called on all of them
        alike. Raises ``StallError`` where something fails again and again although nobody is lost.
        """
        bits = COMPLETE * complete | (STOP | SAVE) & ~wishes
        while (found := self._agree(bits)) is None:
            if self._settle():
                return False
        self.wishes |= (STOP | SAVE) & ~found
        if found & COMPLETE:
            self._in_vain = 0
            return True
        self._in_vain = 0 if self._settle() else self._in_vain + 1
        if self._in_vain >= IN_VAIN:
            raise StallError(
                f"{self._in_vain} times in a row not all messages came, but no process is lost",
                "look at what the other processes printed last",
            )
        return False

    def not_failed(self) -> tuple[int, ...]:
        """Return the living ranks without those that this one knows to be lost."""
        failed = self._failed()
        return tuple(rank for rank in self.alive if rank not in failed)

    def unsettled(self) -> bool:
        """Say whether a loss is known here that is not agreed on."""
        return not self._failed().isdisjoint(self.alive)

    def is_loss(self, fault: Exception) -> bool:
        """Say whether an error of MPI means that the other side is lost."""
        MPI = self._mpi
        if not isinstance(fault, MPI.Exception):
            return False
        return fault.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)

    def acknowledge(self, comm: Any) -> None:
        """Let receives and probes of any rank go on among those that are left of ``comm``."""
        comm.Ack_failed()

    def _agree(self, bits: int) -> int | None:
        """Return the AND of all living ranks' ``bits``, None if a loss is not acknowledged."""
        word = np.array([bits], dtype=np.int32)
        try:
            self._wait(self.comm.Iagree(word).Test)
        except self._mpi.Exception as fault:
            if self.is_loss(fault):
                return None
            raise
        return int(word[0])

    def _settle(self) -> tuple[int, ...]:
        """Agree on who is alive; return who is lost since the last time, and say it."""
        while True:
            self.comm.Ack_failed()
            failed = self._failed()
            mask = [rank not in failed for rank in self.alive]
            words = [mask[lo : lo + BITS] for lo in range(0, len(mask), BITS)]
            agreed: list[bool] = []
            for word in words:
                found = self._agree(sum(bit << place for place, bit in enumerate(word)))
                if found is None:
                    break
                agreed += [bool(found >> place & 1) for place in range(len(word))]
            else:
                break
        lost = tuple(rank for rank, here in zip(self.alive, agreed) if not here)
        if lost:
            self.alive = tuple(rank for rank in self.alive if rank not in lost)
            self._changed(lost)
        return lost

    def _failed(self) -> set[int]:
        failed, everybody = self.comm.Get_failed(), self.comm.Get_group()
        found = self._mpi.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
        failed.Free()
        everybody.Free()
        return set(found)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait until ``done``; end whoever keeps the others waiting for too long."""
        try:
            self.deadline.until(done, lambda waited: "")
            return
        except StallError:
            ended = self._end_absent()
        # Where nobody is absent, who was late has come meanwhile.
        why = "one that was ended is not gone: it may be stuck in the system (state D in ps)"
        self.deadline.until(
            done,
            lambda waited: f"the living processes did not agree in {waited:.1f} s"
            + (f"; {why}" if ended else ""),
            "look at what the other processes printed last, and resume from the checkpoint",
        )


class GuardedRequest:
    """A persistent request whose other side may be lost.

    A send to a lost rank counts as taken; a receive from one raises ``PeerLost``, for ever.
    """

    def __init__(self, request: Any, survivors: Survivors, rank: int, receives: bool) -> None:
        self._request = request
        self._survivors = survivors
        self._rank = rank
        self._receives = receives
        self._lost = False

    def Start(self) -> None:
        """Start, unless the other side is lost."""
        if not self._lost:
            self._try(self._request.Start)

    def Test(self) -> bool:
        """Say whether the message has moved, or never will."""
        done = self._lost or bool(self._try(self._request.Test))
        if self._lost and self._receives:
            raise PeerLost(f"process {self._rank} is lost")
        return done

    def Cancel(self) -> None:
        """Cancel, unless there is nothing to cancel."""
        if not self._lost:
            self._try(self._request.Cancel)

    def Wait(self) -> None:
        """Wait for what was cancelled."""
        if not self._lost:
            self._try(self._request.Wait)

    def Free(self) -> None:
        """Free the request; one that failed is left to the end of the process."""
        if not self._lost:
            self._try(self._request.Free)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as fault:
            if not self._survivors.is_loss(fault):
                raise
            self._lost = True
            return True


class GuardedComm:
    """What the links of an exchange need of a communicator whose ranks may be lost."""

    def __init__(self, comm: Any, survivors: Survivors) -> None:
        self._comm = comm
        self._survivors = survivors

    def Send_init(self, data: Any, rank: int, tag: int) -> GuardedRequest:
        """Return a persistent send."""
        request = self._comm.Send_init(data, rank, tag)
        return GuardedRequest(request, self._survivors, rank, receives=False)

    def Recv_init(self, data: Any, rank: int, tag: int) -> GuardedRequest:
        """Return a persistent receive."""
        request = self._comm.Recv_init(data, rank, tag)
        return GuardedRequest(request, self._survivors, rank, receives=True)

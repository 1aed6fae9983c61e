"""One launch of the program: a single process, or all ranks of an ``mpirun`` or ``srun``.

A job starts together and ends together. A fault that every process knows of is printed once and
all exit alike; one that a single process meets is printed by it and takes the others along.
"""

import contextlib
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from decdpo.comm.membership import Membership
from decdpo.comm.mpi.launch import launched_by_mpi
from decdpo.comm.world import World
from decdpo.errors import DecdpoError, EnvironmentFault
from decdpo.files import os_fault
from decdpo.policies.lm.pace import Pace
from decdpo.signals import Interrupted, Signals

T = TypeVar("T")

SETTLE = 120.0
"""Seconds for which a checkpoint in flight is waited for when all processes end by an error."""
BRIEF = 10.0
"""The same when one process ends all."""
PAGE = 600.0
"""Seconds for which the others wait at the end for the process that draws curves."""
TURN = 0.3
"""Seconds that a process leaves to each one before it to say what is saved."""
GRACE = 3.0
"""Seconds that the root process has to tell what all have met, before another one tells it."""


class Job:
    """The processes of this launch, before and after the agents are placed on them.

    size : number of processes. rank : this one's number. is_root : whether it speaks for the job.
    signals : of this command, None if it does not listen. unfinished : is called before the job
    ends by an error, with the seconds left; says whether nothing is under way any more. saved :
    says what a run has saved, empty without one. tell : notes that this has been said.
    """

    def __init__(self, world: str = "auto", signals: Signals | None = None) -> None:
        """Join the processes of this launch; ``world`` is "auto", "local" or "mpi". Collective.

        Raises ``EnvironmentFault`` if several processes were launched but MPI cannot be used.
        """
        self._mpi = world == "mpi" or (world == "auto" and launched_by_mpi() is not None)
        self._worlds: list[World] = []
        self.signals = signals
        self.unfinished: list[Callable[[float], bool]] = []
        self.saved: Callable[[], str] = str
        self.tell: Callable[[], None] = lambda: None
        self.timeout = math.inf
        self._survives = False
        if self._mpi:
            from decdpo.comm.mpi import boot

            self.size = boot.start()
            self.boot = self._open(self.size, {})
        else:
            self.size = 1
            self.boot = self._open(1, {})
        # The boot world has one agent on every process.
        (self.rank,) = self.boot.local_agents

    @property
    def is_root(self) -> bool:
        """Whether this process speaks for the job."""
        return self._speaks.is_root

    def _open(self, num_agents: int, options: dict[str, Any]) -> World:
        if self._mpi:
            from decdpo.comm.mpi import world as mpi

            world: World = mpi.connect(num_agents, **options)
        else:
            from decdpo.comm.local import LocalWorld

            world = LocalWorld(num_agents, options.get("agents"))
        self._worlds.append(world)
        self._speaks = world
        return world

    def world(self, agents: Sequence[int], comm: Any, *, survive: bool = False) -> World:
        """Place ``agents`` on the processes, as the section ``[comm]`` says. Collective.

        survive : whether the others go on when a process is lost. One process alone takes no notice
        of that.

        Raises ``EnvironmentFault`` if there are more processes than agents, or the others could not
        go on.
        """
        survive = survive and self.size > 1

        def check() -> None:
            Membership.spread(agents, self.size)
            if survive:
                from decdpo.comm.mpi.survival import require_ulfm

                require_ulfm()

        # Every process sees these faults before it waits for another one.
        self.together(check)
        options = {
            "timeout": comm.timeout,
            "transport": comm.transport,
            "progress": comm.progress,
            "chunk_bytes": comm.chunk_mib << 20,
            "survive": survive,
        }
        self._survives = survive
        return self._open(len(agents), {"agents": agents, **(options if self._mpi else {})})

    @property
    def may_lose(self) -> bool:
        """Whether the others go on when a process of this job is lost."""
        return self._survives

    def device(self, section: Any, gpu_of_use: bool = True) -> str:
        """Set the number of threads and return this process's device, as ``[device]`` says.

        gpu_of_use : whether what is trained can compute on a GPU. A GPU that is chosen becomes the
        process's own, with deterministic algorithms.

        Raises ``EnvironmentFault`` if the device is not there, or is the CPU where
        ``device.staging`` needs a GPU.
        """
        from decdpo.comm.device import choose_device, take_gpu

        torch.set_num_threads(section.threads)
        rank, count = (0, 1)
        if self._mpi:
            from decdpo.comm.mpi import boot

            rank, count = boot.place_on_node()
        kind = section.kind if gpu_of_use else "cpu"
        device = choose_device(kind, rank, count, share_gpu=section.share_gpu)
        if device != "cpu":
            take_gpu(device)
        elif section.staging == "device":
            raise EnvironmentFault(
                f"device.staging = 'device' is ignored: with device.kind = {section.kind!r} this "
                "process computes on the CPU",
                'set device.staging = "host", or device.kind = "cuda" to learn why no GPU is taken',
            )
        return device

    def set_timeout(self, seconds: float) -> None:
        """Give up on another process after so long; before, it is the default of ``connect``."""
        self.timeout = seconds
        if self._mpi:
            boot: Any = self.boot
            boot.set_timeout(seconds)

    def together(self, action: Callable[[], T], *, work: str = "") -> T:
        """Do ``action`` on every process; a fault on any of them is raised on all. Collective.

        work : what the action does, if one process may be at it for hours longer than another.
            Then they wait without a limit; one that is lost still ends the job, by its launcher.
        """
        fault: DecdpoError | None = None
        result: list[T] = []
        try:
            result.append(action())
        except Exception as caught:
            fault = as_fault(caught)
            if fault is None:
                raise
        if work and self.size > 1:
            self._await(fault, work)
        else:
            self.boot.require(fault)
        return result[0]

    def _await(self, fault: DecdpoError | None, work: str) -> None:
        """Raise a fault of any process on all, however long the last one takes. Collective."""
        boot: Any = self.boot
        limit = boot.set_timeout(math.inf)
        try:
            with Pace(self.say if self.is_root else None) as waiting:
                waiting.begin(f"waiting for other processes, which still {work}")
                boot.require(fault)
        finally:
            boot.set_timeout(limit)

    def say(self, line: str) -> None:
        """Print a note once, for all processes."""
        if self.is_root:
            print(f"decdpo: {line}", file=sys.stderr, flush=True)

    def wait_for_the_page(self) -> None:
        """Let the process that leaves the page of a run take its time: it is not stuck."""
        if self._survives:
            world: Any = self._worlds[-1]
            world.set_timeout(max(PAGE, self.timeout))

    def settle(self, seconds: float) -> bool:
        """Finish what is under way in so many seconds; return whether nothing is any more."""
        until = time.monotonic() + seconds
        done = [action(max(0.0, until - time.monotonic())) for action in self.unfinished]
        return all(done)

    def end(self, code: int) -> NoReturn:
        """End every process of the job at once with the exit status ``code``."""
        if self._survives:
            world: Any = self._worlds[-1]
            world.quit(code)
        if self._mpi:
            from decdpo.comm.mpi import boot

            boot.abort(code)
        os._exit(code)

    def close(self, code: int = 0) -> None:
        """Free the worlds, the last first. Collective.

        Where processes may be lost this is the end of the process, with the exit status ``code``.
        """
        while self._worlds:
            self._worlds.pop().close()
            if self._survives:
                from decdpo.comm.mpi import boot

                boot.leave(code)


def launch(
    body: Callable[[Job], int], world: str = "auto", signals: Signals | None = None
) -> int:
    """Run ``body`` on every process of this launch and return its exit status.

    What ends the job early is printed once, and every process ends: at once, with the fault's exit
    status, if only this one knows of it. A checkpoint that is being written is finished before,
    within limits, and what a run has saved is said.
    """
    job = Job(world, signals)
    try:
        code = body(job)
    except BaseException as caught:
        if job.size > 1:
            _end_together(job, caught)
        if not isinstance(caught, Exception) or isinstance(caught, BrokenPipeError):
            # The command line knows how to take the end of a reader, and an interruption.
            raise
        fault = as_fault(caught)
        if fault is None:
            job.settle(SETTLE)
            _add_note(caught, job.saved())
            raise
        job.settle(SETTLE)
        fault.saved, fault.silent = job.saved(), not job.is_root
        if job.may_lose:
            _end_all(job, f"decdpo: error: {fault}" if job.is_root else "", fault.exit_code)
        job.close(fault.exit_code)
        if fault is caught:
            raise
        raise fault from caught
    job.close(code)
    return code


def _end_together(job: Job, caught: BaseException) -> None:
    """End all processes of the job; return only if all of them know of the fault and are ready."""
    fault = as_fault(caught)
    if isinstance(caught, Interrupted):
        _leave_to_the_root(job)
        _end_all(job, f"decdpo: {caught}", caught.code)
    elif isinstance(caught, KeyboardInterrupt):
        _end_all(job, "decdpo: interrupted", 130)
    elif isinstance(caught, BrokenPipeError):
        # The reader of our output has gone.
        _end_all(job, "decdpo: nobody reads the output any more", 1)
    elif fault is None:
        _end_all(job, traceback.format_exc(), 1)
    elif not fault.collective:
        if fault.shared:
            _leave_to_the_root(job)
        _end_all(job, f"decdpo: error: {fault}", fault.exit_code)
    elif not job.settle(min(SETTLE, job.timeout)):
        # What still writes uses communicators, which must not be freed under it.
        _leave_to_the_root(job)
        _end_all(job, f"decdpo: error: {fault}", fault.exit_code)


def _leave_to_the_root(job: Job) -> None:
    """Wait for the root to tell an error that all have; killed meanwhile if it does."""
    if not job.is_root:
        # The root may be far from hearing of it.
        time.sleep(GRACE + 2.0 * min(job.rank, 5))


def _add_note(caught: Exception, saved: str) -> None:
    if saved:
        caught.add_note(f"decdpo: {saved}")


def as_fault(caught: BaseException) -> DecdpoError | None:
    """Return the error that a user can act on, None if ``caught`` is a mistake of the program."""
    if isinstance(caught, DecdpoError):
        return caught
    if isinstance(caught, OSError):
        return os_fault(caught)
    text = str(caught).partition("\n")[0]
    if isinstance(caught, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY in text:
        return EnvironmentFault(
            f"this process is out of memory: {text or type(caught).__name__}",
            "lower data.batch_size or policy.max_length, set policy.activation_checkpointing = "
            "true, or start fewer processes on this node",
        )
    return None


_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""How torch says that the host has no memory left, in a plain ``RuntimeError``."""


def _end_all(job: Job, message: str, code: int) -> NoReturn:
    """Print ``message`` and what is saved, and end every process of the job."""
    # The others must end even if nobody reads why.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    _print(message)
    # Others still train, and write with us: but they must not take us for lost meanwhile.
    with contextlib.suppress(Exception):
        job.settle(min(BRIEF, job.timeout / 4))
    # Several may fail at once: one says what is saved.
    time.sleep(TURN * min(job.rank, 5))
    saved = job.saved()
    if saved:
        job.tell()
        _print(f"decdpo: {saved}")
    job.end(code)


def _print(message: str) -> None:
    """Print to standard error in one write if it may be, so that lines of processes do not mix."""
    with contextlib.suppress(OSError):
        rest = (message.rstrip() + "\n").encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(2, rest) :]

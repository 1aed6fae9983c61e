"""How a job ends by an error: with one message, and the right status, on every process."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from limits import HANG

from decdpo.comm.mpi import survival
from decdpo.comm.mpi.boot import FAULT_TOLERANT
from decdpo.comm.mpi.launch import launched_by_mpi
from decdpo.comm.mpi.mpirun import capture
from decdpo.errors import CheckpointError, DecdpoError, EnvironmentFault
from decdpo.session import job as module
from decdpo.session.job import Job, as_fault, launch

MPIRUN = Path(sys.executable).parent / "mpirun"
under_mpirun = [
    pytest.mark.slow,
    pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python"),
    pytest.mark.skipif(launched_by_mpi() is not None, reason="mpirun cannot start mpirun"),
]


def failing(fault: BaseException) -> Any:
    """Return the body of a job that raises ``fault``."""

    def body(job: Job) -> int:
        raise fault

    return body


def test_what_the_system_says_is_an_error_and_no_traceback() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")
    with pytest.raises(EnvironmentFault, match="runs/a/metrics.jsonl: No space left") as caught:
        launch(failing(full), "local")
    assert caught.value.remedy and not caught.value.silent


@pytest.mark.parametrize(
    "fault",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError()],
)
def test_out_of_memory_names_the_keys_that_help(fault: Exception) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        launch(failing(fault), "local")
    for key in ("data.batch_size", "policy.max_length", "policy.activation_checkpointing"):
        assert key in caught.value.remedy
    assert str(fault) in caught.value.what


def test_the_hosts_memory_may_be_exhausted_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(as_fault(caught.value), EnvironmentFault)
    assert as_fault(RuntimeError("a mistake")) is None


def test_out_of_memory_while_preparing_is_raised_together() -> None:
    job = Job("local")

    def action() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(EnvironmentFault, match="CUDA out of memory"):
        job.together(action)


def test_a_mistake_of_the_program_stays_what_it_is() -> None:
    for fault in (KeyError("x"), RuntimeError("bug"), BrokenPipeError(errno.EPIPE, "gone")):
        with pytest.raises(type(fault)):
            launch(failing(fault), "local")


class End(BaseException):
    """Every process ends here."""


class FakeJob:
    """One process of four."""

    size, timeout, may_lose = 4, 8.0, False

    def __init__(self, rank: int) -> None:
        self.rank, self.is_root = rank, rank == 0
        self.writes, self.told = 0.0, 0

    def settle(self, seconds: float) -> bool:
        """Say whether what is under way is done by then."""
        return seconds >= self.writes

    def saved(self) -> str:
        """Say what is saved."""
        return "round 3 is saved"

    def tell(self) -> None:
        """Note that this has been said."""
        self.told += 1

    def end(self, code: int) -> None:
        """End all."""
        raise End

    def close(self, code: int) -> None:
        """Free nothing."""


def end(monkeypatch: pytest.MonkeyPatch, rank: int, fault: Exception) -> tuple[float, str, int]:
    """Raise ``fault`` on one of four processes; return its wait, its last words and its status."""
    waits, words = [0.0], []

    def end_all(job: FakeJob, message: str, code: int) -> None:
        words.append((message, code))
        raise End

    monkeypatch.setattr(module, "Job", lambda world, signals: FakeJob(rank))
    monkeypatch.setattr(module.time, "sleep", waits.append)
    monkeypatch.setattr(module, "_end_all", end_all)
    with pytest.raises(End):
        launch(failing(fault))
    return (sum(waits), *words[0])


def test_what_every_process_meets_in_its_own_time_is_left_to_the_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault: DecdpoError = CheckpointError("not written", "mend it")
    fault.shared = True
    assert end(monkeypatch, 0, fault)[::2] == (0.0, 3)
    waited, message, code = end(monkeypatch, 2, fault)
    assert waited > module.GRACE and "not written" in message and code == 3
    assert end(monkeypatch, 1, fault)[0] < waited


def test_what_one_process_meets_ends_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, message, code = end(monkeypatch, 2, OSError(errno.ENOSPC, "full", "metrics.jsonl"))
    assert (waited, code) == (0.0, 2)
    assert message.startswith("decdpo: error: metrics.jsonl: full") and "Traceback" not in message
    assert "Traceback" in end(monkeypatch, 2, KeyError("a bug"))[1]


def mpirun(body: str, ranks: int = 3) -> tuple[int, str]:
    """Launch ``body(job)`` on some ranks; return the status and the standard error."""
    program = f"""
import os, sys, time
from decdpo.errors import EnvironmentFault, DecdpoError
from decdpo.session.job import Job, launch
def body(job):
{body}
try:
    sys.exit(launch(body))
except DecdpoError as fault:
    if not fault.silent:
        print("decdpo: error:", fault, file=sys.stderr)
    sys.exit(fault.exit_code)
"""
    code, _, said = capture(ranks, [sys.executable, "-c", program], limit=HANG)
    return code, said


class TestUnderMpirun:
    """The same with real processes."""

    pytestmark = under_mpirun

    def test_what_every_process_meets_is_told_once(self) -> None:
        status, said = mpirun(
            """
    fault = EnvironmentFault("the checkpoint was not written", "free some space")
    fault.shared = True
    raise fault
"""
        )
        assert status == 2 and said.count("decdpo: error:") == 1, said

    def test_it_is_told_by_another_if_the_root_hears_of_it_late(self) -> None:
        status, said = mpirun(
            """
    job.boot.require(None)
    if job.is_root:
        time.sleep(600)
    fault = EnvironmentFault("the checkpoint was not written", "free some space")
    fault.shared = True
    raise fault
"""
        )
        assert status == 2 and said.count("decdpo: error:") == 1, said

    def test_work_is_waited_for_beyond_the_time_limit(self) -> None:
        status, said = mpirun(
            """
    job.set_timeout(0.5)
    def work(seconds):
        return lambda: time.sleep(seconds if job.rank == 1 else 0.0)
    job.together(work(2.0), work="read their shards")
    job.say("all have read")
    job.together(work(600.0))
    return 0
""",
            ranks=2,
        )
        assert "all have read" in said and "Traceback" not in said
        assert status == 75 and "did not join the others" in said and "comm.timeout" in said, said

    def test_a_fault_of_the_slow_one_reaches_those_who_wait(self) -> None:
        status, said = mpirun(
            """
    def read():
        time.sleep(1.0 if job.rank == 1 else 0.0)
        if job.rank == 1:
            raise EnvironmentFault("no such shard", "make it")
    job.set_timeout(0.2)
    job.together(read, work="read their shards")
    return 0
""",
            ranks=2,
        )
        assert status == 2 and said.count("no such shard") == 1, said

    def test_all_end_though_nobody_reads_what_the_failing_one_prints(self) -> None:
        status, _ = mpirun(
            """
    job.boot.require(None)
    if job.rank == 1:
        os.close(2)
        raise KeyError("a bug")
    time.sleep(600)
    return 0
""",
            ranks=2,
        )
        assert status == 1


def test_a_fault_that_ends_all_may_name_a_path_that_is_not_utf8(capfd):
    job = FakeJob(0)
    with pytest.raises(End):
        module._end_all(job, "decdpo: error: there is no \udcff", 2)
    said = capfd.readouterr().err
    assert "there is no \\udcff" in said and said.endswith("decdpo: round 3 is saved\n")
    assert job.told == 1


@pytest.mark.parametrize("version, why", [
    ("MPICH Version: 4.2.1", "no user-level failure mitigation"),
    ("Open MPI v4.1.6rc2, package: x", "it is older than 5.0.10"),
    ("Open MPI v5.0.9, package: x", "it is older than 5.0.10"),
    ("Open MPI v5.0.10, package: x", ""),
    ("Open MPI v5.1.0, package: x", ""),
])  # fmt: skip
def test_an_mpi_that_could_not_go_on_after_a_loss_is_refused(
    version: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpi = SimpleNamespace(
        Get_library_version=lambda: version, Comm=SimpleNamespace(Iagree=None)
    )
    monkeypatch.setattr(survival, "library", lambda: mpi)
    monkeypatch.setenv(FAULT_TOLERANT, "1")
    if not why:
        survival.require_ulfm()
        return
    with pytest.raises(EnvironmentFault, match=why) as caught:
        survival.require_ulfm()
    assert "mpirun --with-ft ulfm" in caught.value.remedy

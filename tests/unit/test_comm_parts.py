"""The parts of the communication layer that need no second process."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from limits import HANG

from decdpo.comm.device import check_devices, choose_device
from decdpo.comm.faults import pack, unpack
from decdpo.comm.links.message import MessageRoute
from decdpo.comm.links.slots import HEADER, Format, Slot, aligned
from decdpo.comm.links.window import PAGE, Segment
from decdpo.comm.local import LocalWorld
from decdpo.comm.mpi.launch import (
    copies_started,
    how_to_say_alone,
    launched_by_mpi,
    let_the_first_report,
)
from decdpo.comm.progress import Progress
from decdpo.comm.waiting import Deadline
from decdpo.errors import DataError, EnvironmentFault, NumericalError, StallError
from decdpo.messages import BLOCK


def test_a_request_to_stop_may_interrupt_another_one_anywhere() -> None:
    world = LocalWorld(2)

    def interrupt(frame: Any, event: str, value: Any) -> Any:
        sys.settrace(None)
        world.request_stop()
        sys.settrace(interrupt)
        return interrupt

    def ask() -> None:
        sys.settrace(interrupt)
        world.request_stop()
        sys.settrace(None)

    # A lock that is taken twice is waited for for ever.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(5.0)
    assert not asker.is_alive() and world.stop_due(0)


def test_only_the_first_copy_tells_a_common_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for environ in ({}, {"OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}, {"PMI_RANK": "0"}):
        let_the_first_report(environ)
    assert slept == []
    for environ in ({"OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}, {"FLUX_TASK_RANK": "1"}):
        let_the_first_report(environ)
    assert len(slept) == 2 and min(slept) > 5


@pytest.mark.parametrize(
    ("environ", "copies"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, 4),
        ({"PMI_SIZE": "3", "PMI_RANK": "1"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}, 1),
        # A batch script's shell: no step, though the job has four tasks.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        # mpirun inside a one-task step counts its own processes.
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}, 2),
    ],
)
def test_a_launch_is_recognised(environ: dict[str, str], copies: int | None) -> None:
    assert launched_by_mpi(environ) == copies


@pytest.mark.parametrize(
    ("environ", "believed"),
    [
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS=8"),
        ({"PMI_SIZE": "²", "FLUX_JOB_SIZE": "3"}, "FLUX_JOB_SIZE=3"),
    ],
)
def test_the_variable_that_is_believed_is_named(environ: dict[str, str], believed: str) -> None:
    assert copies_started(environ).startswith(f"{believed} says that {believed[-1]} copies")
    name = believed.partition("=")[0]
    assert f"--world local, or unset {name}" in how_to_say_alone({name: "1"})
    assert copies_started({}) == ""


def test_deadline_sleeps_polls_and_gives_up() -> None:
    polls: list[float] = []
    deadline = Deadline(0.5, lambda: polls.append(time.perf_counter()))
    cpu = time.process_time()
    with pytest.raises(StallError, match=r"waited \d+\.\d"):
        deadline.until(lambda: False, lambda waited: f"waited {waited:.1f}")
    assert time.process_time() - cpu < 0.4
    assert len(polls) > 20
    end = time.perf_counter() + 0.02
    waited = deadline.until(lambda: time.perf_counter() > end, lambda waited: "")
    assert 0.015 < waited < HANG
    assert deadline.until(lambda: True, lambda waited: "") == 0.0


@pytest.mark.parametrize("chunk_bytes", [1, 3 << 20, 1 << 40])
@pytest.mark.parametrize("size", [0, 1, BLOCK, 5 * BLOCK + 3])
def test_chunks_cover_the_message_at_multiples_of_the_block(size: int, chunk_bytes: int) -> None:
    format = Format(size, torch.float64, "", chunk_bytes)
    assert [part.start for part in format.parts] == [0, *(p.stop for p in format.parts[:-1])]
    assert format.parts[-1].stop == size
    assert all(part.start % BLOCK == 0 for part in format.parts)
    assert format.cuts[0].start == 0 and format.cuts[-1].stop == format.nbytes == 64 + 8 * size
    assert all(
        cut.stop == HEADER + 8 * part.stop for cut, part in zip(format.cuts, format.parts)
    )


def test_buffers_are_aligned() -> None:
    assert all(aligned(n).data_ptr() % 64 == 0 and aligned(n).numel() == n for n in (1, 100, 4097))


def slot_of(source: int, round: int, **changes: Any) -> Slot:
    usual = {"size": 3, "dtype": torch.float32, "digest": "d", "chunk_bytes": 1}
    format = Format(**{**usual, **changes})
    slot = Slot(format, aligned(format.nbytes))
    slot.label(source)
    slot.date(round)
    return slot


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (slot_of(2, 6), "agent 2 sent its message of round 6 where round 5 was due"),
        (slot_of(1, 5), "agent 2 was expected, but agent 1 sent"),
        (slot_of(2, 5, digest="e"), "another layout"),
        (slot_of(2, 5, dtype=torch.int32), "another layout or type"),
        (slot_of(2, 5, size=4), "agent 2 sent 4 values"),
    ],
)
def test_a_header_that_does_not_fit_is_named(sent: Slot, expected: str) -> None:
    here = slot_of(2, 5)
    here.check(2, 5)
    here.words[:] = sent.words
    with pytest.raises(EnvironmentFault, match=expected):
        here.check(2, 5)
    here.words[:] = 0
    with pytest.raises(EnvironmentFault, match="not a message of this version"):
        here.check(2, 5)


def test_slots_of_a_segment_do_not_overlap() -> None:
    format = Format(1000, torch.float32, "", 1)
    memory = aligned(Segment.size(format, 3, 5)).zero_().numpy()
    segment = Segment(memory, format, (4, 5, 6), 5)
    for agent in (4, 5, 6):
        for parity in range(2):
            segment.raw(agent, parity).add_(1)
            segment.receipt(agent, parity)[:] += 1
            assert segment.raw(agent, parity).data_ptr() % 64 == 0
    assert segment.receipts.min() == segment.receipts.max() == 1
    assert memory.sum() == 6 * format.nbytes + 6 * 5
    assert len(memory) % PAGE == 0


def test_faults_travel_as_text() -> None:
    again = unpack(pack(NumericalError("NaN", "lower it")))
    assert type(again) is NumericalError and (again.what, again.remedy) == ("NaN", "lower it")
    assert again.exit_code == 1 and again.collective

    class Special(DataError):
        pass

    assert type(unpack(pack(Special("odd")))) is DataError
    assert str(unpack(pack(KeyError("x")))) == "KeyError: 'x'"
    assert pack(None) == ""


def test_progress_probes_only_while_resumed() -> None:
    seen: list[float] = []
    progress = Progress(lambda: seen.append(time.perf_counter()), pause=1e-3)
    time.sleep(0.02)
    assert not seen and not progress.busy
    progress.resume()
    time.sleep(0.05)
    progress.suspend()
    assert len(seen) >= 3
    time.sleep(0.01)
    count = len(seen)
    time.sleep(0.03)
    assert len(seen) == count
    progress.close()


class FakeComm:
    """Requests that complete when told to."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Send_init(self, data: np.ndarray, rank: int, tag: int) -> "FakeComm.Request":
        self.requests.append(FakeComm.Request())
        return self.requests[-1]

    class Request:
        complete = True

        def Start(self) -> None:
            self.complete = False

        def Test(self) -> bool:
            return self.complete


def test_a_route_is_done_when_every_chunk_was_taken() -> None:
    comm = FakeComm()
    format = Format(2 * BLOCK, torch.float32, "", 1)
    route = MessageRoute(comm, Slot(format, aligned(format.nbytes)), 0, 1, 4)
    assert route.done()
    route.start(0)
    route.start(1)
    comm.requests[1].complete = True
    assert not route.done()
    comm.requests[0].complete = True
    assert route.done()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that so many GPUs are visible."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    for name in ("SLURM_STEP_GPUS", "SLURM_GPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return pretend


def test_the_device_follows_the_rank_on_the_node(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(0)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(EnvironmentFault, match="no GPU can be used"):
        choose_device("cuda")
    gpus(4)
    assert [choose_device("cuda", r, 4) for r in range(4)] == [f"cuda:{r}" for r in range(4)]
    assert choose_device("cpu", 1, 4) == "cpu"
    gpus(2)
    assert choose_device("auto", 3, 4) == "cpu"
    with pytest.raises(EnvironmentFault, match=r"4 processes on this node, but 2 GPU\(s\)"):
        choose_device("cuda", 3, 4)
    assert choose_device("cuda", 3, 4, share_gpu=True) == "cuda:1"
    gpus(1)
    monkeypatch.setenv("SLURM_STEP_GPUS", "3")
    assert choose_device("cuda", 3, 4) == "cuda:0"


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "GPU-1"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    world = LocalWorld(4)
    check_devices(world, "cpu")
    check_devices(world, "cuda:0")
    # What a second process, which hosts agents 2 and 3, would answer.
    monkeypatch.setattr(world, "collect", lambda values: {**values, 2: values[0]})
    check_devices(world, "cuda:0", share_gpu=True)
    with pytest.raises(EnvironmentFault, match="agents 0 and 2 would share one GPU.*GPU-1"):
        check_devices(world, "cuda:0")

"""GPU memory for MPI: what the library is asked, what is refused, how a GPU is taken."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decdpo.comm import device
from decdpo.comm.links.slots import HEADER, Format, Slot, aligned
from decdpo.comm.mpi import cuda_aware
from decdpo.config import parse
from decdpo.config.schema import Device
from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.messages import BLOCK
from decdpo.session.job import Job


class FakeLibrary:
    """What mpi4py says of a library."""

    __file__ = "MPI.so"

    def __init__(self, version: str = "Open MPI v5.0.8, package: x", started: bool = True) -> None:
        self._version, self._started = version, started

    def Is_initialized(self) -> bool:
        return self._started

    def Get_library_version(self) -> str:
        return self._version


@pytest.fixture
def symbols(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the library has these symbols."""
    monkeypatch.delenv(cuda_aware.CRAY_SWITCH, raising=False)

    def pretend(**functions: Any) -> None:
        monkeypatch.setattr(cuda_aware.ctypes, "CDLL", lambda path: SimpleNamespace(**functions))

    return pretend


def test_the_library_is_asked_only_once_it_runs(symbols: Callable[..., None]) -> None:
    asked: list[int] = []
    symbols(MPIX_Query_cuda_support=lambda: asked.append(1) or 1)
    asleep: Any = FakeLibrary(started=False)
    assert cuda_aware.cuda_support(asleep) is None and not asked
    assert cuda_aware.describe(asleep) == "says under mpirun whether it is CUDA-aware"
    awake: Any = FakeLibrary()
    assert cuda_aware.cuda_support(awake) is True and asked
    assert cuda_aware.describe(awake) == "says that it is CUDA-aware"
    assert cuda_aware.refusal(awake) is None


def test_a_library_that_says_no_or_nothing_is_refused(symbols: Callable[..., None]) -> None:
    library: Any = FakeLibrary()
    symbols(MPIX_Query_cuda_support=lambda: 0)
    fault = cuda_aware.refusal(library)
    assert fault is not None and "Open MPI v5.0.8 says that it is not CUDA-aware" in fault.what
    assert 'device.staging = "host"' in fault.remedy and "UCX_TLS" in fault.remedy
    symbols()
    fault = cuda_aware.refusal(library)
    assert fault is not None and "does not say whether it is CUDA-aware" in fault.what


@pytest.mark.parametrize(("answer", "failed"), [(1, 0), (0, 0), (1, 16)])
def test_an_older_mpich_is_asked_by_its_own_name(
    symbols: Callable[..., None], answer: int, failed: int
) -> None:
    def query(kind: int, found: Any) -> int:
        assert kind == 0
        found._obj.value = answer
        return failed

    symbols(MPIX_GPU_query_support=query)
    library: Any = FakeLibrary("MPICH Version: 4.0")
    assert cuda_aware.cuda_support(library) is (answer == 1 and failed == 0)


def test_cray_mpich_needs_its_switch(
    symbols: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library: Any = FakeLibrary("MPI VERSION    : CRAY MPICH version 8.1.30.8 (ANL base 3.4a2)")
    symbols(MPIX_Query_cuda_support=lambda: 1)
    assert cuda_aware.cuda_support(library) is False
    monkeypatch.setenv(cuda_aware.CRAY_SWITCH, "0")
    assert cuda_aware.cuda_support(library) is False
    monkeypatch.setenv(cuda_aware.CRAY_SWITCH, "1")
    assert cuda_aware.cuda_support(library) is True
    symbols(MPIX_Query_cuda_support=lambda: 0)
    assert cuda_aware.cuda_support(library) is False
    symbols()
    assert cuda_aware.cuda_support(library) is True


@pytest.mark.parametrize("size", [0, 5, 2 * BLOCK, 2 * BLOCK + 1])
def test_a_header_apart_is_a_chunk_of_its_own(size: int) -> None:
    format = Format(size, torch.float64, "d", 1, apart=True)
    together = Format(size, torch.float64, "d", 1)
    assert format.parts == (slice(0, 0), *together.parts)
    assert format.nbytes == together.nbytes and format.step == BLOCK
    assert (format.fingerprint == together.fingerprint).all()
    slot = Slot(format, aligned(format.nbytes).zero_())
    slot.label(3)
    slot.date(7)
    slot.check(3, 7)
    head, *values = slot.pieces()
    assert head.nbytes == HEADER and head.any() and not slot.raw.any()
    assert [v.numel() for v in values] == [8 * (p.stop - p.start) for p in together.parts]
    for value in values:
        value.fill_(1)
    assert (slot.body.view(torch.uint8) == 1).all()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Pretend that there is one GPU; yield those that were made current."""
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield current
    torch.use_deterministic_algorithms(False)


def test_a_gpu_is_taken_with_deterministic_algorithms(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("local")
    assert job.device(Device(kind="cpu")) == "cpu"
    assert not gpu and not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert job.device(Device(staging="device")) == "cuda:0" == gpu[0]
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.take_gpu("cuda:0")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_device_staging_on_the_cpu_is_refused_when_it_is_known(gpu: list[str]) -> None:
    job = Job("local")
    with pytest.raises(EnvironmentFault, match="device.staging = 'device' is ignored") as caught:
        job.device(Device(staging="device"), gpu_of_use=False)
    assert caught.value.remedy and not gpu


LM = '[policy]\nkind = "causal_lm"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[device]\nstaging = "device"', ["device.staging", "policy.kind = 'loglinear'"]),
        (LM + '[device]\nkind = "cpu"\nstaging = "device"', ["device.staging", "device.kind"]),
        (LM + '[device]\nstaging = "device"\n[comm]\ntransport = "window"', ["comm.transport"]),
        (LM + '[device]\nstaging = "gpu"', ["device.staging = 'gpu'", "host, device"]),
    ],
)
def test_staging_that_cannot_be_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.remedy


def test_staging_is_the_host_unless_said() -> None:
    assert parse("").device.staging == "host"
    assert parse(LM + '[device]\nstaging = "device"').device.staging == "device"

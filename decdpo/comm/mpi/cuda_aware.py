"""Whether MPI can be handed GPU memory: first its own word, then a rehearsal.

A library that is not CUDA-aware reads a GPU's address as one of the host's and ends in a
segmentation fault, so it is asked before any address is shown to it. That it was built for CUDA
does not mean that its transports carry GPU memory between these very processes, so a pattern is
then sent around, on the way that messages take, and compared bit by bit.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.faults import as_error
from decdpo.comm.world import Exchange, World
from decdpo.errors import DecdpoError, EnvironmentFault, StallError
from decdpo.rng import Stream, generator
from decdpo.topology.row import Row

ROUNDS = 3
"""Rounds of a rehearsal: every slot is used, and one of them again."""
FEW = 3
"""Bytes of the short message of a rehearsal."""
TIMEOUT = 60.0
"""Seconds without an answer before a rehearsal counts as failed."""
CRAY_SWITCH = "MPICH_GPU_SUPPORT_ENABLED"
CUDA = 0
"""``MPIX_GPU_SUPPORT_CUDA``."""
REMEDY = (
    'set device.staging = "host", or use an MPI built with CUDA (Open MPI: '
    "`ompi_info --parsable --all | grep built_with_cuda_support:value` prints true; with UCX, "
    "UCX_TLS is unset or names cuda_copy and cuda_ipc; Cray MPICH: MPICH_GPU_SUPPORT_ENABLED=1)"
)


def cuda_support(MPI: ModuleType) -> bool | None:
    """Return whether the MPI library says that it takes GPU memory; None if it does not say.

    MPI : ``mpi4py.MPI``; before it is initialised there is no answer (MPICH would abort). Asks
    ``MPIX_Query_cuda_support`` (Open MPI since 2.0, MPICH since 4.0.1) or
    ``MPIX_GPU_query_support`` (MPICH 4.0). Cray MPICH takes GPU memory only with
    ``MPICH_GPU_SUPPORT_ENABLED=1``, and is believed if it has neither.
    """
    if not MPI.Is_initialized():
        return None
    cray = "CRAY MPICH" in MPI.Get_library_version().upper()
    switched_on = os.environ.get(CRAY_SWITCH, "0") == "1"
    if cray and not switched_on:
        return False
    # Its symbols include those of the library that it is linked to.
    symbols = ctypes.CDLL(MPI.__file__)
    if hasattr(symbols, "MPIX_Query_cuda_support"):
        return bool(symbols.MPIX_Query_cuda_support())
    if hasattr(symbols, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        failed = symbols.MPIX_GPU_query_support(CUDA, ctypes.byref(answer))
        return bool(answer.value and not failed)
    return True if cray else None


def describe(MPI: ModuleType) -> str:
    """Return a few words on whether the MPI library takes GPU memory."""
    if not MPI.Is_initialized():
        return "says under mpirun whether it is CUDA-aware"
    answer = cuda_support(MPI)
    if answer is None:
        return "does not say whether it is CUDA-aware"
    return f"says that it is {'' if answer else 'not '}CUDA-aware"


def refusal(MPI: ModuleType) -> EnvironmentFault | None:
    """Return the fault of a library that does not say that it takes GPU memory."""
    if cuda_support(MPI):
        return None
    name = MPI.Get_library_version().splitlines()[0].split(",")[0]
    return EnvironmentFault(
        f"device.staging = 'device' needs an MPI that takes GPU memory, but {name} {describe(MPI)}",
        REMEDY,
    )


def rehearse(
    MPI: ModuleType,
    world: World,
    make: Callable[[int], Exchange],
    sizes: Sequence[int],
    ring: tuple[int, int, int],
    device: str,
) -> None:
    """Raise an error unless MPI carries GPU memory around the ranks. Collective.

    Raises ``EnvironmentFault`` for a refusal, a failure or wrong bytes, ``StallError`` if a message
    does not come; the same on all processes.

    world : to agree. make : makes an exchange of so many values of uint8 on ``device``. sizes : of
    the messages. ring : an agent of the rank before this one, of this one, and of the one after.
    """
    world.require(refusal(MPI))
    for size in sizes:
        exchange = make(size)
        fault = _send_around(exchange, size, ring, device)
        # One that waited in vain knows less than one that failed.
        world.require(None if isinstance(fault, StallError) else fault)
        world.require(fault)
        exchange.close()


def _send_around(
    exchange: Exchange, size: int, ring: tuple[int, int, int], device: str
) -> DecdpoError | None:
    """Send a pattern around the ring and return what went wrong here; never raise."""
    before, me, after = ring
    row = Row(0.5, (before,), (0.5,), (after,))
    what = f"device.staging = 'device': a message of {size} bytes from agent {before} to {me}"
    wrong = 0
    try:
        for round in range(ROUNDS):
            exchange.start(me, round, row, _pattern(size, me, round).to(device))
            exchange.collect(round)
            inbox = exchange.inbox(me, round)
            inbox.settle()
            expected = _pattern(size, before, round).to(device)
            wrong += int((inbox.messages[0].body != expected).sum())
    except StallError as stall:
        return StallError(f"{what} did not come: {stall.what}", REMEDY)
    # MPI, CUDA and torch each have errors of their own here, and all mean the same.
    except Exception as fault:
        return EnvironmentFault(f"{what} failed: {as_error(fault).what}", REMEDY)
    return EnvironmentFault(f"{what} came with {wrong} wrong bytes", REMEDY) if wrong else None


def _pattern(size: int, agent: int, round: int) -> Tensor:
    """Return (size,) random uint8 on the CPU, a function of agent and round."""
    random = generator(0, Stream.SYNTHETIC, agent, round)
    return torch.from_numpy(random.integers(0, 256, size, dtype=np.uint8))

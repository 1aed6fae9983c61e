"""Which device a process computes on."""

import os
import socket
from typing import Any

import torch

from decdpo.comm.world import World
from decdpo.errors import EnvironmentFault


def choose_device(
    kind: str, local_rank: int = 0, ranks_on_node: int = 1, *, share_gpu: bool = False
) -> str:
    """Return "cpu" or "cuda:k" for the process number ``local_rank`` of ``ranks_on_node``.

    kind : "cpu", "cuda", or "auto", which takes a GPU where every process of the node finds its
    own. The GPU is picked by the process's number on its node; where a launcher shows each process
    one device only, that one is taken. share_gpu : let several processes use one GPU.

    Raises ``EnvironmentFault`` for "cuda" if there is no GPU, or too few of them.
    """
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device kind {kind!r}")
    count = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return "cpu"
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        raise EnvironmentFault(
            f"no GPU can be used{seen}: torch {torch.__version__} finds none",
            'set device.kind = "cpu", or install a torch built for this GPU and its driver',
        )
    # One visible device may be a launcher's way to give each process its own: uuids decide then.
    alone = count == 1 and ranks_on_node > 1 and not share_gpu
    if count < ranks_on_node and not share_gpu and not (alone and _isolated()):
        if kind == "auto":
            return "cpu"
        raise EnvironmentFault(
            f"{ranks_on_node} processes on this node, but {count} GPU(s)",
            "start one process per GPU, or set device.share_gpu = true",
        )
    return f"cuda:{local_rank % count}"


def take_gpu(device: str) -> None:
    """Compute on ``device``, "cuda:k", from now on, and give the same input the same bits.

    Call it before anything is computed there. Chooses deterministic algorithms for the whole
    process; an operation that has none raises ``RuntimeError`` and names itself. cuBLAS needs
    ``CUBLAS_WORKSPACE_CONFIG`` for that, which is set to ":4096:8" unless it is set already.
    """
    # Read when CUDA is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # torch would then also write NaN into all new memory, as a check, in thousands of operations.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    # MPI looks for GPU memory on the current device.
    torch.cuda.set_device(device)


def check_devices(world: World, device: str, *, share_gpu: bool = False) -> None:
    """Raise ``EnvironmentFault`` on all processes if two of them compute on one GPU. Collective.

    Looks at the GPUs' own ids, which tell them apart however a launcher numbers them.
    """
    identity = ""
    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.device(device))
        identity = f"{socket.gethostname()} {getattr(properties, 'uuid', device)}"
    found = world.collect({agent: identity for agent in world.local_agents[:1]})
    seen: dict[str, int] = {}
    fault = None
    for agent, gpu in found.items():
        if gpu and gpu in seen and not share_gpu:
            fault = EnvironmentFault(
                f"the processes of agents {seen[gpu]} and {agent} would share one GPU ({gpu})",
                "start one process per GPU, or set device.share_gpu = true",
            )
            break
        seen.setdefault(gpu, agent)
    world.require(fault)


def _isolated() -> bool:
    """Say whether the launcher restricts each process to devices of its own."""
    return any(name in os.environ for name in ("SLURM_STEP_GPUS", "SLURM_GPUS_PER_TASK"))

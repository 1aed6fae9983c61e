"""What a process has to compute with: its node, its cores, and the GPUs that are there."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

DEVICES = Path("/dev")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls the instructions that multiply bfloat16."""


def machine(device: str) -> dict[str, Any]:
    """Return what this process computes with, as JSON values.

    device : "cpu" or "cuda:k". host, device, device_name. threads : of torch. cores : that it may
    use, "0-3,8"; cores_quota : as many may be busy at once in its container, None for all.
    gpus_present : of NVIDIA, on the node, gpus_usable : that torch can use. torch, torch_cuda : its
    version, and that of CUDA it was built for, None for a CPU build. cuda_visible_devices : of the
    environment. cpu_bfloat16 : whether the processor multiplies bfloat16, None if unknown.
    """
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "host": platform.node(),
        "device": device,
        "device_name": _name(device),
        "threads": torch.get_num_threads(),
        "cores": _ranges(_cores()),
        "cores_quota": _quota(),
        "gpus_present": max(usable, gpus_present()),
        "gpus_usable": usable,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or torch.version.hip,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cpu_bfloat16": _bfloat16(),
    }


def gpus_present() -> int:
    """Return how many NVIDIA GPUs the node has, whether torch can use them or not."""
    try:
        found = sum(bool(re.fullmatch(r"nvidia\d+", p.name)) for p in DEVICES.iterdir())
    except OSError:
        found = 0
    tool = None if found else shutil.which("nvidia-smi")
    if tool is None:
        return found
    try:
        said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in said.splitlines())


def expand(ranges: str) -> set[int]:
    """Return the numbers of "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _cores() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _ranges(numbers: Iterable[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _quota() -> float | None:
    """Return how many cores the container may keep busy, None where that is not limited."""
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return _of_cpu("model name") or platform.machine()


def _bfloat16() -> bool | None:
    flags = _of_cpu("flags") or _of_cpu("Features")  # of x86; of ARM
    return bool(BFLOAT16 & set(flags.split())) if flags else None


def _of_cpu(key: str) -> str:
    """Return what the system says of its first core, empty if it does not."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*: *(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""

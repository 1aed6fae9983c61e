"""Check this machine: Python, libraries, MPI, GPUs, memory and disk.

Under mpirun it also checks that the ranks find one another, where each of them is, and which GPU
each would use; with ``--staging device`` that MPI carries GPU memory between them. It warns of what
a run would warn of: GPUs that are not used, ranks that share cores. With CONFIG it prepares that
run, without training it, and prints the block that its start would print.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decdpo.errors import DecdpoError

if TYPE_CHECKING:
    from decdpo.session.job import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo doctor``."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file of a run to look at")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a key of CONFIG",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="threads that a rank shall use (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="device that the ranks shall use")
    parser.add_argument("--share-gpu", action="store_true", help="let several ranks use one GPU")
    parser.add_argument("--staging", choices=("host", "device"), default="host",
                        help="way of a GPU's messages; device is tried out")


Check = tuple[str, bool, str]
"""What was checked, whether it is well, and what was found."""


def run(args: argparse.Namespace) -> int:
    """Print what was found; 2 if something that training needs is missing."""
    needed = [_python(), *_libraries()]
    if not all(ok for _, ok, _ in needed):
        # The rest cannot even be imported.
        _print(needed, {}, [], [], args.json)
        return 2
    from decdpo.report.start import block, warnings
    from decdpo.session.job import Job, launch

    def body(job: Job) -> int:
        checks = [*needed, _attempt("MPI", _mpi), _attempt("disk", _disk),
                  _attempt("memory", _memory), _attempt("shared memory", _shared_memory)]
        _, usable, device = _attempt("device", lambda: _device(job, args))
        checks.append(("device", usable, device))
        facts = _facts(job, args, device if usable else "cpu")
        places = job.boot.collect({i: [platform.node(), device] for i in job.boot.local_agents})
        if args.staging == "device" and _everywhere(job, usable):
            checks.append(_attempt("staging", lambda: _staging(job, device)))
        well = all(ok for _, ok, _ in checks)
        everybody_well = _everywhere(job, well)
        if job.is_root:
            _print(checks, places, block(facts), warnings(facts), args.json)
        return 0 if everybody_well else 2

    return launch(body)


def _facts(job: "Job", args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return what a start would say: of the run, or of the machines alone. Collective."""
    from decdpo.comm.machine import machine

    if args.config is None:
        here = machine(device)
        found = job.boot.collect({i: here for i in job.boot.local_agents})
        return {"processes": list(found.values()), "wanted_device": args.device}
    from decdpo.config import load
    from decdpo.config.policies import CausalLM
    from decdpo.session.experiment import prepare
    from decdpo.session.training import starting

    config = job.together(lambda: load(args.config, args.set))
    if isinstance(config.policy, CausalLM) and config.policy.cache_reference:
        # The reference pass of a language model would take long, and nothing here needs it.
        config = replace(config, policy=replace(config.policy, cache_reference=False))
    with tempfile.TemporaryDirectory() as scratch:
        experiment = prepare(job, config, Path(scratch))
        facts = starting(experiment, 0)
        experiment.close()
    return {**facts, "folder": "not yet in a folder"}


def _everywhere(job: "Job", well: bool) -> bool:
    """Say whether all processes are well. Collective."""
    return all(job.boot.collect({i: well for i in job.boot.local_agents}).values())


def _print(
    checks: list[Check],
    places: dict[int, list[str]],
    lines: list[str],
    doubts: list[str],
    as_json: bool,
) -> None:
    if as_json:
        found = [{"check": name, "ok": ok, "found": text} for name, ok, text in checks]
        ranks = [{"rank": i, "host": h, "device": d} for i, (h, d) in sorted(places.items())]
        document = {"checks": found, "ranks": ranks, "start": lines, "warnings": doubts}
        print(json.dumps(document, indent=1))
        return
    for name, ok, text in checks:
        print(f"{'ok  ' if ok else 'FAIL'} {name:<14} {text}")
    if len(places) > 1:
        for i, (host, device) in sorted(places.items()):
            print(f"     rank {i:<9} {host}, {device}")
    for line in lines:
        print(f"     {line}")
    for doubt in doubts:
        print(f"warn {doubt}")


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return name, True, check()
    except (DecdpoError, OSError, ImportError, RuntimeError) as fault:
        return name, False, " ".join(str(fault).split())


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return "Python", ok, f"{platform.python_version()} on {platform.platform()}"


def _libraries() -> list[Check]:
    from importlib import metadata

    checks = []
    for name, needed in (
        ("torch", True),
        ("numpy", True),
        ("scipy", True),
        ("h5py", True),
        ("networkx", True),
        ("mpi4py", True),
        ("transformers", False),
        ("matplotlib", False),
    ):
        try:
            checks.append((name, True, metadata.version(name)))
        except metadata.PackageNotFoundError:
            note = "missing" if needed else "not installed (optional)"
            checks.append((name, not needed, note))
    return checks


def _mpi() -> str:
    from decdpo.comm.mpi.boot import library
    from decdpo.comm.mpi.cuda_aware import describe

    MPI = library()
    version: str = MPI.Get_library_version()
    found = f"{version.splitlines()[0].split(',')[0]}, {describe(MPI)}"
    if MPI.Is_initialized() and MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        found += "; gives no MPI_THREAD_MULTIPLE: nothing drives messages while ranks compute"
    return found


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    return f"{free / 2**30:.1f} GiB free in {Path.cwd()}"


def _memory() -> str:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.1f} GiB free, {os.cpu_count()} CPUs"


def _shared_memory() -> str:
    from decdpo.comm.links.window import SHARED_MEMORY

    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return f"no {SHARED_MEMORY}: ranks of a node send messages"
    return f"{free / 2**30:.1f} GiB free in {SHARED_MEMORY}, for messages within a node"


def _device(job: "Job", args: argparse.Namespace) -> str:
    from decdpo.config.schema import Device

    wanted = Device(kind=args.device, share_gpu=args.share_gpu, staging=args.staging,
                    threads=args.threads)
    return job.device(wanted)


def _staging(job: "Job", device: str) -> str:
    """Try the way of messages out. Collective."""
    import torch

    job.boot.exchange(1, torch.float32, device=device, staging="device").close()
    return f"MPI carries GPU memory between {job.size} process(es)"

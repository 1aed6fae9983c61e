"""What a start of a run says of itself: one block of lines, and what is doubtful about it.

Pure functions of the facts that ``run.json`` keeps as ``start``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from decdpo.comm.machine import expand

Facts = Mapping[str, Any]
MOST_NAMED = 4
"""So many hosts are named; of more, the number."""


def block(facts: Facts) -> list[str]:
    """Return the lines of a start.

    facts : ``processes``, one mapping of ``comm.machine`` for each process, and where a run is to
    be started ``agents``, ``policy``, ``precision``, ``parameters``, ``pairs``, ``method``,
    ``graph``, ``rho``, ``transport``, ``rounds``, ``folder``, ``saves``.
    """
    lines = [("agents", _agents(facts)), ("device", _devices(facts)), ("cores", _cores(facts))]
    if "policy" in facts:
        pairs = facts["pairs"]
        share = _range(pairs["fewest"], pairs["most"])
        first, last = facts["rounds"]
        lines += [
            ("policy", f"{facts['policy']} in {facts['precision']}, "
                       f"{facts['parameters']:,} parameters"),
            ("pairs", f"{pairs['training']:,} to train on, {share} an agent; "
                      f"{pairs['heldout']:,} held out"),
            ("method", facts["method"]),
            ("graph", _graph(facts)),
            ("transport", "; ".join(facts["transport"])),
            ("run", f"{facts['folder']}, {_rounds(first, last, facts['saves'])}"),
        ]  # fmt: skip
    return [f"{name:<10}{text}" for name, text in lines if text]


def warnings(facts: Facts) -> list[str]:
    """Return what is doubtful: shared cores, unused GPUs, emulated bfloat16, messages."""
    found = []
    for host, group in _by_host(facts).items():
        found += _shared_cores(host, group)
        found += _unused_gpus(host, group, facts)
        found += _slow_bfloat16(host, group, facts)
    return [*found, *facts.get("doubts", [])]


def shared_cores(facts: Facts) -> list[str]:
    """Return of each host on which ranks share cores that they do."""
    return [line for host, group in _by_host(facts).items() for line in _shared_cores(host, group)]


def _by_host(facts: Facts) -> dict[str, list[Facts]]:
    hosts: dict[str, list[Facts]] = {}
    for process in facts["processes"]:
        hosts.setdefault(process["host"], []).append(process)
    return hosts


def _shared_cores(host: str, group: Sequence[Facts]) -> list[str]:
    cores = len(set().union(*(expand(p["cores"]) for p in group)))
    threads = sum(p["threads"] for p in group)
    quotas = [p["cores_quota"] for p in group if p["cores_quota"]]
    room = min([float(cores), *quotas])
    if threads <= room:
        return []
    each = _range(min(p["threads"] for p in group), max(p["threads"] for p in group))
    whose = f"the {cores} cores that they may use" if room == cores else (
        f"{room:g} cores, to which their container is limited"
    )  # fmt: skip
    what = "rank has" if len(group) == 1 else "ranks have"
    return [
        f"{host}: {len(group)} {what} {each} thread{'' if each == '1' else 's'} each on {whose}: "
        "they take turns. Start fewer ranks, lower device.threads, or let the launcher give each "
        "rank cores of its own"
    ]


def _unused_gpus(host: str, group: Sequence[Facts], facts: Facts) -> list[str]:
    present = max(p["gpus_present"] for p in group)
    wanted = facts.get("wanted_device", "auto")
    if not present or wanted == "cpu" or not facts.get("gpu_of_use", True):
        return []
    used = len({p["device"] for p in group if p["device"] != "cpu"})
    if used:
        usable = max(p["gpus_usable"] for p in group)
        if used < usable and facts.get("agents", usable) > len(facts["processes"]):
            return [f"{host}: {used} of {usable} GPUs are used: start one rank per GPU"]
        return []
    first, usable = group[0], max(p["gpus_usable"] for p in group)
    gpus = f"{host}: {present} GPU{' is' if present == 1 else 's are'} there and not used"
    if not first["torch_cuda"]:
        return [f"{gpus}: torch {first['torch']} is a build for the CPU; install one for CUDA "
                "(tools/setup.sh chooses it where it sees a GPU)"]  # fmt: skip
    if not usable:
        visible = first["cuda_visible_devices"]
        seen = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
        return [f"{gpus}: torch {first['torch']} finds none{seen}; look at `nvidia-smi`"]
    return [
        f"{gpus}: device.kind = 'auto' takes GPUs only where each rank has its own, and here are "
        f"{len(group)} ranks; start {usable}, or set device.share_gpu = true. device.kind = "
        "'cuda' makes this an error"
    ]


def _slow_bfloat16(host: str, group: Sequence[Facts], facts: Facts) -> list[str]:
    slow = any(p["device"] == "cpu" and p["cpu_bfloat16"] is False for p in group)
    if not slow or not facts.get("precision", "").startswith("bfloat16"):
        return []
    return [
        f"{host}: its processor has no instructions for bfloat16, which is slower there than "
        'float32: set policy.dtype = "float32"'
    ]


def _agents(facts: Facts) -> str:
    processes = facts["processes"]
    hosts = list(dict.fromkeys(p["host"] for p in processes))
    names = ", ".join(hosts) if len(hosts) <= MOST_NAMED else f"{', '.join(hosts[:2])}, ..."
    count = len(processes)
    ranks = "1 process" if count == 1 else f"{count} ranks"
    where = f"{ranks} on {len(hosts)} host{'' if len(hosts) == 1 else 's'} ({names})"
    if "agents" not in facts:
        return where
    each = facts["most_on_one"]
    most = f", at most {each} on one" if each > 1 and count > 1 else ""
    return f"{facts['agents']} in {where}{most}"


def _devices(facts: Facts) -> str:
    processes = facts["processes"]
    kinds = Counter((p["device"].partition(":")[0], p["device_name"]) for p in processes)
    parts = []
    for (kind, name), count in kinds.items():
        numbers = sorted({p["device"] for p in processes if p["device_name"] == name})
        where = kind if kind == "cpu" else ", ".join(numbers[:8])
        parts.append(f"{where} ({name})" + (f" for {count} ranks" if len(kinds) > 1 else ""))
    text = "; ".join(parts)
    if set(kinds) and all(kind == "cpu" for kind, _ in kinds):
        present = max(p["gpus_present"] for p in processes)
        if not facts.get("gpu_of_use", True):
            text += ": this policy has no use for a GPU"
        elif present and facts.get("wanted_device") == "cpu":
            text += f", as device.kind asks; {present} GPU(s) a host are left alone"
    return text


def _cores(facts: Facts) -> str:
    processes = facts["processes"]
    threads = _range(min(p["threads"] for p in processes), max(p["threads"] for p in processes))
    counts = [len(expand(p["cores"])) for p in processes]
    each = "a rank" if len(processes) > 1 else "of this process"
    return (
        f"{threads} thread{'' if threads == '1' else 's'} {each}, which may use "
        f"{_range(min(counts), max(counts))}"
    )


def _graph(facts: Facts) -> str:
    graph, rho = facts["graph"], facts["rho"]
    if graph is None:
        return ""
    if rho is None:
        return str(graph)
    return f"{graph}, spectral gap {1 - rho:.4g} (rho {rho:.4g})"


def _rounds(first: int, last: int, saves: str) -> str:
    if first >= last:
        return f"all {last:,} rounds are done: nothing is left to do"
    return f"rounds {first + 1:,} to {last:,}, {saves}"


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts that are not empty, each once."""
    return list(dict.fromkeys(filter(None, texts)))

"""A job script filled in for one run, and checked against what the run will need."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decdpo.config import Config
from decdpo.config.options import nearest
from decdpo.config.policies import CausalLM
from decdpo.errors import ConfigError
from decdpo.session.plan import plan

TRAINING = ("train", "chain", "survive", "container")
"""Templates that train a run from CONFIG into RUN."""
PLACEHOLDER = "CHANGE_ME"

_LINE = re.compile(r"^(#+)SBATCH\s+(.*)$")
_SIGNAL = re.compile(r"USR1@(\d+)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def find_template(name: str, home: Path) -> Path:
    """Return the template called ``name``: a path, or one of those in ``home``/jobs.

    Raises ``ConfigError`` if there is none.
    """
    for path in (Path(name), home / "jobs" / f"{name}.slurm"):
        if path.is_file():
            return path
    raise ConfigError(
        f"there is no template {name}{nearest(name, TRAINING)}",
        f"give a file, or one of {', '.join(TRAINING)}, which are in {home / 'jobs'}: from "
        "elsewhere set DECDPO_HOME to the repository",
    )


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a job script whose #SBATCH lines say ``values``, by long option without dashes.

    A line of that option is replaced, also one that is commented out; where there is none, one is
    added after the last.
    """
    lines, missing = text.splitlines(), dict(values)
    last = 0
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if not match:
            continue
        last = number + 1
        named = [name for name in missing if f"--{name}=" in match[2]]
        if named:
            new = match[2]
            for name in named:
                new = re.sub(rf"--{name}=\S+", f"--{name}={missing.pop(name)}", new)
            lines[number] = f"#SBATCH {new}"
    lines[last:last] = [f"#SBATCH --{name}={value}" for name, value in missing.items()]
    return "\n".join(lines) + "\n"


def options(text: str) -> dict[str, str]:
    """Return the options that a job script asks for in its #SBATCH lines.

    Raises ``ConfigError`` for a line that cannot be split into words.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match[1] == "#":
            try:
                words = shlex.split(match[2], comments=True)
            except ValueError as fault:
                raise ConfigError(
                    f"{line} cannot be read: {fault}", "mend this line of the template"
                ) from None
            for word in words:
                name, _, value = word.removeprefix("--").partition("=")
                found[name] = value
    return found


@dataclass(frozen=True)
class Checked:
    """What a job would be. ranks : in all. page : of ``plan``. doubts : why it cannot run so, one
    line each. notes : what is worth knowing."""

    ranks: int
    page: dict[str, Any]
    doubts: list[str]
    notes: list[str]


def check(text: str, config: Config) -> Checked:
    """Compare what a job script asks for with what a run of ``config`` needs.

    Raises ``ConfigError`` if an option of the script cannot be understood.
    """
    asked = options(text)
    per_node = _count(asked, "ntasks-per-node")
    ranks = _count(asked, "nodes") * per_node
    page = plan(config, ranks)
    doubts, notes = [], []
    doubts += [f"--{name} is still {PLACEHOLDER}" for name, v in asked.items() if v == PLACEHOLDER]
    if ranks > page["agents"]:
        doubts.append(
            f"{ranks} ranks for {page['agents']} agents: some would host none; ask for fewer with "
            "--nodes or --ntasks-per-node"
        )
    gpus = _gpus_of(asked.get("gpus-per-node", "0"))
    if gpus:
        doubts += _gpus(config, gpus, per_node)
    needed = page["host_bytes"] if gpus else page["total_bytes"]
    given = _memory(asked, per_node)
    if given is None:
        notes.append(
            f"no memory is asked for: a rank needs about {needed / 1e9:.2g} GB; give "
            "--mem-per-cpu where the centre's default is less"
        )
    elif given and given < needed:
        doubts.append(
            f"a rank gets {given / 1e9:.2g} GB and needs {needed / 1e9:.2g} GB: ask for more with "
            "--mem-per-cpu, or for more nodes with fewer ranks on each"
        )
    doubts += _time(asked)
    return Checked(ranks, page, doubts, notes)


def _count(asked: Mapping[str, str], name: str) -> int:
    value = asked.get(name, "1")
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"--{name}={value} is no number of 1 or more", f"give --{name} one")
    return int(value)


def _gpus_of(value: str) -> int:
    """Return how many GPUs of a node are asked for by N or TYPE:N."""
    number = value.rpartition(":")[2]
    if not number.isdigit():
        raise ConfigError(
            f"--gpus-per-node={value} is no number of GPUs", "write it like 4 or a100:4"
        )
    return int(number)


def _gpus(config: Config, gpus: int, per_node: int) -> list[str]:
    if not isinstance(config.policy, CausalLM):
        return [f"policy.kind = {config.policy.kind!r} has no use for the {gpus} GPUs of a node"]
    if per_node > gpus and not config.device.share_gpu:
        return [
            f"{per_node} ranks for {gpus} GPUs on a node: give --ntasks-per-node={gpus}, or set "
            "device.share_gpu = true"
        ]
    return []


def _memory(asked: Mapping[str, str], per_node: int) -> float | None:
    """Return the bytes of a rank, 0 for all there are, None if none are asked for."""
    if "mem-per-cpu" in asked:
        return _bytes("mem-per-cpu", asked["mem-per-cpu"]) * _count(asked, "cpus-per-task")
    return _bytes("mem", asked["mem"]) / per_node if "mem" in asked else None


def _bytes(name: str, value: str) -> float:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", value.upper())
    if match is None:
        raise ConfigError(f"--{name}={value} is no amount of memory", "write it like 4G")
    return int(match[1]) * _UNITS[match[2] or "M"]


def _time(asked: Mapping[str, str]) -> list[str]:
    """Return why there would be no time to train before the signal to stop."""
    signal = _SIGNAL.search(asked.get("signal", ""))
    if signal is None:
        return ["--signal=B:USR1@SECONDS is missing: the job would be killed at its time limit"]
    limit = seconds(asked["time"]) if "time" in asked else None
    # The signal may come a minute early.
    if limit is not None and limit < int(signal[1]) + 120:
        return [
            f"--time={asked['time']} leaves no time to train before the signal to stop, which "
            f"comes {signal[1]} s before its end"
        ]
    return []


def seconds(text: str) -> int:
    """Return the seconds of a time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises ``ConfigError`` for another text.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"--time={text} is no time limit", "write it like 4:00:00 or 1-12")
    days, parts = match[1], [int(part) for part in match.groups()[1:] if part is not None]
    if days is not None:
        hours, minutes, rest = (*parts, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + rest
    hours, minutes, rest = {1: (0, *parts, 0), 2: (0, *parts)}.get(len(parts), tuple(parts))
    return (hours * 60 + minutes) * 60 + rest

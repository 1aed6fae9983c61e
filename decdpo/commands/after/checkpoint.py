"""Show, verify or fingerprint a checkpoint.

show prints what it holds; verify reads every byte and finds any flipped bit; digest prints one
SHA-256 per agent, of its parameters, independent of how many processes wrote them. PATH is a run
folder or its folder of checkpoints (then the newest of that run is meant), or one checkpoint.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decdpo.errors import CheckpointError, ConfigError
from decdpo.session.record import other_runs, run_id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo checkpoint``."""
    parser.add_argument("action", choices=("show", "verify", "digest"))
    parser.add_argument("path", metavar="PATH", type=Path, help="run folder or checkpoint")
    parser.add_argument("--round", type=int, metavar="N", help="the one of this round")
    parser.add_argument(
        "--state", action="store_true", help="digest: of the whole state, not the parameters alone"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Do what ``args.action`` says; 0 if all is well, 3 if the checkpoint is damaged."""
    from decdpo.checkpoint.inspect import foreign, locate

    if args.state and args.action != "digest":
        raise ConfigError(
            f"--state means nothing to {args.action}", "use it with decdpo checkpoint digest"
        )
    if not args.path.exists():
        raise CheckpointError(f"there is no {args.path.absolute()}", other_runs(args.path))
    run = run_id(args.path if (args.path / "run.json").exists() else args.path.absolute().parent)
    folder = locate(args.path, args.round, run)
    if others := foreign(args.path, run):
        rounds = ", ".join(map(str, others))
        print(f"decdpo: {folder.name} is of this run; not those of rounds {rounds}, of another",
              file=sys.stderr)  # fmt: skip
    return {"show": _show, "verify": _verify, "digest": _digest}[args.action](folder, args)


def _show(folder: Path, args: argparse.Namespace) -> int:
    from decdpo.checkpoint.inspect import summary

    found = summary(folder)
    if args.json:
        _print_json(found)
        return 0
    print(found["path"])
    print(
        f"round {found['round']}, {_count(found['agents'], 'agent')} in "
        f"{_count(len(found['parts']), 'part')}, {_size(found['bytes'])}, "
        f"number {found['serial']} of its run, saved {found['created']}"
    )
    for part in found["parts"]:
        agents = _agents(part["agents"])
        print(f"  {part['file']}  {_size(part['bytes'])}  agents {agents}  crc32 {part['crc32']}")
    for title in ("versions", "identity", "extra"):
        if found[title]:
            print(f"{title}:")
            for key, value in found[title].items():
                print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    state = found["state"]
    print(f"state of agent 0: {state['structure']}")
    for key, value in {**state["tensors"], **state["scalars"]}.items():
        print(f"  {key}: {value}")
    if found["config"]:
        print("config:")
        print("\n".join(f"  {line}".rstrip() for line in found["config"].splitlines()))
    return 0


def _verify(folder: Path, args: argparse.Namespace) -> int:
    from decdpo.checkpoint.inspect import verify

    problems = verify(folder)
    if args.json:
        _print_json({"path": str(folder), "valid": not problems, "problems": problems})
        return CheckpointError.exit_code if problems else 0
    if problems:
        raise CheckpointError(
            "\n".join([f"{folder} is not whole", *(f"  {problem}" for problem in problems)]),
            "resume from an older one: decdpo resume does so by itself",
        )
    print(f"{folder}: every byte is as it was written")
    return 0


def _digest(folder: Path, args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from decdpo.checkpoint.format import Manifest
    from decdpo.checkpoint.inspect import digests

    if args.json:
        agents = {str(agent): asdict(found) for agent, found in digests(folder)}
        round = Manifest.read(folder).round
        _print_json({"path": str(folder), "round": round, "agents": agents})
        return 0
    for agent, found in digests(folder):
        print(f"{agent}  {found.state if args.state else found.x}")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _agents(ids: Sequence[int]) -> str:
    """Return the agents of a part, as a range where they follow one another."""
    first, last = ids[0], ids[-1]
    return f"{first}-{last}" if last - first + 1 == len(ids) else ", ".join(map(str, ids))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(nbytes: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.1f} {unit}"
    return f"{nbytes} bytes"

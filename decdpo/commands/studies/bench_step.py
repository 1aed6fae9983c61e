"""``decdpo bench step``: a step of a language model, with each ingredient switched on in turn."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.report.step_table import step_table

INGREDIENTS = ("head", "prefix", "packing", "reference", "bf16", "checkpointing")
MORE = ("lora", "compile", "graphs")
"""Ingredients that are switched on only if they are asked for."""
ABOUT = "time a step of a language model, and its memory, with each ingredient switched on in turn"


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo bench step``."""
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder of the model")
    parser.add_argument(
        "--data", type=Path, metavar="SHARDS",
        help="folder of `decdpo shard`, whose first pairs of agent 0 are taken; made up without",
    )  # fmt: skip
    numbers = (
        ("--batch", 2, "pairs of a step"),
        ("--steps", 5, "steps that are timed, after one that is not"),
        ("--pairs", 64, "pairs to draw from"),
        ("--max-length", 256, "tokens of a prompt and an answer"),
        ("--tokens-at-once", 2048, "tokens of a packed row"),
        ("--threads", 1, "CPU threads"),
    )
    for flag, default, text in numbers:
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--with", dest="ways", default=",".join(INGREDIENTS), metavar="I,I,...",
        help="ingredients to switch on one after another, of %(default)s, lora, compile, graphs; "
        "'none' is plain alone",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (%(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=900.0, metavar="S", help="seconds for each way (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there as well")


def run(args: argparse.Namespace) -> int:
    """Measure one way after another, each in a process of its own, and print the table."""
    ways, page = ways_of(args.ways), page_of(args)
    if args.out is not None and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
        raise ConfigError(f"--out {args.out} cannot be written", "name a file in a folder of yours")
    page["ways"] = []
    for number, way in enumerate(ways):
        name = f"+ {way[-1]}" if way else "plain"
        print(f"decdpo: measuring {name}", file=sys.stderr, flush=True)
        page["ways"].append(_measure({**page, "with": way, "profile": number + 1 == len(ways)},
                                     args.limit))  # fmt: skip
    page["notes"] = sorted({note for way in page["ways"] for note in way.get("notes", [])})
    if args.out is not None:
        from decdpo.files import replacing

        with replacing(args.out, mode=0o644) as partial:
            partial.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(page, indent=1) if args.json else step_table(page))
    if all("failed" in way for way in page["ways"]):
        raise EnvironmentFault(page["ways"][0]["failed"])
    return 0


def ways_of(text: str) -> list[list[str]]:
    """Return the ingredients of each way to measure: none, then one more each time."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    if names == ["none"]:
        return [[]]
    for name in names:
        if name not in INGREDIENTS + MORE:
            raise ConfigError(f"--with: {name!r} is none of {', '.join(INGREDIENTS + MORE)}")
    if "packing" in names and "prefix" not in names[: names.index("packing")]:
        raise ConfigError(
            "--with: packing needs prefix before it", "pairs are packed as one segment each"
        )
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--with {text!r} names an ingredient twice, or none")
    return [names[:count] for count in range(len(names) + 1)]


def page_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what all ways share, as JSON values, checked."""
    numbers = {name: getattr(args, name) for name in (
        "batch", "steps", "pairs", "max_length", "tokens_at_once", "threads"
    )}  # fmt: skip
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}", "give at least 1")
    if not args.limit > 0:
        raise ConfigError(f"--limit is {args.limit:g}", "give a number of seconds above 0")
    if numbers["pairs"] < numbers["batch"]:
        raise ConfigError(
            f"--pairs is {numbers['pairs']}, fewer than --batch {numbers['batch']}", "give more"
        )
    if not Path(args.model).is_dir():
        raise ConfigError(f"MODEL {args.model} is no folder", "name a model's folder on this disk")
    if args.data is not None:
        from decdpo.data.index import ShardIndex

        ShardIndex.load(args.data)
    data = None if args.data is None else str(args.data)
    return {"model": args.model, "data": data, "device": args.device, "lr": 1e-6, **numbers}


def _measure(spec: dict[str, Any], limit: float) -> dict[str, Any]:
    """Measure one way in a process of its own; what fails is said in its record."""
    with tempfile.TemporaryDirectory(prefix="decdpo-bench-") as folder:
        out = Path(folder) / "record.json"
        command = [sys.executable, "-m", "decdpo.benchmarks.step", json.dumps(spec), str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"with": spec["with"], "failed": f"not done after {limit:g} s"}
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
            return {"with": spec["with"], "failed": said[-1][:200]}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found

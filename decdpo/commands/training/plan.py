"""Say what a run will need before it is queued: memory, files and messages, with nothing loaded.

Shapes follow from the model's config.json, so that models of any size can be planned where they
would not fit. The memory is an estimate of the peak of the rank that hosts most agents, on the host
and, with --gpu-memory, on its GPU; the pairs of other than language models are not in it.
"""

import argparse
import json
from pathlib import Path

from decdpo.errors import ConfigError
from decdpo.report.plan_table import plan_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo plan``."""
    parser.add_argument("config", help="TOML file of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, metavar="N",
        help="tokens of the longest row (policy.tokens_at_once, or a pair of policy.max_length)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="what a rank may use; status 1 if it needs more"
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB",
        help="of a rank's GPU, which then holds all but messages and checkpoints",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 1 if something does not fit."""
    from decdpo.config import load
    from decdpo.config.places import find_paths

    if args.ranks < 1:
        raise ConfigError(f"--ranks is {args.ranks}", "give at least 1")
    if args.tokens is not None and args.tokens < 2:
        raise ConfigError(f"--tokens is {args.tokens}", "give at least 2")
    for flag, limit in (("--memory", args.memory), ("--gpu-memory", args.gpu_memory)):
        if limit is not None and not limit > 0:
            raise ConfigError(f"{flag} is {limit:g}", "give gigabytes above 0")
    config = find_paths(load(args.config, args.set), Path(args.config), lambda line: None)
    from decdpo.session.plan import plan

    page = plan(config, args.ranks, args.tokens)
    host = page["total_bytes"] if args.gpu_memory is None else page["host_bytes"]
    limits = (
        ("a rank", host, args.memory),
        ("its GPU", page["gpu_bytes"], args.gpu_memory),
    )
    page["doubts"] = [
        _over(*limit) for limit in limits if limit[2] is not None and limit[1] > limit[2] * 1e9
    ]
    page["fits"] = not page["doubts"]
    print(json.dumps(page, indent=1) if args.json else plan_table(page))
    return 0 if page["fits"] else 1


def _over(what: str, needed: int, limit: float) -> str:
    return (
        f"{what} needs {needed / 1e9:.1f} GB of {limit:g} GB: start more ranks, lower "
        'policy.max_length or policy.tokens_at_once, or set policy.dtype = "bfloat16" or '
        "policy.activation_checkpointing = true"
    )

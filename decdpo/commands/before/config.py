"""Print the effective configuration with the meaning of every key.

Without FILE it is the default experiment: a page to start from.
"""

import argparse
import json

from decdpo.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo config``."""
    parser.add_argument("file", nargs="?", help="TOML file; default: all defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    config = load(args.file, args.set)
    if args.json:
        import tomllib

        print(json.dumps(tomllib.loads(config.to_toml()), indent=2))
    else:
        print(config.to_toml(annotate=True), end="")
    return 0

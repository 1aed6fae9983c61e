"""The command line: one subcommand per module of ``decdpo.commands``."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from decdpo import __version__
from decdpo.commands.alone import by_one_process
from decdpo.errors import DecdpoError, of_system

COMMANDS = (
    "train",
    "resume",
    "shard",
    "synthesize",
    "topology",
    "theory",
    "evaluate",
    "export",
    "report",
    "study",
    "checkpoint",
    "doctor",
    "bench",
    "config",
)

EXIT_CODES = """exit status:
  0 done, 1 the run failed (NaN or infinity), 2 bad input, 3 no usable checkpoint,
  75 a neighbour was lost or stalled, 85 stopped early and can be resumed"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser; imports nothing heavy, so that ``--help`` is instant."""
    parser = argparse.ArgumentParser(
        prog="decdpo",
        description="Decentralized Direct Preference Optimization over MPI.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"decdpo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"decdpo.commands.{name}")
        text = (module.__doc__ or "").strip()
        sub = commands.add_parser(
            name,
            help=text.splitlines()[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=by_one_process(name, module.run))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one message, no traceback."""
    print_anything()
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except DecdpoError as fault:
        report(fault)
        return fault.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not our failure, and nothing to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as caught:
        # Whatever names a path looks at it in many places; a path that cannot even be looked at
        # (no permission, too long a name) is the user's to mend wherever that shows.
        named = of_system(caught)
        report(named)
        return named.exit_code
    except KeyboardInterrupt:
        return 130


def print_anything() -> None:
    """Let standard output and error print any name, escaped where their encoding lacks it.

    A name that a terminal cannot show must not end a command whose work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def report(fault: DecdpoError) -> None:
    """Print an error once, on the process that speaks for the job."""
    if not fault.silent:
        print(f"decdpo: error: {fault}", file=sys.stderr, flush=True)

"""The command line: run one subcommand, and turn a user's mistake into one message."""

import io
import os
import sys
from collections.abc import Sequence

from decdpo.errors import DecdpoError, of_system
from decdpo.parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one message, no traceback."""
    print_anything()
    args = parse(argv)
    if args is None:
        return 0
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

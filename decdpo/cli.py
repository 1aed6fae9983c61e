"""The command line: run one subcommand, and turn a user's mistake into one message."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from decdpo.comm.mpi.launch import is_first, let_the_first_report
from decdpo.errors import DecdpoError
from decdpo.parser import parse
from decdpo.signals import Interrupted, Signals
from decdpo.terminal import lasting_streams, open_what_is_closed, to_null

TRAINS = ("train", "resume")
"""Commands that listen to signals from their first moment on."""

WRITES_FILES = (*TRAINS, "shard", "synthesize", "export", "study")
"""Commands that go on when nobody reads what they print: their results are files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one message, no traceback."""
    first = next(iter(sys.argv[1:] if argv is None else argv), "")
    open_what_is_closed()
    # First of all, and before anything heavy is imported, which takes seconds.
    with Signals() if first in TRAINS else nullcontext() as signals:
        print_anything()
        with lasting_streams() if first in WRITES_FILES else nullcontext():
            return _run(argv, signals)


def _run(argv: Sequence[str] | None, signals: Signals | None) -> int:
    try:
        args = parse(argv)
        if args is None:
            return 0
        args.signals = signals
        require_working_directory()
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except DecdpoError as fault:
        report(fault)
        return fault.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not our failure, and nothing to say.
        to_null(sys.stdout)
        return 0
    except OSError as caught:
        # Whatever names a path looks at it in many places; a path that cannot even be looked at
        # (no permission, too long a name) is the user's to mend wherever that shows.
        from decdpo.files import os_fault

        named = os_fault(caught)
        report(named)
        return named.exit_code
    except Interrupted as caught:
        if is_first():
            print(f"decdpo: {caught}", file=sys.stderr, flush=True)
        return caught.code
    except KeyboardInterrupt:
        if is_first():
            print("decdpo: interrupted", file=sys.stderr, flush=True)
        return 130


def require_working_directory() -> None:
    """Raise ``EnvironmentFault`` if the working directory was removed: libraries fail there."""
    try:
        os.getcwd()
    except OSError as fault:
        let_the_first_report()
        from decdpo.files import os_fault

        raise os_fault(
            fault, "the working directory is gone", remedy="change to a folder that exists"
        ) from None


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
        if fault.saved:
            print(f"decdpo: {fault.saved}", file=sys.stderr, flush=True)

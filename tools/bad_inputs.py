"""Feed decdpo a page of bad inputs and print what it answers to each.

    python tools/bad_inputs.py [--only WORD]

Every case must end with its exit status and one clear message that says what is wrong, which value
and how to mend it: no traceback, no hang, no success. Exit status 0 if all do. The cases are in
``tools/bad_input_cases``, a module for each area: append a ``Case`` there to add a kind.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bad_input_cases import CASES
from bad_input_cases.steps import Case, rows, write

from decdpo.cli import main as decdpo

DATA = Path(__file__).resolve().parents[1] / "data" / "preferences.jsonl.gz"
LIMIT = 60
"""Seconds after which a command counts as hanging."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after so many seconds."""

    def expire(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(words: str) -> tuple[int | str, str]:
    """Run a command in this process; return its status and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            with limited(LIMIT):
                status: int | str = decdpo(words.split())
        except TimeoutError:
            status = "hang"
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as fault:
            status = f"{type(fault).__name__}: {fault}"
    return status, out.getvalue()


def faults(case: Case) -> tuple[list[str], str]:
    """Run a case in the current folder; return what is wrong with the answer, and the answer."""
    case.prepare()
    status, said = answer(case.words)
    wrong = [f"status {status}, not {case.status}"] if status != case.status else []
    wrong += [f"does not say {word!r}" for word in case.expect if word not in said]
    if "Traceback" in said:
        wrong.append("shows a traceback")
    if said.count("decdpo: error:") + said.count("decdpo checkpoint verify") < 1:
        wrong.append("says no error")
    return wrong, said


def make_folder(folder: Path) -> None:
    """Put a good configuration, good shards and a finished run into ``folder``."""
    shutil.copy(DATA, folder / "data.jsonl.gz")
    with contextlib.chdir(folder):
        good = '[data]\nshards = "shards"\n[run]\nrounds = 4\n[policy]\ndimension = 64\n'
        write("good.toml", good + "[checkpoint]\nevery = 2\n")
        # Without the score columns, which one of the losses needs.
        with gzip.open("data.jsonl.gz", "rt") as file:
            kept = [json.loads(line) for line in file]
        names = ("user", "prompt", "chosen", "rejected")
        write("plain.jsonl", rows(*({name: row[name] for name in names} for row in kept[::8])))
        for words in (
            "shard plain.jsonl --agents 8 --out shards",
            "train good.toml --out run",
        ):
            status, said = answer(words)
            if status != 0:
                raise SystemExit(f"decdpo {words}: status {status}\n{said}")


def main() -> int:
    """Run all cases and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has this word")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = count = 0
    with tempfile.TemporaryDirectory(prefix="decdpo-bad-") as work:
        template = Path(work, "template")
        template.mkdir()
        make_folder(template)
        for number, case in enumerate(CASES):
            if args.only not in case.name:
                continue
            folder = Path(work, str(number))
            shutil.copytree(template, folder)
            with contextlib.chdir(folder):
                wrong, said = faults(case)
            shutil.rmtree(folder)
            count += 1
            failed += bool(wrong)
            lines = [line for line in said.strip().splitlines() if line.strip()]
            print(f"{count:2d}. {case.name}: decdpo {case.words} -> {case.status}")
            print("".join(f"      {line}\n" for line in lines[-6:]), end="")
            if wrong:
                print(f"    WRONG: {'; '.join(wrong)}")
            sys.stdout.flush()
    print(f"{count - failed} of {count} answered well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Pack what a support desk needs to know of a run into one file.

It holds the configuration, versions, facts of the environment, checkpoints by their sizes, and the
last lines of records and logs that decdpo and launchers printed. It holds no pairs, prompts or
parameters, and secrets are blotted out; look into it before you send it.
"""

import argparse
import os
import sys
from pathlib import Path

from decdpo.errors import CheckpointError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo bundle``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(NAME OF RUN-bundle.tar.gz)")
    parser.add_argument(
        "--log", type=Path, action="append", default=[], metavar="FILE",
        help="take the last lines of this log, too",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    from decdpo.files import replacing
    from decdpo.session.bundle import bundle, pack
    from decdpo.session.record import other_runs

    if not args.folder.is_dir():
        raise CheckpointError(f"{args.folder} is not a run folder", other_runs(args.folder))
    for path in args.log:
        if not path.is_file():
            raise ConfigError(f"--log {path}: there is no such file", "name a log of the run")
    folder = Path(os.path.abspath(args.folder))
    name = folder.name
    out = args.out or Path(f"{name}-bundle.tar.gz")
    if out.exists():
        raise ConfigError(f"--out {out} exists", "name another file, or remove it")
    texts = bundle(folder, args.log)
    with replacing(out) as partial:
        partial.write_bytes(pack(texts, f"{name}-bundle"))
    print(out)
    for path, text in sorted(texts.items()):
        print(f"decdpo: {len(text.encode()):>8,} bytes  {path}", file=sys.stderr)
    print("decdpo: look into it before you send it: tar -xzOf", out, file=sys.stderr)
    return 0

"""Fill a job template in for one run, check it against what the run needs, and submit it.

TEMPLATE is a file, or train, chain, survive or container of the repository's jobs folder. The
filled script is kept beside the run, as RUN.slurm. What does not fit (more ranks than agents, too
little memory, GPUs that nobody uses, no time before the signal to stop) is named, and nothing is
submitted; the exit status is then 1. Submitting the same run again goes on with it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import decdpo
from decdpo.errors import ConfigError, EnvironmentFault

ASKED = {
    "nodes": "N", "ntasks-per-node": "N", "cpus-per-task": "N", "time": "LIMIT", "mem": "SIZE",
    "mem-per-cpu": "SIZE", "gpus-per-node": "N", "partition": "NAME", "account": "NAME",
    "qos": "NAME", "constraint": "NAME", "job-name": "NAME",
}  # fmt: skip
"""Options of sbatch that can be filled in."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo submit``."""
    parser.add_argument("template", metavar="TEMPLATE", help="train, chain, survive, a file, ...")
    parser.add_argument("config", metavar="CONFIG", help="TOML file of the run")
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder (runs/NAME OF CONFIG)")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key"
    )
    group = parser.add_argument_group("what to ask the queue for, instead of the template's")
    for name, what in ASKED.items():
        group.add_argument(f"--{name}", metavar=what)


def run(args: argparse.Namespace) -> int:
    """Submit; returns 1 if the job would not fit the run."""
    from decdpo.config import load
    from decdpo.config.places import find_paths
    from decdpo.files import read_text, replacing
    from decdpo.report.plan_table import size
    from decdpo.session.jobscript import check, fill, find_template

    home = Path(os.environ.get("DECDPO_HOME") or Path(decdpo.__file__).resolve().parents[1])
    template = find_template(args.template, home)
    out = args.out or Path("runs") / Path(args.config).stem
    if out.name in ("", ".."):
        raise ConfigError(
            f"--out {out} has no name to call the job script by", "name the folder: --out runs/ring"
        )
    given = {name: vars(args)[name.replace("-", "_")] for name in ASKED}
    wanted = {name: value for name, value in given.items() if value is not None}
    for name, value in wanted.items():
        if not value.strip() or set(value) & set(" \t\n#"):
            raise ConfigError(f"--{name} {value!r} cannot stand in a job script", "give one word")
    config = find_paths(load(args.config, args.set), Path(args.config), lambda line: None)
    script = fill(read_text(template), wanted)
    found = check(script, config)
    page = found.page
    most = page["agents_of_a_rank"]
    _say(
        f"{page['agents']} agents on {found.ranks} ranks, at most {most} on one: "
        f"{size(page['total_bytes'])} a rank, checkpoints of {size(page['checkpoint']['bytes'])}"
    )
    for note in found.notes:
        _say(note)
    for doubt in found.doubts:
        _say(f"does not fit: {doubt}")
    path = out.with_name(f"{out.name}.slurm")
    options = [word for override in args.set for word in ("--set", override)]
    command = ["sbatch", "--parsable", str(path), args.config, str(out), *options]
    if args.dry_run:
        print(script, end="")
        _say(f"would submit: {shlex.join(command)}")
    if found.doubts or args.dry_run:
        return 1 if found.doubts else 0
    if shutil.which("sbatch") is None:
        raise EnvironmentFault(
            "sbatch is not on PATH: this is no machine that submits jobs",
            "give the command on a login node, or look at the script with --dry-run",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=0o755) as partial:
        partial.write_text(script, encoding="utf-8")
    here = {"DECDPO_HOME": str(home), "DECDPO_VENV": sys.prefix}
    done = subprocess.run(
        command, env={**here, **os.environ}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EnvironmentFault(
            f"sbatch did not take {path}: {done.stderr.strip() or f'status {done.returncode}'}",
            "mend what it names, by the options of this command or in the template",
        )
    print(done.stdout.strip().partition(";")[0])
    _say(f"submitted {path}; the run will be in {out}, its starts in {out}.starts")
    return 0


def _say(line: str) -> None:
    print(f"decdpo: {line}", file=sys.stderr, flush=True)

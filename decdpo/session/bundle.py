"""What a support desk needs to know of a run, without what its user would not show.

Taken are the configuration, versions, facts of the environment, records, and lines of logs that
decdpo and launchers print. Not taken are pairs, prompts, tokens, parameters, names of users and
of their files' owners. Secrets that stand in any of it are blotted out.
"""

import io
import json
import os
import platform
import re
import resource
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from decdpo.checkpoint.format import Damaged, Manifest, committed
from decdpo.comm.machine import machine
from decdpo.errors import DecdpoError
from decdpo.files import read_text, reason
from decdpo.session.record import read_record, versions

LINES = 50
"""So many of the last lines of records and logs are taken."""
MOST_LOGS = 5

_OF_INTEREST = re.compile(
    r"(SLURM|OMP|OMPI|PRTE|PMIX|PMI|UCX|FI|MPICH|I_MPI|CUDA|NCCL|ROCR|HIP|HDF5|PYTORCH|TORCH|DECDPO"
    r"|MKL|OPENBLAS|KMP)_.*|PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|HF_HUB_OFFLINE|LANG|LC_ALL"
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE|SESSION_?ID|JWT", re.I)
_SECRET_TEXT = re.compile(
    r"\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA|AIza|ya29\.|eyJ)[\w.\-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=bearer )\S+)"
    r"|(?i:(?<=password=)\S+|(?<=token=)\S+|(?<=secret=)\S+|(?<=api_key=)\S+|(?<=apikey=)\S+)"
)
_OUR_LINES = re.compile(
    r"decdpo: |  (remedy|agents|device|cores|policy|pairs|method|graph|transport|run) |round \d"
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d job |(srun|slurmstepd|sbatch|scontrol|prterun|mpirun)[:\b]"
    r"|Traceback|  File |\[[\w.-]+:\d+\]"
)
_WORD = re.compile(r"(?<!\w)(['\"])[^\s'\"]{0,80}\1(?!\w)")
_QUOTED = re.compile(r"(?<!\w)['\"].*['\"](?!\w)|(?<!\w)['\"].*")
_BLOT = "[removed]"


def bundle(out: Path, logs: Sequence[Path] = (), environment: Mapping[str, str] = os.environ) -> (
    dict[str, str]
):
    """Return what is told of the run in ``out``, as texts by the names of files.

    logs : further files whose last lines are taken, beside those of the run's jobs.
    """
    secrets = _secrets(environment)
    found = dict(_parts(out, logs, environment))
    return {name: clean(text, secrets) for name, text in found.items() if text}


def pack(texts: Mapping[str, str], top: str) -> bytes:
    """Return a tar archive, gzipped, of texts by the names of their files, in a folder ``top``."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in sorted(texts.items()):
            data = text.encode(errors="backslashreplace")
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def clean(text: str, secrets: Sequence[str]) -> str:
    """Return a text without the ``secrets``, what looks like one, and the user's home and name."""
    for secret in secrets:
        text = text.replace(secret, _BLOT)
    text = _SECRET_TEXT.sub(_BLOT, text)
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")
    return text


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names say that they are secret, the longest first."""
    named = (value for name, value in environment.items() if _SECRET_NAME.search(name))
    return sorted({value for value in named if len(value) >= 6}, key=len, reverse=True)


def _parts(
    out: Path, logs: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    yield "config.toml", _text(out / "config.toml")
    record = _record(out)
    yield "run.json", json.dumps(record, indent=1)
    yield "environment.json", json.dumps(_environment(out, environment), indent=1)
    yield "checkpoints.json", json.dumps(list(_checkpoints(out)), indent=1)
    yield "files.txt", "".join(f"{line}\n" for line in _files(out))
    yield "metrics.jsonl", _last(out / "metrics.jsonl")
    yield "starts.txt", _last(out.with_name(f"{out.name}.starts"))
    for path in [*_logs(out, record), *logs]:
        yield f"logs/{path.name}", log_lines(_text(path))


def log_lines(text: str) -> str:
    """Return the last lines of a log that decdpo or a launcher printed, without quoted texts."""
    ours = [line for line in text.replace("\r", "\n").splitlines() if _OUR_LINES.match(line)]
    return "".join(without_texts(line) + "\n" for line in ours[-LINES:])


def without_texts(line: str) -> str:
    """Return a line without what it quotes, but for single words.

    All from the first quotation mark to the last one goes, since a quoted text may hold some.
    """
    words: list[str] = []

    def keep(match: re.Match[str]) -> str:
        words.append(match[0])
        return f"\0{len(words) - 1}\0"

    rest = _QUOTED.sub(_BLOT, _WORD.sub(keep, line.replace("\0", " ")))
    return re.sub(r"\0(\d+)\0", lambda match: words[int(match[1])], rest)


def _record(out: Path) -> dict[str, Any]:
    try:
        return read_record(out)[1]
    except DecdpoError as fault:
        return {"damaged": fault.what}


def _environment(out: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    disk = shutil.disk_usage(out)
    kept = {
        name: value
        for name, value in sorted(environment.items())
        if _OF_INTEREST.fullmatch(name) and not _SECRET_NAME.search(name)
    }
    return {
        "versions": versions(),
        "system": platform.platform(),
        "machine": machine("cpu"),
        "free_bytes": disk.free,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "variables": kept,
    }


def _checkpoints(out: Path) -> Iterator[dict[str, Any]]:
    try:
        found = committed(out / "checkpoints")
    except OSError as fault:
        yield {"unreadable": reason(fault)}
        return
    for round, folder in found.items():
        try:
            manifest = Manifest.read(folder)
        except Damaged as fault:
            yield {"round": round, "damaged": fault.what}
            continue
        parts = [[part.file, part.bytes, len(part.agents)] for part in manifest.parts]
        yield {"round": round, "created": manifest.created, "serial": manifest.serial,
               "identity": dict(manifest.identity), "parts": parts}  # fmt: skip


def _files(out: Path) -> Iterator[str]:
    """Yield size, age in seconds and name of every file of the run."""
    now = time.time()
    for path in sorted(out.rglob("*")):
        with suppress(OSError):
            known = path.lstat()
            yield f"{known.st_size:>14} {now - known.st_mtime:>10.0f} {path.relative_to(out)}"


def _logs(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Return the logs of the run's last jobs, where they are where SLURM puts them."""
    starts = record.get("starts")
    found: dict[Path, None] = {}
    for start in reversed(starts if isinstance(starts, list) else []):
        job, folder = start.get("job"), start.get("folder")
        if isinstance(job, str) and job.isdigit() and isinstance(folder, str):
            for path in sorted(Path(folder).glob(f"*{job}*.out")):
                found[path] = None
    return list(found)[:MOST_LOGS]


def _last(path: Path) -> str:
    return "".join(f"{line}\n" for line in _text(path).splitlines()[-LINES:])


def _text(path: Path) -> str:
    """Return the text of a file; nothing if there is none, the reason if it cannot be read."""
    try:
        return read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as fault:
        return f"unreadable: {reason(fault)}\n"

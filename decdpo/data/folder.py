"""The folder of a sharding: it appears as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from decdpo.data.cache import REFERENCE, TOKENS
from decdpo.data.index import FILE_NAME, FORMAT
from decdpo.data.trajectories import FEATURES_FILE
from decdpo.errors import DataError, EnvironmentFault
from decdpo.files import WRITING, os_fault, sync


def require_room(out: Path, force: bool) -> None:
    """Raise ``DataError`` unless ``out`` is free, or holds nothing but shards that may go."""
    try:
        present = set(os.listdir(out))
    except FileNotFoundError:
        present = set()
    except NotADirectoryError:
        raise DataError(f"{out} is a file, or is in one", "give another folder to --out") from None
    except OSError as fault:
        raise os_fault(
            fault, f"{out} cannot be used", remedy="give another folder to --out", kind=DataError
        ) from None
    if not present:
        return
    if not force:
        raise DataError(
            f"{out} is not empty", "give another folder, or replace its shards with --force"
        )
    ours = (FILE_NAME, FEATURES_FILE, REFERENCE)
    shards = {n for n in present if n.startswith("agent_") and n.endswith((".h5", TOKENS))}
    foreign = sorted(present - shards - set(ours))
    index = out / FILE_NAME
    if foreign or not index.is_file() or FORMAT.encode() not in index.read_bytes():
        raise DataError(
            f"{out} holds more than shards{': ' + foreign[0] if foreign else ''}",
            "give another folder: --force replaces shards only",
        )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out`` (mode 0700); it is removed if it was not renamed.

    Raises ``EnvironmentFault`` if it cannot be written, or what is to be written is too large.
    """
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        yield folder
    except OSError as error:
        raise os_fault(error, f"cannot write shards to {out}", remedy=WRITING) from error
    except MemoryError:
        raise EnvironmentFault(
            f"the shards for {out} do not fit into memory", "ask for fewer or smaller ones"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, out: Path) -> None:
    """Give a staged ``folder`` the name ``out``, in place of what was there.

    Reference values are taken along: pairs that are dealt anew need not be scored again, and no
    text can be read from them. Tokens are not: they are the texts of pairs that may be gone.
    """
    old = folder.with_suffix(".old")
    if out.exists():
        with suppress(FileNotFoundError):
            os.rename(out / REFERENCE, folder / REFERENCE)
        os.rename(out, old)
    os.rename(folder, out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)

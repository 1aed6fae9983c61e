"""Data sets by their names on the Hugging Face hub, fetched into its cache."""

import re
from collections.abc import Callable
from pathlib import Path

from decdpo.data.ingest.files.places import DATA
from decdpo.errors import DataError, EnvironmentFault

_NAME = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.=-]+)*)(?:@([\w./-]+))?")


def fetch(name: str, progress: Callable[[str], None]) -> Path:
    """Fetch the data files of a set, and return the folder they are in.

    name : OWNER/NAME, with a folder of it behind if not all is wanted, and @REVISION:
        "Anthropic/hh-rlhf/harmless-base@main".
    progress : called with the revision, which names the data for good.

    Raises ``DataError`` if the name is none or its files cannot be fetched; ``EnvironmentFault`` if
    huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise EnvironmentFault(
            f"{name} is to come from the hub, which needs huggingface_hub",
            "install it with `pip install decdpo[hf]`",
        ) from None
    parts = _NAME.fullmatch(name)
    if parts is None or ".." in name:
        raise DataError(
            f"{name} is neither a path that exists nor a name on the hub",
            "names are OWNER/NAME, OWNER/NAME/FOLDER, OWNER/NAME@REVISION",
        )
    repository, below, revision = parts[1], parts[2].strip("/"), parts[3]
    prefix = f"{below}/" if below else ""
    try:
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{prefix}*{ending}" for ending in DATA],
        )
    # Whatever the client raises (of its transport, of the hub's answers, of the disk) means this.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name} cannot be fetched from the hub: {reason}",
            "check the name and the network; or fetch it elsewhere and give its files",
        ) from error
    progress(f"{name} from the hub, revision {Path(folder).name}")
    if not (Path(folder) / below).is_dir():
        raise DataError(f"{name}: there are no data files in it", "name another folder of it")
    return Path(folder) / below

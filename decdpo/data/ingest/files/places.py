"""Where sources lie: files, folders of files, folders of ``datasets.save_to_disk``, hub names."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from decdpo.errors import DataError
from decdpo.files import Malformed, read_checked, reason

_KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
DATA = tuple(kind + packed for kind in _KINDS for packed in _PACKED)
"""How the names of data files in a folder end."""

# Files beside data that describe them.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
T = TypeVar("T")
Name = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\0]+$", max_length=255)]
"""A name in the same folder, as a file may give it."""


@dataclass(frozen=True)
class DataFile:
    """One entry of state.json."""

    filename: Name


@dataclass(frozen=True)
class State:
    """What ``save_to_disk`` says of the files of a set, in state.json."""

    _data_files: Annotated[tuple[DataFile, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class Index:
    """What it says there of an index of rows, if the set has one."""

    _indices_data_files: list[Any] | None = None


@dataclass(frozen=True)
class Splits:
    """What it says of the folders of a set, in dataset_dict.json."""

    splits: Annotated[tuple[Name, ...], Meta(min_length=1)]


_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}\.")


def files_of(
    sources: Sequence[Path | str],
    split: str | None = None,
    fetch: Callable[[str], Path] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Return the files to read, with every folder replaced by the data files in it.

    Parameters
    ----------
    split : which split of folders is read, such as "train"; None: they must hold no more than one.
    fetch : returns the folder of a name that is no path, from a hub; None: such names are refused.
    progress : called with what else lies in a folder.

    Raises ``DataError`` if there is nothing to read at a place, a folder holds several splits and
    none is named, or a file would be read twice: its pairs would be trained on and held out alike.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if fetch is not None and not os.path.exists(path):
            path = fetch(str(source))
        # os.path answers no where a path cannot be looked at; its reader says why.
        found += _files(path, split, progress) if os.path.isdir(path) else [path]
    if split is not None and not any(map(os.path.isdir, sources)) and not fetch:
        raise DataError(f"--split {split}, but the sources are files", "leave --split out")
    seen: dict[str, Path] = {}
    for path in found:
        first = seen.setdefault(os.path.realpath(path), path)
        if first is not path:
            raise DataError(f"{path} and {first} are the same file", "name each source once")
    return found


def _files(folder: Path, split: str | None, progress: Callable[[str], None]) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        return _saved(_split_folder(folder, split))
    if (folder / "state.json").is_file():
        return _saved(folder)
    if (folder / "index.json").is_file() and any(folder.glob("agent_*.h5")):
        raise DataError(f"{folder} holds shards, not sources", "name what they were made from")
    splits: dict[str, list[Path]] = {}
    others = []
    for path in _walk(folder):
        if path.name.endswith(DATA) and path.name not in _ABOUT:
            splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
        else:
            others.append(str(path.relative_to(folder)))
    if not splits:
        raise DataError(f"{folder} holds no data files", f"their names end in {', '.join(_KINDS)}")
    if others:
        progress(f"{folder}: not read: {', '.join(others[:10])}{', ...' if others[10:] else ''}")
    return splits[_one_split(folder, {name: len(files) for name, files in splits.items()}, split)]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names, without hidden ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _split_of(path: Path) -> str:
    """Return the split that a file belongs to by its name or its folders, or ""."""
    numbered = _NUMBERED.match(path.name)
    if numbered:
        return _SPLITS.get(numbered[1], numbered[1])
    words = re.split(r"[^a-z0-9]+", str(path).lower())
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), "")


def _one_split(folder: Path, splits: dict[str, int], split: str | None) -> str:
    """Return the split to read: the one that is named, or the only one.

    Files that name no split are the training split, if there are no others.
    """
    if len(splits) == 1 and (split is None or list(splits) == [""] and split == "train"):
        return next(iter(splits))
    for name in (split, _SPLITS.get(split)) if split else ():
        if name in splits:
            return name
    held = ", ".join(f"{name or 'none named'} ({count})" for name, count in splits.items())
    if split is not None:
        what = f"{folder} holds no split {split!r}; files by split: {held}"
        raise DataError(what, "name another")
    raise DataError(
        f"{folder} holds files of several splits: {held}",
        "name the one to train on, such as --split train, or give its files",
    )


def _split_folder(folder: Path, split: str | None) -> Path:
    splits = _described(folder / "dataset_dict.json", Splits, "names no splits").splits
    return folder / _one_split(folder, {name: 1 for name in splits}, split)


def _saved(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder of ``datasets.save_to_disk``, in their order."""
    index = _described(folder / "state.json", Index, "names no data files")
    if index._indices_data_files:
        raise DataError(
            f"{folder} was saved with an index of rows, which is not read",
            "save it again after flatten_indices()",
        )
    state = _described(folder / "state.json", State, "names no data files")
    return [folder / file.filename for file in state._data_files]


def _described(path: Path, kind: type[T], fault: str) -> T:
    """Return what ``datasets`` says of a saved set; ``fault`` is said if it is of another form."""
    try:
        return read_checked(path, kind)
    except Malformed as error:
        raise DataError(f"{path} {fault}: {error}", "save the set again") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {reason(error)}", "save the set again"
        ) from error

"""A source file that was opened and looked at, and what its columns are used for."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decdpo.data.ingest.files.sources import Record, records
from decdpo.data.ingest.formats.values import Unusable, name_of
from decdpo.errors import DataError

_SAMPLE = 100


class Opened:
    """A source whose first records are known; it is read once, since it may be a pipe.

    path : of the file. head : its first records; a string in place of one says why there is none.

    Raises ``DataError`` if the file cannot be read, or is of no known kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = records(path)
        self.head = list(itertools.islice(self._stream, _SAMPLE))

    def sample(self) -> list[Record]:
        """Return the records among the first. Raises ``DataError`` if there are none."""
        sample = [record for record in self.head if not isinstance(record, str)]
        if not sample:
            why = f": what stands there is {self.head[0]}" if self.head else ""
            raise DataError(
                f"{self.path} holds no record{why}", "give a file with at least one record"
            )
        return sample

    def records(self) -> Iterator[Record | str]:
        """Yield all records, the first among them. To be called once."""
        return itertools.chain(self.head, self._stream)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of the file before errors about what is in it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error.what}", error.remedy) from None


def used_columns(
    roles: Mapping[str, tuple[str, ...]],
    wanted: Mapping[str, str | None],
    met: Mapping[str, None],
) -> dict[str, Any]:
    """Return what the columns of one file were used for, and which were not used.

    roles : what its format uses. wanted : columns of the partition and the hold-out, by use.
    met : the columns that the file has.
    """
    used = {role: list(names) for role, names in roles.items()}
    used.update((use, [name]) for use, name in wanted.items() if name is not None and name in met)
    # A key of an object in a column stands for the column.
    named = {name for names in used.values() for name in names}
    named |= {name.split(".")[0] for name in named if name not in met}
    return {"columns_used": used, "columns_unused": [name for name in met if name not in named]}


def values_of(
    record: Record | str, user: str | None, stem: str, wanted: Mapping[str, str | None]
) -> list[str] | str:
    """Return the values of the partition's and the group's column; a string says what is wrong."""
    found: list[str] = []
    for column in wanted.values():
        value: str | None = ""
        if column is not None and isinstance(record, dict):
            value = stem if column == "file" else user if column == "user" else None
            try:
                # A file may have a column of that name that nobody was read from.
                value = value or name_of(record.get(column))
            except Unusable as error:
                return f"{column} {error}"
        if value is None:
            return f"no {column}"
        found.append(value)
    return found

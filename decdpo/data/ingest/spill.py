"""Pairs on their way from the sources to the shards: texts on disk, numbers in memory."""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from decdpo.data.ingest.formats.answers import Judgment
from decdpo.data.shard import row_of

_PART = 1 << 22
_NUMBERS = ("score_chosen", "score_rejected", "weight")
_FEATURES = ("chosen_features", "rejected_features")


class Names:
    """Strings as small integers, in order of first appearance."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._values = array("i")

    def add(self, name: str) -> None:
        """Append the code of one more value."""
        code = self._codes.setdefault(name, len(self.names))
        if code == len(self.names):
            self.names.append(name)
        self._values.append(code)

    @property
    def codes(self) -> np.ndarray:
        """(n,) int32 codes, indices into ``names``."""
        return np.array(self._values, dtype=np.int32)


class PairStore:
    """Append all pairs, then read any of them back.

    Texts go to a nameless temporary file that vanishes with the process; about 100 bytes a pair
    (and its explicit features) stay in memory.

    Parameters
    ----------
    folder : where the temporary file is made; it needs room for the texts.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._end = 0
        self.files: list[str] = []
        self._starts: list[int] = []
        self._edges = array("q")
        self._rows = array("q")
        self._second = array("b")
        self._numbers = {name: array("d") for name in _NUMBERS}
        self._features = {name: array("d") for name in _FEATURES}
        self._width: int | None = None
        self.users = Names()
        self.keys = Names()
        self.groups = Names()

    def __len__(self) -> int:
        return len(self._rows)

    def start_file(self, name: str, rows_before: int) -> None:
        """Say that the rows after the first ``rows_before`` belong to the file ``name``."""
        self.files.append(name)
        self._starts.append(rows_before)

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def add(self, item: Judgment, source_row: int, key: str, group: str) -> str | None:
        """Append one pair; return why it does not fit the others, or None.

        source_row : counted from 1 over all files.
        key : value of the partition's column. group : value of the hold-out's column.
        """
        width = len(item.chosen_features or ())
        if self._width is not None and width != self._width:
            return "features of another length"
        self._width = width
        for name in _FEATURES:
            self._features[name].extend(getattr(item, name) or ())
        self._edges.append(self._end)
        texts = [text.encode() for text in (item.prompt, item.chosen, item.rejected)]
        self._file.write(b"".join(texts))
        for data in texts:
            self._end += len(data)
            self._edges.append(self._end)
        for name in _NUMBERS:
            value = getattr(item, name)
            self._numbers[name].append(np.nan if value is None else value)
        self._rows.append(source_row)
        self._second.append(item.second)
        self.users.add(item.user or "")
        self.keys.add(key)
        self.groups.add(group)
        return None

    @property
    def edges(self) -> np.ndarray:
        """(n, 4) int64 places in the temporary file: prompt, chosen and rejected between them."""
        return np.frombuffer(self._edges, dtype=np.int64).reshape(-1, 4)

    @property
    def source_rows(self) -> np.ndarray:
        """(n,) int64 source row of each pair, counted from 1 over all files."""
        return np.frombuffer(self._rows, dtype=np.int64)

    def places(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the file (index into ``files``) and the row in it, from 1, of some pairs."""
        starts, rows = np.array(self._starts), self.source_rows[pairs]
        files = np.searchsorted(starts, rows, side="left") - 1
        return files, rows - starts[files]

    def place(self, pair: int) -> str:
        """Return the source row of a pair in words: "7", or "7 of b.jsonl" of several files."""
        files, rows = self.places(np.array([pair]))
        return row_of(int(rows[0]), self.files[files[0]] if len(self.files) > 1 else "")

    @property
    def second(self) -> np.ndarray:
        """(n,) bool: whether the answer the source names second was preferred."""
        return np.array(self._second, dtype=bool)

    def incomplete(self) -> dict[str, int]:
        """Return the columns that only some pairs have, with the number of pairs that lack them."""
        missing = {name: int(np.isnan(values).sum()) for name, values in self._numbers.items()}
        return {name: count for name, count in missing.items() if 0 < count < len(self)}

    def columns(self) -> dict[str, np.ndarray]:
        """Return the complete optional columns, each (n,) or (n, d) float64."""
        found = {name: np.frombuffer(values) for name, values in self._numbers.items()}
        found = {name: values for name, values in found.items() if not np.isnan(values).any()}
        if self._width:
            for name, values in self._features.items():
                found[name] = np.frombuffer(values).reshape(-1, self._width)
        return found

    def prompts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return the prompts of some pairs."""
        self._file.flush()
        edges = self.edges[rows]
        return [self._read(start, end).decode() for start, end in edges[:, :2].tolist()]

    def text(self, rows: np.ndarray) -> Iterator[bytes]:
        """Yield the texts of some pairs end to end, in parts of a few MiB."""
        self._file.flush()
        # Pairs that follow each other in the file are read at once.
        spans: list[list[int]] = []
        size = 0
        for start, end in self.edges[rows][:, [0, 3]].tolist():
            if spans and spans[-1][1] == start:
                spans[-1][1] = end
            else:
                spans.append([start, end])
            size += end - start
            if size >= _PART:
                yield b"".join(self._read(*span) for span in spans)
                spans, size = [], 0
        if spans:
            yield b"".join(self._read(*span) for span in spans)

    def _read(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - start, start)

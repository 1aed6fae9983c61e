"""The different texts of a source: each once on disk, known in memory by a number."""

import os
import tempfile
from array import array
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

_READ_AT_ONCE = 4096


class Texts:
    """Number texts, and read any back; those equal but for white space at their ends are one.

    They go to a nameless temporary file that vanishes with the process; about 150 bytes for each
    different text stay in memory.

    Parameters
    ----------
    folder : where the temporary file is made; it needs room for the texts.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._codes: dict[bytes, int] = {}
        self._edges = array("q", [0])
        self._flushed = 0
        self.text = lru_cache(_READ_AT_ONCE)(self._text)

    def __len__(self) -> int:
        return len(self._codes)

    def add(self, text: str) -> int:
        """Return the number of a text, which is a new one if the text is."""
        data = text.encode()
        digest = blake2b(data.strip(), digest_size=16).digest()
        code = self._codes.setdefault(digest, len(self._codes))
        if code == len(self._edges) - 1:
            self._file.write(data)
            self._edges.append(self._edges[-1] + len(data))
        return code

    def digests(self) -> list[bytes]:
        """Return the digest of each text by its number."""
        return list(self._codes)

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _text(self, code: int) -> str:
        start, end = self._edges[code], self._edges[code + 1]
        if end > self._flushed:
            self._file.flush()
            self._flushed = self._edges[-1]
        return os.pread(self._file.fileno(), end - start, start).decode()

"""Parquet files, Arrow files and Arrow streams to records, by pyarrow."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decdpo.errors import DataError, EnvironmentFault

_BATCH = 1024
_PART = 1 << 24
# What pyarrow raises beside its own errors: texts that are not UTF-8, sizes beyond all memory.
_DAMAGE = (ValueError, LookupError, TypeError, MemoryError, OverflowError)
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file; it must lie on a disk, since its index is at its end.

    Raises ``DataError`` if it is damaged or no regular file; ``EnvironmentFault`` without pyarrow.
    """
    pyarrow = _pyarrow(path, "a Parquet file")
    from pyarrow.parquet import ParquetFile

    if not path.is_file():
        raise DataError(
            f"{path} is Parquet in a pipe, which cannot be read from its beginning alone",
            "give the file itself",
        )
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        raise _damaged(path, error) from error


def arrow_records(path: Path, head: bytes, stream: io.BufferedReader) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file, or of an Arrow stream as ``datasets`` writes them.

    Raises ``DataError`` if it is damaged; ``EnvironmentFault`` without pyarrow.
    """
    pyarrow = _pyarrow(path, "an Arrow file")
    try:
        if head.startswith(b"ARROW1"):
            # The file format is its stream between the magic, padded to 8 bytes, and a footer.
            stream.read(8)
        ending = _Ending(stream)
        with pyarrow.ipc.open_stream(pyarrow.PythonFile(ending, mode="r")) as reader:
            for batch in reader:
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        raise _damaged(path, error) from error
    if ending.last != _END:
        raise DataError(f"{path} is cut off: it has no end mark", "fetch the file again")


class _Ending:
    """A stream that remembers the last bytes read: pyarrow takes a cut stream for a whole one."""

    closed = False

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        parts, missing = [], size
        # Room is made for what comes, not for what a damaged stream says will come.
        while missing > 0 and (part := self._stream.read(min(missing, _PART))):
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self.last = (self.last + data[-len(_END) :])[-len(_END) :]
        return data


def _pyarrow(path: Path, what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise EnvironmentFault(
            f"{path} is {what}, which needs pyarrow",
            "install it with `pip install decdpo[parquet]`",
        ) from None
    return pyarrow


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path} cannot be read: {reason}", "fetch the file again")

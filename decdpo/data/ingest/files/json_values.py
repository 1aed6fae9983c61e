"""JSON to records: one object a line, arrays, objects over many lines, several in a row.

Values are decoded by ``json`` out of a window on the file, so that memory does not grow with it.
A parser of events such as ijson was measured and not taken: its fast backend refuses NaN and
integers above 64 bits, writes "?" for half a surrogate pair, and needs memory that grows with the
square of the nesting.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from decdpo.data.ingest.files.streams import LARGEST_RECORD, Text
from decdpo.errors import DataError

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n\ufeff\x1e]*")
# The longest token that may be cut at the end of a window without being a string: "-Infinity",
# or an escape of a surrogate pair.
_LONGEST_TOKEN = 16


def json_records(text: Text) -> Iterator[dict[str, Any] | str]:
    """Yield the objects of all values; a string stands for a value that is no object.

    Raises ``DataError`` with line, column and row for whatever is not JSON, up to the last byte.
    """
    window = _Window(text)
    while mark := window.next():
        if mark == "[":
            yield from _elements(window)
        else:
            yield window.value()


def _elements(window: "_Window") -> Iterator[dict[str, Any] | str]:
    window.skip()
    if window.next() == "]":
        window.skip()
        return
    while True:
        yield window.value()
        mark = window.next()
        if mark not in (",", "]"):
            end = "" if mark else "; the file may be cut off"
            raise window.fault(f"',' or ']' is missing after an element of the array{end}")
        window.skip()
        if mark == "]":
            return


class _Window:
    """The part of a text that is being decoded."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._position = 0
        self._lines = 0
        self._columns = 0
        self._rows = 0

    def next(self) -> str:
        """Return the next character that is no white space, or "" at the end."""
        while True:
            gap = _SPACE.match(self._buffer, self._position)
            assert gap is not None, "the pattern matches nothing at all, too"
            self._position = gap.end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def skip(self) -> None:
        """Step over one character."""
        self._position += 1

    def value(self) -> dict[str, Any] | str:
        """Return the value that comes next if it is an object, or what it is."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except RecursionError:
                raise self.fault("nested too deeply") from None
            except json.JSONDecodeError as error:
                whole = error.pos < len(self._buffer) - _LONGEST_TOKEN
                if whole and not error.msg.startswith("Unterminated") or not self._fill():
                    raise self.fault(error.msg, error.pos) from None
                continue
            # A number may go on behind the window.
            near = end > len(self._buffer) - _LONGEST_TOKEN
            if near and isinstance(value, (int, float)) and self._fill():
                continue
            self._position = end
            self._rows += 1
            return value if isinstance(value, dict) else "not an object"

    def fault(self, what: str, position: int | None = None) -> DataError:
        """Make the error for what stands at ``position``, by default the next character."""
        position = self._position if position is None else position
        line = self._lines + self._buffer.count("\n", 0, position) + 1
        start = self._buffer.rfind("\n", 0, position) + 1
        column = position - start + 1 + (self._columns if start == 0 else 0)
        return DataError(
            f"{self._text.path}, line {line}, column {column} (row {self._rows + 1}): "
            f"not JSON ({what})",
            "mend that place; check whether the file is cut off",
        )

    def _fill(self) -> bool:
        """Read on, and forget what was decoded. Return whether anything came."""
        if len(self._buffer) - self._position > LARGEST_RECORD:
            return False
        # Reading as much again as there is keeps the work linear in the value's length.
        more = self._text.read(max(_CHUNK, len(self._buffer) - self._position))
        if not more:
            return False
        done = self._buffer[: self._position]
        breaks = done.count("\n")
        self._columns = len(done) - (done.rfind("\n") + 1) + (0 if breaks else self._columns)
        self._lines += breaks
        self._buffer, self._position = self._buffer[self._position :] + more, 0
        return True

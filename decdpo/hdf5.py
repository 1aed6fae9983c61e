"""Reads HDF5 files that may be damaged or forged: what they declare is checked before it is read.

HDF5 can do far more than this project writes: its data may lie in other files or in pipes, be
computed by filters, or be declared larger than any memory. Here a file holds groups and contiguous
numbers within its own bytes, reached by hard links, and small attributes; all else is refused.
"""

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t

from decdpo.files import open_regular

UNSOUND = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError)
"""What h5py raises for a file that is damaged, wherever the damage is first met."""

OF_THE_SYSTEM = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR}
"""Errors that say nothing of the file."""

_NUMBERS = (h5t.INTEGER, h5t.FLOAT)
_VALUES = (*_NUMBERS, h5t.STRING, h5t.ENUM)
_MOST_VALUES = 64
_LONGEST = 1 << 24


class Unsound(ValueError):
    """A part of a file that this project never writes; the text says which and why."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[h5py.File, int]]:
    """Open a file to read; yield it and its size in bytes.

    Raises ``OSError`` or another of ``UNSOUND`` if it is no regular or no HDF5 file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    with h5py.File(path, "r", libver="latest", locking=False) as file:
        yield file, size


def holds(group: h5py.Group, name: str) -> bool:
    """Say whether there is something called ``name`` in ``group`` itself.

    Raises ``Unsound`` if it is a soft or an external link.
    """
    key, links = name.encode(), group.id.links
    if not links.exists(key):
        return False
    if links.get_info(key).type != h5l.TYPE_HARD:
        raise Unsound(f"{name} is a link to something else")
    return True


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Return the group called ``name``. Raises ``Unsound`` if there is none."""
    found = group[name] if holds(group, name) else None
    if not isinstance(found, h5py.Group):
        raise Unsound(f"there is no group {name}")
    return found


def dataset(group: h5py.Group, name: str, file_size: int) -> h5py.Dataset | None:
    """Return the dataset called ``name``, None if there is nothing of that name.

    Raises ``Unsound`` unless it holds integers or floats, in one piece within the ``file_size``
    bytes of its file.
    """
    if not holds(group, name):
        return None
    found = h5d.open(group.id, name.encode())
    kind, properties = found.get_type(), found.get_create_plist()
    if kind.get_class() not in _NUMBERS:
        raise Unsound(f"{name} does not hold numbers")
    if properties.get_layout() != h5d.CONTIGUOUS or properties.get_external_count():
        raise Unsound(f"{name} is stored in chunks, compressed, or in another file")
    nbytes = math.prod(found.shape) * kind.get_size()
    start = found.get_offset() if nbytes else 0
    if start is None or start + nbytes > file_size or nbytes != found.get_storage_size():
        raise Unsound(f"{name} is declared with {nbytes} bytes, which are not in the file")
    return h5py.Dataset(found)


def attributes(owner: h5py.Group | h5py.Dataset) -> list[str]:
    """Return the names of the attributes of a group or dataset."""
    return [str(name) for name in owner.attrs]


def attribute(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return the attribute ``name``: a string, number, boolean or array of few numbers, or None.

    Raises ``Unsound`` if it is another kind of thing, ``KeyError`` if there is none.
    """
    found = h5a.open(owner.id, name.encode())
    kind, space = found.get_type(), found.get_space()
    if kind.get_class() not in _VALUES:
        raise Unsound(f"the attribute {name} is neither text nor a number")
    extent = space.get_simple_extent_type()
    if extent == h5s.NULL:
        return None
    shape = space.get_simple_extent_dims() if extent == h5s.SIMPLE else ()
    if math.prod(shape) > _MOST_VALUES or kind.get_size() > _LONGEST:
        raise Unsound(f"the attribute {name} is too large")
    values = np.empty(shape, dtype=kind.dtype)
    if values.size:
        found.read(values, mtype=h5t.py_create(values.dtype))
    if kind.get_class() == h5t.STRING:
        return values[()].decode() if isinstance(values[()], bytes) else str(values[()])
    return values if shape else values[()]


def text(owner: h5py.Group | h5py.Dataset, name: str) -> str:
    """Return an attribute that is text. Raises ``Unsound`` if it is not."""
    value = attribute(owner, name)
    if not isinstance(value, str):
        raise Unsound(f"the attribute {name} is no text")
    return value


def whole(owner: h5py.Group | h5py.Dataset, name: str) -> int:
    """Return an attribute that is an integer. Raises ``Unsound`` if it is not."""
    value = attribute(owner, name)
    if not isinstance(value, np.integer):
        raise Unsound(f"the attribute {name} is no integer")
    return int(value)

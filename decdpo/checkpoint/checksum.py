"""CRC-32 of whole files, also put together from those of their pieces."""

import errno
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from zlib_ng.zlib_ng import crc32

from decdpo.files import open_regular

_CHUNK = 1 << 18
_ZEROS = memoryview(bytes(_CHUNK))


def checksum_of(descriptor: int, offset: int, length: int) -> int:
    """Return the CRC-32 of ``length`` bytes of a file from ``offset`` on, read piece by piece."""
    return _crc_range(descriptor, offset, offset + length, 0)


def checksum_around(descriptor: int, large: Sequence[tuple[int, int, int]]) -> int:
    """Return the CRC-32 of a file, reading only what lies around the datasets already known."""
    crc, position = 0, 0
    for offset, length, known in large:
        crc = _crc_range(descriptor, position, offset, crc)
        crc = combine(crc, known, length)
        position = offset + length
    return _crc_range(descriptor, position, os.fstat(descriptor).st_size, crc)


def _crc_range(descriptor: int, start: int, end: int, crc: int) -> int:
    """Return the CRC-32 of what ``crc`` is of and the bytes of a file from ``start`` to ``end``.

    What HDF5 leaves out to align tensors are holes of the file: they are not read, for that would
    give them pages.
    """
    if start < end and (size := os.fstat(descriptor).st_size) < end:
        raise OSError(f"the file ends at byte {size}, expected {end}")
    buffer = memoryview(bytearray(min(_CHUNK, max(end - start, 0))))
    while start < end:
        data = _seek(descriptor, start, os.SEEK_DATA, end)
        crc, start = _crc_of_zeros(data - start, crc), data
        stop = _seek(descriptor, start, os.SEEK_HOLE, end)
        while start < stop:
            count = os.preadv(descriptor, [buffer[: stop - start]], start)
            if not count:
                raise OSError(f"the file ends at byte {start}, expected {end}")
            crc = crc32(buffer[:count], crc)
            start += count
    return crc


def _seek(descriptor: int, start: int, whence: int, end: int) -> int:
    """Return where the next data or hole from ``start`` on begins, at most ``end``."""
    if start >= end:
        return end
    try:
        return min(os.lseek(descriptor, start, whence), end)
    except OSError as fault:
        if fault.errno != errno.ENXIO:
            raise
        return end  # there is none before the end of the file


def _crc_of_zeros(length: int, crc: int) -> int:
    while length:
        crc = crc32(_ZEROS[:length], crc)
        length -= min(length, len(_ZEROS))
    return crc


def file_crc(path: Path) -> int:
    """Return the CRC-32 of a whole file."""
    with open_regular(path) as file:
        descriptor = file.fileno()
        return _crc_range(descriptor, 0, os.fstat(descriptor).st_size, 0)


def combine(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of A + B from those of A and of B, where B has ``length`` bytes.

    CRCs are polynomials over GF(2) modulo P, so that crc(A + B) = crc(A) x^(8 length) + crc(B).
    """
    return _multiply(first, _power(length)) ^ second


@lru_cache(maxsize=256)
def _power(length: int) -> int:
    """Return x^(8 length) modulo P, by repeated squaring; the lengths in a file are few."""
    power, square = 1 << 31, 1 << 23  # x^0 and x^8, the highest bit being the lowest power
    while length:
        if length & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        length >>= 1
    return power


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product

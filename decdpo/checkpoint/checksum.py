"""CRC-32 of whole files, also put together from those of their pieces."""

import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from decdpo.files import open_regular

_CHUNK = 4 << 20


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
    while start < end:
        chunk = os.pread(descriptor, min(_CHUNK, end - start), start)
        if not chunk:
            raise OSError(f"the file ends at byte {start}, expected {end}")
        crc = zlib.crc32(chunk, crc)
        start += len(chunk)
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

"""One message as it lies in memory: 64 bytes of header, then the vector."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import EnvironmentFault
from decdpo.messages import BLOCK

HEADER = 64
MAGIC = 0x6F70_6463_6564_0001
"""First word of every message: "decdpo" and the version of this format."""
_MAGIC, _DIGEST, _ROUND, _SOURCE, _SIZE = 0, slice(1, 3), 3, 4, 5
STAMP = 7
"""The header word in which a slot in shared memory says how much of a round it holds."""


@dataclass(frozen=True)
class Format:
    """What all messages of one exchange have in common.

    size : M, values in the vector. dtype : of the values. digest : names the parameter layout.
    chunk_bytes : about how many bytes travel as one message; cut at multiples of ``BLOCK`` values,
    so that mixing a chunk gives the bits that mixing the whole vector gives. apart : the header
    travels from host memory as a chunk of its own, before the first values, which lie on a device.
    """

    size: int
    dtype: torch.dtype
    digest: str
    chunk_bytes: int
    apart: bool = False

    @cached_property
    def nbytes(self) -> int:
        """Bytes of header and vector."""
        return HEADER + self.size * self.dtype.itemsize

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """The values in each chunk; at least one chunk, be it empty."""
        starts = range(0, max(self.size, 1), self.step)
        parts = tuple(slice(lo, min(lo + self.step, self.size)) for lo in starts)
        return (slice(0, 0), *parts) if self.apart else parts

    @property
    def step(self) -> int:
        """The values in a full chunk."""
        return max(1, round(self.chunk_bytes / (BLOCK * self.dtype.itemsize))) * BLOCK

    @cached_property
    def cuts(self) -> tuple[slice, ...]:
        """The bytes in each chunk; the header travels with the first."""
        ends = [HEADER + part.stop * self.dtype.itemsize for part in self.parts]
        return tuple(slice(lo, hi) for lo, hi in zip([0, *ends], ends))

    @cached_property
    def fingerprint(self) -> np.ndarray:
        """(2,) words that differ when layout, type or size differ."""
        text = f"{self.size} {self.dtype} {self.digest}"
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype=np.int64)

    def __str__(self) -> str:
        return f"{self.size} values of {self.dtype}, layout {self.digest[:12] or 'unnamed'}"


class Slot:
    """A place for one message.

    raw : (nbytes,) uint8, 64-byte aligned; on a device only if the header travels apart. body :
    (M,) the vector in it. words : (8,) int64 on the CPU, the header. round : of the message it
    holds, -1 for none.
    """

    def __init__(self, format: Format, raw: Tensor) -> None:
        self.format = format
        self.raw = raw
        self.body = raw[HEADER:].view(format.dtype)
        head = aligned(HEADER) if format.apart else raw[:HEADER]
        self.words: np.ndarray = head.numpy().view(np.int64)
        self.round = -1

    def pieces(self) -> list[Any]:
        """Return what MPI sends or fills as it is, chunk by chunk."""
        cuts = self.format.cuts
        if self.format.apart:
            return [self.words, *(self.raw[cut] for cut in cuts[1:])]
        whole = self.raw.numpy()
        return [whole[cut] for cut in cuts]

    def label(self, source: int) -> None:
        """Write the parts of the header that stay the same."""
        self.words[_MAGIC] = MAGIC
        self.words[_DIGEST] = self.format.fingerprint
        self.words[_SOURCE] = source
        self.words[_SIZE] = self.format.size

    def date(self, round: int) -> None:
        """Write the round into the header."""
        self.round = round
        self.words[_ROUND] = round

    def check(self, source: int, round: int) -> None:
        """Raise ``EnvironmentFault`` unless this is ``source``'s message of ``round``."""
        words = self.words
        if words[_ROUND] == round and words[_SOURCE] == source and words[_MAGIC] == MAGIC:
            if (words[_DIGEST] == self.format.fingerprint).all():
                return
        if words[_MAGIC] != MAGIC:
            fault = "sent something that is not a message of this version of decdpo"
        elif (words[_DIGEST] != self.format.fingerprint).any():
            fault = f"sent {int(words[_SIZE])} values of another layout or type than ours, which is"
            fault += f" {self.format}"
        elif words[_SOURCE] != source:
            fault = f"was expected, but agent {int(words[_SOURCE])} sent"
        else:
            fault = f"sent its message of round {int(words[_ROUND])} where round {round} was due"
        raise EnvironmentFault(
            f"agent {source} {fault}",
            "run the same program, configuration and version on all processes",
        )


def aligned(nbytes: int, pinned: bool = False) -> Tensor:
    """Return (nbytes,) uninitialised uint8 that begins at a multiple of 64 bytes."""
    room = torch.empty(nbytes + 64, dtype=torch.uint8, pin_memory=pinned)
    start = -room.data_ptr() % 64
    return room[start : start + nbytes]

"""What an algorithm needs for parts of its vector to travel in turn (``wrappers/fragments.py``)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from decdpo.algorithms.base import Algorithm
from decdpo.messages import Inbox

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Part:
    """Part k of F of the M shared parameters: its places, k and F."""

    values: slice
    index: int
    count: int

    @property
    def size(self) -> int:
        """Values in this part."""
        return int(self.values.stop - self.values.start)

    @property
    def with_personal(self) -> slice:
        """Its places in (P,), and in the last part those of the personal parameters as well."""
        last = self.index == self.count - 1
        return slice(self.values.start, None if last else self.values.stop)


def part_of(num_shared: int, index: int, count: int) -> Part:
    """Return part k of F; sizes differ by one value at most, and the last is among the largest."""
    ends = (index * num_shared // count, (index + 1) * num_shared // count)
    return Part(slice(*ends), index, count)


class InParts(Algorithm[S], Protocol[S]):
    """An algorithm that can mix a part of its vector, and has one rule for a part and the whole.

    What is given here is right where the message is the shared part of ``x`` and all memory is of
    single values. A number that the state keeps for the whole vector becomes a tensor of one for
    each part, float64 (F,), which ``of_part`` and ``with_part`` read and set.

    num_shared : M.
    """

    num_shared: int

    def init_parts(self, x: Tensor, count: int) -> S:
        """Return the state of an agent that starts at ``x`` (P,), for F parts."""
        return self.init(x)

    def part_size(self, size: int) -> int:
        """Return the values of a message about a part of ``size`` values; larger for larger ones.
        """
        return size

    def part_message(self, state: S, part: Part) -> Tensor:
        """Return what neighbours shall receive of ``part``, (part_size,)."""
        return self.message(state)[part.values]

    def mix(self, state: S, inbox: Inbox) -> None:
        """Mix the vector as the only part that there is."""
        self.mix_part(state, inbox, part_of(self.num_shared, 0, 1))

    @abstractmethod
    def mix_part(self, state: S, inbox: Inbox, part: Part) -> None:
        """Fold what the neighbours sent of ``part`` into that part of the state, in place."""
        ...


def of_part(number: float | Tensor, part: Part) -> float:
    """Return the number of ``part``: of the whole vector, or its own out of (F,)."""
    return float(number[part.index]) if isinstance(number, Tensor) else number


def with_part(number: float | Tensor, part: Part, value: float) -> float | Tensor:
    """Return ``number`` with ``value`` as that of ``part``."""
    if not isinstance(number, Tensor):
        return value
    number[part.index] = value
    return number

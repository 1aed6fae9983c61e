"""What a verdict says of two answers: the words people use, and scales from one to the other."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from decdpo.data.ingest.formats.values import missing
from decdpo.errors import DataError

_FIRST = {"1", "a", "a1", "first", "model_a", "answer_a", "response_a", "answer_1", "response_1"}
_SECOND = {"2", "b", "a2", "second", "model_b", "answer_b", "response_b", "answer_2", "response_2"}
_TIE = {"0", "tie", "equal", "both", "none", "neither", "draw", "tie (bothbad)", "bothbad"}
_NOTHING = {"", "None", "nan"}
_MOST_MET = 1000
SIGNED = (-math.inf, math.inf)
"""The scale on which what is below 0 prefers the first answer, and what is above 0 the second."""


@dataclass(frozen=True)
class Verdicts:
    """How the verdicts of a file are understood.

    answers : the columns of the two answers, which verdicts may name. values : what a verdict says
    for the first and for the second answer, or None. scale : the numbers that say most for the
    first and for the second answer, or None; between them the nearer one counts, and their middle
    is a tie. met : the different verdicts seen so far, and what they were taken for.
    """

    answers: tuple[str, str]
    values: tuple[str, str] | None = None
    scale: tuple[float, float] | None = None
    met: dict[str, bool | str] = field(default_factory=dict, compare=False)

    def second(self, verdict: Any) -> bool | str:
        """Return whether a verdict prefers the second answer; a string says why it does neither."""
        if missing(verdict) or verdict == "":
            return "no label"
        # Files repeat a few verdicts many times.
        key = verdict if isinstance(verdict, str) else str(verdict)
        if (found := self.met.get(key)) is not None:
            return found
        found = self._second(said(verdict))
        if len(self.met) < _MOST_MET:
            self.met[key] = found
        return found

    def _second(self, word: str) -> bool | str:
        if self.scale is not None:
            return _on_scale(word, self.scale)
        if self.values:
            if word in self.values:
                return word == self.values[1]
        elif word in self.answers:
            return word == self.answers[1]
        word = word.lower()
        if word in _TIE:
            return "tie"
        if self.values or word not in _FIRST | _SECOND:
            return "label not understood"
        return word in _SECOND

    def require_clear(self, where: str) -> None:
        """Refuse the verdicts met so far if it cannot be known what they mean.

        Many files say 0 for the first and 1 for the second answer, others 0 for a tie and 1 for the
        first: without a 2 there is no telling. Numbers below 0, above 2 or between are a scale.

        where : the columns they are in. Raises ``DataError`` if they could mean two things.
        """
        if self.values is not None or self.scale is not None:
            return
        words = {said(key) for key in self.met} - _NOTHING
        if words == {"0", "1"}:
            raise DataError(
                f"{where} says 0 and 1, which may be the first and the second answer, or a tie and "
                "the first",
                "name what is said for the first and the second: --label-values 0,1 or 1,0, or 1,2 "
                "if 0 is a tie",
            )
        numbers = sorted(filter(math.isfinite, map(_number, words)))
        if numbers and not {0.0, 1.0, 2.0}.issuperset(numbers):
            low, high = min(numbers[0], 1.0), numbers[-1]
            if low < 0:
                high = max(high, -low)
                low = -high
            ends = f"{low:g},{high:g}"
            raise DataError(
                f"{where} says {in_words(f'{number:g}' for number in numbers)}, which looks like a "
                "scale from one answer to the other",
                f"name the scale: --label-scale={ends} if {low:g} says most for the first answer "
                f"and {high:g} for the second, the other way round {high:g},{low:g}; or name two "
                "of the labels: --label-values",
            )


def said(verdict: Any) -> str:
    """Return a verdict as a word; 1.0 is 1."""
    word = str(verdict).strip()
    return word.split(".")[0] if re.fullmatch(r"-?\d+\.0+", word) else word


def in_words(words: Iterable[str], most: int = 8) -> str:
    """Return the first few labels as one list."""
    words = list(words)
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def _on_scale(word: str, scale: tuple[float, float]) -> bool | str:
    number = _number(word)
    if not min(scale) <= number <= max(scale):
        return "label not on the scale"
    middle = 0.0 if math.isinf(scale[0]) else (scale[0] + scale[1]) / 2
    if number == middle:
        return "tie"
    return (number > middle) == (scale[1] > scale[0])


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan

"""Topics of prompts: a small deterministic k-means on hashed words, for data without labels."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from decdpo.rng import Stream, generator

NUM_TOPICS = 10

_DIMENSION = 512
_CHARACTERS = 4000
_WORD = re.compile(r"[^\W\d_]{3,}")


class Topics:
    """Groups of prompts that share words.

    A prompt is the bag of its words (three letters and more, first 4,000 characters), hashed into
    512 dimensions by crc32, weighted by log(1 + count) and inverse document frequency, of length 1.
    Centres come from k-means++ and ten rounds of spherical k-means.

    Parameters
    ----------
    sample : the prompts to fit on, a random sample of the data. seed : of the sharding.
    """

    def __init__(self, sample: Sequence[str], seed: int, num_topics: int = NUM_TOPICS) -> None:
        counts = _counts(sample)
        present = np.maximum((counts > 0).sum(axis=0), 1)
        self._rarity = np.log(1 + len(sample) / present)
        points = self._normalised(counts)
        rng = generator(seed, Stream.PARTITION, round=1)
        centres = [points[rng.integers(len(points))]]
        distance = np.full(len(points), np.inf)
        for _ in range(num_topics - 1):
            distance = np.minimum(distance, np.maximum(1 - points @ centres[-1], 0))
            if distance.sum() < 1e-9:
                break
            centres.append(points[rng.choice(len(points), p=distance / distance.sum())])
        self._centres = np.stack(centres)
        for _ in range(10):
            labels = (points @ self._centres.T).argmax(axis=1)
            for topic in np.unique(labels):
                total = points[labels == topic].sum(axis=0)
                self._centres[topic] = total / max(float(np.linalg.norm(total)), 1e-12)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the (n,) int topic of each prompt."""
        return (self._normalised(_counts(prompts)) @ self._centres.T).argmax(axis=1)

    def _normalised(self, counts: np.ndarray) -> np.ndarray:
        points = np.log1p(counts) * self._rarity
        return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _counts(texts: Sequence[str]) -> np.ndarray:
    counts = np.zeros((len(texts), _DIMENSION))
    for row, text in enumerate(texts):
        words = _WORD.findall(text[:_CHARACTERS].lower())
        hashes = [zlib.crc32(word.encode()) % _DIMENSION for word in words]
        np.add.at(counts[row], hashes, 1.0)
    return counts

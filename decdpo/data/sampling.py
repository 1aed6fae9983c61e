"""Which pairs an agent sees at each step: epochs by index arithmetic, with nothing to save."""

import numpy as np

from decdpo.errors import DataError
from decdpo.rng import Stream, generator

BLOCK = 256
"""About how many rows are drawn at once."""


class EpochSampler:
    """Batches of one agent's training pairs, without replacement within an epoch.

    The epochs, each a permutation of the N pairs, laid end to end form one endless sequence, and
    the batch of a step is a window of it. A block of K = max(1, 256 // N) epochs is drawn at once,
    block b from ``generator(seed, Stream.BATCH, agent, b)``: small shards cost no more than large
    ones. The rows of a step depend on nothing but the arguments: a resumed run needs no state.

    Parameters
    ----------
    seed : of the run. agent : the agent's id.
    num_pairs : number of training pairs N of the agent's shard, at least 1.

    Raises ``DataError`` if the agent has no pair to draw from.
    """

    def __init__(self, seed: int, agent: int, num_pairs: int) -> None:
        if num_pairs < 1:
            raise DataError(
                f"agent {agent} has {num_pairs} training pairs",
                "give every agent at least one pair, or run with fewer agents",
            )
        self.seed = seed
        self.agent = agent
        self.num_pairs = num_pairs
        self._epochs = max(1, BLOCK // num_pairs)
        self._block = -1
        self._order = np.empty(0, dtype=np.int64)

    def rows(self, step: int, size: int) -> np.ndarray:
        """Return the (size,) int64 shard rows of batch number ``step``, all in [0, num_pairs).

        Batches of one ``size`` tile the sequence: step s takes positions s*size to (s+1)*size - 1.
        A batch may span epochs and may be larger than the shard.

        Raises ``ValueError`` for a negative step or a size below 1.
        """
        if step < 0 or size < 1:
            raise ValueError(f"no batch for step {step} and size {size}")
        block, offset = divmod(step * size, self._epochs * self.num_pairs)
        order = self._draw(block)
        if offset + size <= order.size:
            return order[offset : offset + size].copy()
        rows = np.empty(size, dtype=np.int64)
        filled = 0
        while filled < size:
            part = self._draw(block)[offset : offset + size - filled]
            rows[filled : filled + part.size] = part
            filled += part.size
            block, offset = block + 1, 0
        return rows

    def _draw(self, block: int) -> np.ndarray:
        if block != self._block:
            rng = generator(self.seed, Stream.BATCH, self.agent, block)
            epochs = np.tile(np.arange(self.num_pairs), (self._epochs, 1))
            self._order = rng.permuted(epochs, axis=1).ravel()
            self._block = block
        return self._order


class PoissonSampler:
    """Batches in which each of an agent's N training pairs is with the same probability.

    Pairs are drawn independently of each other and of other steps, so that a batch has ``size``
    pairs in the mean and may be empty: what the privacy of a sampled batch is known for. The rows
    of a step depend on nothing but the arguments.

    Parameters and errors as of ``EpochSampler``.
    """

    def __init__(self, seed: int, agent: int, num_pairs: int) -> None:
        self._checked = EpochSampler(seed, agent, num_pairs)

    def rows(self, step: int, size: int) -> np.ndarray:
        """Return the int64 shard rows of batch number ``step``, ascending, ``size`` in the mean.

        All N where ``size`` is N or more. Raises ``ValueError`` for a negative step.
        """
        of = self._checked
        rng = generator(of.seed, Stream.BATCH, of.agent, step, 1)
        return np.flatnonzero(rng.random(of.num_pairs) < size / of.num_pairs)

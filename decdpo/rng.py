"""Counter-based random numbers: every draw is a function of what it is for, not of when it is made.

A generator is addressed by ``(seed, stream, agent, round, step)``, so the same batch is drawn
whichever rank hosts the agent and however often the run was killed and resumed.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are used for. Streams never overlap; numbers are never reused."""

    INITIAL_MODEL = 1
    BATCH = 2
    TOPOLOGY = 3
    PARTITION = 4
    HOLDOUT = 5
    PARTICIPATION = 6
    DELAY = 7
    CODEC = 8
    SYNTHETIC = 9
    POLICY = 10
    ADAPTER = 11
    DROPOUT = 12
    ADAPTATION = 13
    ATTACK = 14
    PRIVACY = 15


def generator(
    seed: int, stream: Stream, agent: int = 0, round: int = 0, step: int = 0
) -> np.random.Generator:
    """Return the Philox generator of one purpose, agent, round and step.

    The key is (seed, stream), the counter (0, step, round, agent): each address owns 2**64 blocks
    of the sequence (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Raises ``ValueError`` for a negative argument.
    """
    if min(seed, agent, round, step) < 0:
        raise ValueError(f"negative address: {(seed, agent, round, step)}")
    key = np.array([seed, int(stream)], dtype=np.uint64)
    counter = np.array([0, step, round, agent], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))

"""What a run measures while it trains, and how often: by default so that measuring costs little.

A small model is measured after every round, on all held-out pairs. A language model scores a pair
in its own good time: a step on B pairs costs as much as scoring 3 B, and a record scores the
held-out pairs twice, by each agent's model and by the average model. So a seeded sample of them is
scored, the gradient norm is left out, and records are as far apart as keeps all of it within
``SHARE`` of the training. That follows from the configuration and the sizes of the shards, never
from a clock: the same rounds are recorded wherever the run takes place.
"""

from dataclasses import dataclass

SHARE = 0.04
"""Of the arithmetic of a language model's training, at most for measuring by default. Records cost
more than scoring their pairs: so it is less than the twentieth of the time that is aimed at."""

FEWEST, MOST = 8, 64
"""Held-out pairs of an agent that a language model is measured on by default."""

GRADIENT_PAIRS = 64
"""Training pairs of an agent behind a gradient norm by default."""

BY_POLICY = -1
"""Pairs asked for: as many as suit the policy."""


@dataclass(frozen=True)
class Measures:
    """What is measured.

    every : rounds between two records. heldout_pairs : of each agent; 0 is all. training_pairs : of
    each agent, behind the loss at the start and the gradient norm; 0 is all.
    gradient : whether the gradient norm is measured.
    """

    every: int
    heldout_pairs: int = 0
    training_pairs: int = GRADIENT_PAIRS
    gradient: bool = True

    def words(self, most_heldout: int) -> str:
        """Say what is measured, where an agent has up to ``most_heldout`` held-out pairs."""
        when = "every round" if self.every == 1 else f"every {self.every:,} rounds"
        which = f"all {most_heldout:,}"
        if 0 < self.heldout_pairs < most_heldout:
            which = f"a seeded {self.heldout_pairs:,} of {most_heldout:,}"
        norm = "" if self.gradient else "; no gradient norm"
        return (
            f"a record {when} and at the end, on {which} held-out pairs of an agent{norm} "
            "(log.every, log.heldout_pairs, log.gradient_pairs ask for more or less)"
        )


def choose_measures(
    *,
    costly: bool,
    rounds: int,
    round_pairs: int,
    most_heldout: int,
    every: int = 0,
    heldout_pairs: int = BY_POLICY,
    gradient_pairs: int = BY_POLICY,
) -> Measures:
    """Return what a run of ``rounds`` rounds measures.

    costly : whether scoring a pair is dear, as with a language model. round_pairs : that an agent
    trains on in a round. most_heldout : held-out pairs of the agent that has most.
    every : asked for, 0 by policy. heldout_pairs, gradient_pairs : asked for, 0 is all,
    ``BY_POLICY`` is for the policy to say.
    """
    if not costly:
        training = GRADIENT_PAIRS if gradient_pairs == BY_POLICY else gradient_pairs
        return Measures(every or 1, max(heldout_pairs, 0), training)
    room = SHARE * 3 * rounds * round_pairs
    if heldout_pairs == BY_POLICY:
        # The start scores a sample of training pairs and one of held-out pairs, the end two.
        heldout_pairs = min(max(int(room / 4), FEWEST), MOST)
    gradient = gradient_pairs != BY_POLICY
    training = gradient_pairs if gradient else heldout_pairs or MOST
    if not every:
        scored = min(heldout_pairs or most_heldout, most_heldout)
        slopes = 3 * (training or GRADIENT_PAIRS) if gradient else 0
        start, record = scored + (training or GRADIENT_PAIRS) + slopes, 2 * scored + slopes
        records = max(int((room - start) / max(record, 1)), 1)
        every = -(-rounds // records)
    return Measures(every, heldout_pairs, training, gradient)

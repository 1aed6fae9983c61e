"""What the agents' mixing of adapters misses of mixing their products, in the recorded rounds.

See ``params.factors`` for the quantities. They follow from the messages of a round alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from decdpo.messages import Inbox
from decdpo.params.factors import Factors, interference


class Interference:
    """Looks at what the local agents receive, before it is mixed.

    factors : of every layer, in the shared vector. model : where in a message that vector lies.
    due : says whether the state after so many rounds is recorded.
    """

    def __init__(
        self, factors: Sequence[Factors], model: slice, due: Callable[[int], bool]
    ) -> None:
        self._factors = tuple(factors)
        self._model = model
        self._due = due
        self._found: dict[int, np.ndarray] = {}

    def __call__(self, round: int, agent: int, inbox: Inbox) -> Inbox:
        """Return the inbox of ``agent``, to be mixed; all of it has arrived if it was looked at."""
        if not self._due(round + 1) or not inbox.sent.numel():
            return inbox
        inbox = inbox.settled()
        weights = [message.weight for message in inbox.messages]
        bodies = [inbox.sent, *(message.body for message in inbox.messages)]
        vectors = [body[self._model] for body in bodies]
        total = np.zeros(3)
        for factors in self._factors:
            total += np.square(interference([1.0 - sum(weights), *weights], vectors, factors))
        self._found[agent] = total
        return inbox

    def take(self, agents: Sequence[int]) -> dict[int, np.ndarray]:
        """Return what was found of the local agents since the last call.

        (3,) each: squares of the norms of interference, floor and mixed product, over all layers.
        """
        found, self._found = self._found, {}
        return {agent: found.get(agent, np.zeros(3)) for agent in agents}


def relative(total: np.ndarray) -> Mapping[str, float]:
    """Return what a record says, for the sum (3,) of what all agents have found."""
    if not total[2]:
        return {}
    missed, floor = np.sqrt(total[:2] / total[2])
    return {"lora/interference": float(missed), "lora/floor": float(floor)}

"""Some of the pairs that were read, for their user to look at."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from decdpo.data.ingest.spill import PairStore
from decdpo.data.shard import Pair
from decdpo.data.show import ShownPair


def shown_pairs(
    store: PairStore,
    rows: np.ndarray,
    owner: np.ndarray,
    names: Sequence[str],
    held_out: np.ndarray,
    prompt_format: str,
) -> list[ShownPair]:
    """Return the pairs ``rows`` of ``store`` with file, row, agent, user, scores and weight.

    owner : (n,) agent of each pair. names : of the agents. held_out : (n,) bool.
    """
    columns = store.columns()
    found = []
    for row in rows.tolist():
        agent = int(owner[row])
        name = f" ({names[agent]})" if names[agent] else ""
        about: dict[str, Any] = {
            "source": f"row {store.place(row)}",
            "agent": f"{agent}{name}, {'held out' if held_out[row] else 'training'}",
        }
        if store.users.names[store.users.codes[row]]:
            about["user"] = store.users.names[store.users.codes[row]]
        for column, label in (
            ("score_chosen", "score of chosen"),
            ("score_rejected", "of rejected"),
            ("weight", "weight"),
        ):
            if column in columns:
                about[label] = float(columns[column][row])
        edges = (store.edges[row] - store.edges[row][0]).tolist()
        data = b"".join(store.text(np.array([row])))
        texts = [data[a:b].decode() for a, b in zip(edges, edges[1:])]
        found.append(ShownPair(Pair(*texts), prompt_format, about))
    return found

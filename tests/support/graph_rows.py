"""Rows of the mixing matrices by which tests on several ranks exchange messages."""

from decdpo.topology.row import Row

N = 8
"""Agents of these graphs."""


def ring_row(i: int) -> Row:
    """Return the row of agent ``i`` on a ring."""
    sources = tuple(sorted({(i - 1) % N, (i + 1) % N}))
    return Row(0.4, sources, (0.3, 0.3), sources)


def graph_row(i: int, kind: int) -> Row:
    """Return the row of agent ``i`` on a ring, on a star, or where nobody listens to anybody.

    Without listeners nothing but an agreement couples the ranks.
    """
    if kind == 0:
        others = tuple(sorted({(i - 1) % N, (i + 1) % N}))
    elif kind == 1:
        others = tuple(range(1, N)) if i == 0 else (0,)
    else:
        others = ()
    return Row(0.0, others, (0.1,) * len(others), others)

"""From a configuration to objects: the only place where names become classes.

``learning`` makes what one agent does: its loss, its optimizer, its algorithm. ``run`` makes the
agents with their shards and models, whom they meet and how, and the ``Run`` that the loop takes.
"""

from decdpo.build.learning import (
    make_algorithm,
    make_codec,
    make_learning_rate,
    make_loss,
    make_optimizer,
)
from decdpo.build.run import (
    AGES,
    local_steps,
    make_agents,
    make_delays,
    make_exchange,
    make_heldout,
    make_policy,
    make_run,
    make_topology,
    num_agents,
    open_index,
)

__all__ = [
    "AGES",
    "local_steps",
    "make_agents",
    "make_algorithm",
    "make_codec",
    "make_delays",
    "make_exchange",
    "make_heldout",
    "make_learning_rate",
    "make_loss",
    "make_optimizer",
    "make_policy",
    "make_run",
    "make_topology",
    "num_agents",
    "open_index",
]

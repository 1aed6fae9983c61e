"""From a configuration to objects: the only place where names become classes.

``learning`` makes what one agent does: its loss, its optimizer, its algorithm. ``meeting`` makes
whom the agents meet, and how messages travel. ``agents`` makes the agents of this process with
their shards and models, ``adapters`` what is trained beside a frozen language model, and ``run``
the ``Run`` that the loop takes.
"""

from decdpo.build.adapters import make_lora, make_personal, restrained
from decdpo.build.agents import (
    Ensemble,
    make_agent,
    make_ensemble,
    make_policy,
    make_run_algorithm,
    num_agents,
    open_index,
)
from decdpo.build.learning import (
    make_algorithm,
    make_codec,
    make_learning_rate,
    make_loss,
    make_optimizer,
)
from decdpo.build.meeting import AGES, make_delays, make_exchange, make_topology
from decdpo.build.privacy import secret_digest
from decdpo.build.run import make_heldout, make_measures, make_run

__all__ = [
    "AGES",
    "Ensemble",
    "make_agent",
    "make_algorithm",
    "make_codec",
    "make_delays",
    "make_ensemble",
    "make_exchange",
    "make_heldout",
    "make_learning_rate",
    "make_lora",
    "make_loss",
    "make_measures",
    "make_optimizer",
    "make_personal",
    "make_policy",
    "make_run",
    "make_run_algorithm",
    "make_topology",
    "num_agents",
    "open_index",
    "restrained",
    "secret_digest",
]

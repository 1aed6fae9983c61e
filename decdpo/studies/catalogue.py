"""The built-in studies by name."""

import importlib
from typing import TYPE_CHECKING

from decdpo.config.options import nearest
from decdpo.errors import ConfigError

if TYPE_CHECKING:
    from decdpo.studies.study import Study

STUDIES = {
    "methods": ("decdpo.studies.builtin.methods", "Methods"),
    "local-steps": ("decdpo.studies.builtin.local_steps", "LocalSteps"),
    "participation": ("decdpo.studies.builtin.participation", "ParticipationStudy"),
    "topology": ("decdpo.studies.builtin.topology", "Topology"),
    "staleness": ("decdpo.studies.builtin.staleness", "Staleness"),
    "topology-scaling": ("decdpo.studies.builtin.topology_scaling", "TopologyScaling"),
    "rates": ("decdpo.studies.builtin.rates", "Rates"),
    "advisor": ("decdpo.studies.builtin.advisor", "Advisor"),
    "balanced-toy": ("decdpo.studies.balanced.study", "BalancedToy"),
    "heterogeneity": ("decdpo.studies.builtin.heterogeneity", "Heterogeneity"),
    "fedpdpo": ("decdpo.studies.people.fedpdpo", "FedPDPO"),
    "low-communication": ("decdpo.studies.builtin.low_communication", "LowCommunication"),
    "privacy": ("decdpo.studies.builtin.privacy", "PrivacyStudy"),
    "attack": ("decdpo.studies.builtin.attack", "Attack"),
    "lora": ("decdpo.studies.builtin.lora", "LoraStudy"),
}
"""Module and class of each."""


def builtin(name: str) -> "Study":
    """Return the built-in study called ``name``.

    Raises ``ConfigError`` if there is none.
    """
    if name not in STUDIES:
        raise ConfigError(
            f"there is no study {name!r}{nearest(name, STUDIES)}",
            f"choose one of {', '.join(STUDIES)}, or name a TOML file that describes one",
        )
    from decdpo.studies.study import Study

    module, cls = STUDIES[name]
    study = getattr(importlib.import_module(module), cls)()
    assert isinstance(study, Study)
    return study

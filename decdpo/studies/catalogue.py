"""The built-in studies by name."""

import importlib

from decdpo.config.options import nearest
from decdpo.errors import ConfigError
from decdpo.studies.study import Study

STUDIES = {
    "methods": ("decdpo.studies.methods", "Methods"),
    "local-steps": ("decdpo.studies.local_steps", "LocalSteps"),
    "participation": ("decdpo.studies.participation", "ParticipationStudy"),
    "topology": ("decdpo.studies.topology", "Topology"),
    "staleness": ("decdpo.studies.staleness", "Staleness"),
    "topology-scaling": ("decdpo.studies.topology_scaling", "TopologyScaling"),
    "rates": ("decdpo.studies.rates", "Rates"),
    "advisor": ("decdpo.studies.advisor", "Advisor"),
    "balanced-toy": ("decdpo.studies.balanced", "BalancedToy"),
    "heterogeneity": ("decdpo.studies.heterogeneity", "Heterogeneity"),
    "fedpdpo": ("decdpo.studies.fedpdpo", "FedPDPO"),
    "lora": ("decdpo.studies.lora", "LoraStudy"),
}
"""Module and class of each."""


def builtin(name: str) -> Study:
    """Return the built-in study called ``name``.

    Raises ``ConfigError`` if there is none.
    """
    if name not in STUDIES:
        raise ConfigError(
            f"there is no study {name!r}{nearest(name, STUDIES)}",
            f"choose one of {', '.join(STUDIES)}, or name a TOML file that describes one",
        )
    module, cls = STUDIES[name]
    study = getattr(importlib.import_module(module), cls)()
    assert isinstance(study, Study)
    return study

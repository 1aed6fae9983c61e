"""The built-in studies by name."""

import importlib

from decdpo.errors import ConfigError
from decdpo.studies.study import Study

STUDIES = {
    "methods": ("decdpo.studies.methods", "Methods"),
    "local-steps": ("decdpo.studies.local_steps", "LocalSteps"),
    "topology": ("decdpo.studies.topology", "Topology"),
    "topology-scaling": ("decdpo.studies.topology_scaling", "TopologyScaling"),
}
"""Module and class of each."""


def builtin(name: str) -> Study:
    """Return the built-in study called ``name``.

    Raises ``ConfigError`` if there is none.
    """
    if name not in STUDIES:
        raise ConfigError(
            f"there is no study {name!r}",
            f"choose one of {', '.join(STUDIES)}, or name a TOML file that describes one",
        )
    module, cls = STUDIES[name]
    study = getattr(importlib.import_module(module), cls)()
    assert isinstance(study, Study)
    return study

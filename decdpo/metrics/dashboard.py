"""Records as TensorBoard event files, under the names that TRL gives them.

What TRL logs of DPO stands where its dashboards look for it: train/loss, train/rewards/margins,
eval/rewards/accuracies, ...; a step is a round. Of what TRL does not have, training is under train/
as in a record, the agents' own models under own/, times under system/.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from decdpo.errors import EnvironmentFault

FOLDER = "tensorboard"
"""In the run folder."""

NAMES = {
    "lr": "train/learning_rate",
    "gradient_norm": "train/grad_norm",
    "heldout/average/loss": "eval/loss",
    "heldout/average/accuracy": "eval/rewards/accuracies",
    "heldout/loss": "own/loss",
    "heldout/accuracy": "own/rewards/accuracies",
}
"""Keys of a record that are called otherwise; ``train/`` and the key is the rule."""

SKIPPED = ("round", "rho")

SECONDS = 10
"""Between two writes to the disk; a checkpoint writes as well."""


def require_tensorboard() -> None:
    """Raise ``EnvironmentFault`` if event files are wanted and cannot be written."""
    if find_spec("tensorboard") is None:
        raise EnvironmentFault(
            "log.tensorboard = true needs the package tensorboard, which is not installed",
            "pip install 'decdpo[tensorboard]', or set log.tensorboard = false",
        )


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and value of every number of a record."""
    for key, value in record.items():
        if type(value) in (int, float) and key not in SKIPPED:
            yield NAMES.get(key, f"train/{key}"), value
    system = record.get("system", {})
    for key, value in system.items():
        if type(value) in (int, float):
            yield f"system/{key}", value
    for part, (_, mean, _) in system.get("parts", {}).items():
        yield f"system/seconds/{part}", mean


class Dashboard:
    """Writes the records of one process into event files.

    folder : of the files. start_round : records of later rounds, of a start before this one, are no
    longer shown. earlier : the records up to it, written where nothing was yet.
    """

    def __init__(
        self, folder: Path, start_round: int, earlier: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        # It takes seconds to import.
        from torch.utils.tensorboard import SummaryWriter

        fresh = not any(folder.glob("*tfevents*"))
        first = start_round + 1 if start_round else 0
        self._writer: Any = SummaryWriter(
            str(folder), purge_step=None if fresh else first, flush_secs=SECONDS
        )
        for record in earlier if fresh else ():
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a record."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["round"])

    def sync(self) -> None:
        """Write what has been added."""
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()

"""The models of a checkpoint alone: each agent's ``x`` when it is asked for, and nothing else.

What is only measured or exported needs no moments, trackers or copies of neighbours, and no two
agents' models at once.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from decdpo.checkpoint.format import Damaged
from decdpo.checkpoint.parts import PartReader, open_part
from decdpo.errors import CheckpointError

MODEL = "x"
"""The path of an agent's parameters in its state."""

RUNNING = "running"
"""The path of the running statistic of its loss, where it has one."""


class SavedModels:
    """The models of the local agents in one checkpoint whose files were found whole.

    folder : of the checkpoint. round : rounds completed. files : the file of every local agent.

    Every method raises ``CheckpointError`` for a model of another form than the one given, and
    ``Damaged`` for what cannot be read any more.
    """

    def __init__(self, folder: Path, round: int, files: Mapping[int, Path]) -> None:
        self.round = round
        self._folder = folder
        self._files = files
        self._open: tuple[Path, PartReader] | None = None
        self._stack = ExitStack()

    def require(self, like: Tensor, running: Tensor | None) -> None:
        """Look whether every local agent's model is whole and has the form of ``like`` (P,).

        running : the same of the running statistic of its loss, None if there is none to be read.
        """
        for agent in self._files:
            with self._reader(agent) as reader:
                reader.require_like(agent, MODEL, like)
                reader.check(agent, MODEL)
                if running is not None:
                    reader.require_like(agent, RUNNING, running)

    def read(self, agent: int, x: Tensor, running: Tensor | None = None) -> None:
        """Fill ``x`` (P,) with the model of a local agent, and ``running`` (1,) if it is given."""
        with self._reader(agent) as reader:
            reader.fill(agent, MODEL, x)
            if running is not None:
                reader.fill(agent, RUNNING, running)

    def part(self, agent: int, like: Tensor, part: slice) -> Tensor:
        """Return a part of the model of a local agent, whose whole is like ``like`` (P,)."""
        with self._reader(agent) as reader:
            return reader.part(agent, MODEL, like, part)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()
        self._open = None

    @contextmanager
    def _reader(self, agent: int) -> Iterator[PartReader]:
        """Yield the open part of an agent, and name the checkpoint in what is wrong with it.

        One part is open at a time: agents are asked for in ascending order.
        """
        path = self._files[agent]
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, self._stack.enter_context(open_part(path))
        try:
            yield self._open[1]
        except Damaged:
            raise
        except CheckpointError as fault:
            raise CheckpointError(f"{self._folder}: {fault.what}", fault.remedy) from fault

"""How messages travel, in words: what was chosen, and why it is not what it could be."""

from dataclasses import dataclass

from decdpo.errors import EnvironmentFault


@dataclass(frozen=True)
class Choice:
    """What a world has chosen for an exchange.

    ranks, on_node : processes in all, and on this node. window : whether the node's are read in
    shared memory. wanted : ``comm.transport``. no_room : why the window did not fit, if it did not.
    device : "cpu" or "cuda:k". direct : whether MPI is handed the GPU's memory. late : whether
    messages may be late by arrival. driven : whether a thread drives messages while this process
    computes. progress : ``comm.progress``. threads : whether MPI gives MPI_THREAD_MULTIPLE.
    large : whether a message is long enough for that thread.
    """

    ranks: int
    on_node: int
    window: bool
    wanted: str
    no_room: EnvironmentFault | None
    device: str
    direct: bool
    late: bool
    driven: bool
    progress: str
    threads: bool
    large: bool

    @property
    def transport(self) -> str:
        """One sentence: the way of messages, and who drives them."""
        if self.ranks == 1:
            return "within one process"
        return f"{self._way()}; {self._driver()}"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user would want otherwise."""
        if self.ranks == 1:
            return ()
        found = []
        if self.no_room is not None and not self.window:
            found.append(
                f"messages within a node are sent, not read in place: {self.no_room.what}"
            )
        if not self.threads:
            lost = "checkpoints are written while training waits"
            if self.progress == "thread":
                lost = f"no thread drives messages while ranks compute, and {lost}"
            found.append(f"this MPI gives no MPI_THREAD_MULTIPLE: {lost}")
        return tuple(found)

    def _way(self) -> str:
        late = ", which may be late" if self.late else ""
        if self.device != "cpu":
            way = "from the GPU's memory" if self.direct else "through pinned host memory"
            return f"messages {way}{late}"
        if self.late:
            return f"messages{late}"
        if self.window:
            far = ", messages between nodes" if self.on_node < self.ranks else ""
            return f"shared memory within a node{far}"
        if self.wanted == "p2p":
            return "messages, as comm.transport asks"
        if self.on_node < 2:
            return "messages between nodes"
        return "messages, for want of shared memory"

    def _driver(self) -> str:
        if self.driven:
            return "a thread drives them during compute"
        if self.window and self.on_node == self.ranks:
            return "nothing to drive during compute"
        if self.progress == "none":
            return "nothing drives them during compute, as comm.progress asks"
        if not self.threads:
            return "nothing drives them during compute, without MPI_THREAD_MULTIPLE"
        return "too short to be driven during compute"

"""The processes of one node, and the memory that they share."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from decdpo.comm.links.slots import Format
from decdpo.comm.links.window import Segment, Window, no_room
from decdpo.comm.membership import Membership
from decdpo.errors import EnvironmentFault


class Node:
    """The ranks of ``comm`` that are on this process's node. Making it is collective.

    ranks_per_node : treat every so many consecutive ranks of a node as a node of their own; 0 for
    what the machine is.

    Attributes
    ----------
    comm : the communicator of the node, for its owner to free.
    ranks : rank in the job -> place on the node.
    no_room : why the window last asked for did not fit, None if it did.
    """

    def __init__(
        self, MPI: ModuleType, comm: Any, members: Membership, ranks_per_node: int
    ) -> None:
        self._mpi = MPI
        self._members = members
        self._rank: int = comm.Get_rank()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        if ranks_per_node:
            whole, node = node, node.Split(node.Get_rank() // ranks_per_node)
            whole.Free()
        ranks = np.empty(node.Get_size(), dtype=np.int64)
        node.Allgather(np.array([self._rank], dtype=np.int64), ranks)
        self.comm = node
        self.ranks = {int(rank): place for place, rank in enumerate(ranks)}
        self.no_room: EnvironmentFault | None = None

    def window(
        self, format: Format, transport: str, require: Callable[[Exception | None], None]
    ) -> Window | None:
        """Allocate this node's shared send slots, if they are wanted and fit. Collective.

        require : raises on every process of the job if any process passes a fault.
        """
        places = len(self.ranks)
        if transport == "p2p" or places < 2:
            fault = None
            needed = 0
        else:
            sizes = {
                rank: Segment.size(format, len(self._members.agents_of(rank)), places)
                for rank in self.ranks
            }
            needed = sum(sizes.values())
            fault = self.no_room = no_room(needed)
        if transport == "window":
            require(fault)
        # The ranks of a node decide alike: one that sees less room decides for all.
        use = np.array([needed > 0 and fault is None], dtype=np.int64)
        self.comm.Allreduce(self._mpi.IN_PLACE, use, self._mpi.MIN)
        if not use[0]:
            return None
        win = self._mpi.Win.Allocate_shared(sizes[self._rank], 1, comm=self.comm)
        win.Lock_all()
        segments = []
        for rank, place in self.ranks.items():
            memory = np.frombuffer(win.Shared_query(place)[0], dtype=np.uint8)
            segments.append(Segment(memory, format, self._members.agents_of(rank), places))
        window = Window(win, segments, self.ranks[self._rank])
        window.clear()
        return window

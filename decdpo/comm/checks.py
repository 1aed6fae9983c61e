"""Calls of an exchange that cannot be right, refused alike in every world."""

from collections.abc import Container

from torch import Tensor

from decdpo.errors import StallError
from decdpo.topology.row import Row


def check_start(
    agents: Container[int], agent: int, newest: int, round: int, row: Row, message: Tensor | None
) -> int:
    """Return the newest round there is; raise ``ValueError`` for a call that cannot be right."""
    if agent not in agents:
        raise ValueError(f"agent {agent} does not live here")
    if round < newest:
        raise ValueError(f"round {round} starts after round {newest}")
    if message is None and row.targets:
        raise ValueError(f"agent {agent} has listeners but no message")
    return round


def check_message(body: Tensor, agent: int, message: Tensor) -> None:
    """Raise ``ValueError`` unless ``message`` fits ``body`` (M,)."""
    if message.shape != body.shape or message.dtype != body.dtype:
        raise ValueError(
            f"agent {agent} sends {message.dtype} of shape {tuple(message.shape)} through an "
            f"exchange of {body.dtype}, shape {tuple(body.shape)}"
        )


def never_sent(source: int, agent: int, round: int) -> StallError:
    """Return the error for a message from this very process that does not exist."""
    return StallError(
        f"agent {agent} listens to agent {source}, which lives in the same process and sent "
        f"nothing in round {round}",
        "start every local agent before the first inbox is read, and use one mixing matrix for all",
    )


def incomplete(round: int) -> StallError:
    """Return the error for a round in which not every message came, where nobody may be lost."""
    return StallError(
        f"not all messages of round {round} have come",
        "look at what the other processes printed last; raise comm.timeout if one only is slow",
    )

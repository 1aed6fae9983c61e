"""The exceptions of decdpo: each says what is wrong, which value, and how to mend it."""


class DecdpoError(Exception):
    """An error a user can act on; printed once, without a traceback.

    Parameters
    ----------
    what : the fault, with the offending value and the file or key it came from.
    remedy : how to mend it, as one imperative sentence; empty if there is nothing to advise.
    """

    exit_code = 2
    collective = False
    """Whether every process of the job raises the same error, and not only this one."""
    shared = False
    """Whether every process meets the same error, each in its own time; one shall tell it."""
    silent = False
    """Whether another process prints it."""
    saved = ""
    """What a run that it ends has saved, and how to go on."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  remedy: {self.remedy}" if self.remedy else self.what

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class ConfigError(DecdpoError):
    """A configuration that cannot mean what its author wanted."""


class TopologyError(DecdpoError):
    """A graph or mixing matrix on which the agents could not reach consensus."""


class DataError(DecdpoError):
    """A source or shard that cannot be read, or is not what it claims to be."""


class PolicyError(DecdpoError):
    """A model that cannot be loaded, or does not fit the data or the device."""


class EnvironmentFault(DecdpoError):
    """A machine, library or launch that cannot run the job (too few agents, no GPU, full disk)."""


class CheckpointError(DecdpoError):
    """No checkpoint that can be used: missing, damaged, or of another run."""

    exit_code = 3


class NumericalError(DecdpoError):
    """A NaN or an infinity in a loss, gradient or parameter vector."""

    exit_code = 1


class StallError(DecdpoError):
    """A neighbour that did not answer in time, or was lost."""

    exit_code = 75


class PeerLost(StallError):
    """A process that is lost: what it should have sent will not come."""


STOPPED_EARLY = 85
"""Exit status of a run that stopped before its last round and can be resumed."""

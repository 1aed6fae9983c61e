"""The sections of an experiment: what can be set, what it means, and its default.

A section with a ``kind`` has one dataclass per kind, so that a key which the chosen kind would
ignore is unknown there and refused.
"""

from dataclasses import dataclass, fields, make_dataclass
from typing import Any

from decdpo.config.algorithms import ALGORITHM_SECTIONS
from decdpo.config.options import option
from decdpo.config.pace import PACES
from decdpo.config.policies import CausalLM, LogLinear, Tabular, Trajectory
from decdpo.config.privacy import PRIVACY
from decdpo.losses.names import LOSSES
from decdpo.topology.names import GRAPHS, WEIGHTS

WITHOUT_TOPOLOGY = tuple(kind for kind, cls in ALGORITHM_SECTIONS.items() if not cls.neighbours)
"""Algorithms whose agents have no neighbours: nobody, or a server."""


@dataclass(frozen=True)
class Run:
    """How long to train, and from which seed."""

    seed: int = option(0, "seed of every random number of the run", low=0, high=2**63 - 1)
    rounds: int = option(200, "rounds of communication to train for", low=1)
    diverged_above: float = option(
        1000.0, "a training loss so many times that of the start is a diverged run; 0: go on", low=0
    )


@dataclass(frozen=True)
class Agents:
    """How many agents take part."""

    count: int = option(0, "number of agents; 0 is one for every shard in data.shards", low=0)


@dataclass(frozen=True)
class Data:
    """The preference pairs."""

    shards: str = option(
        "",
        "folder of `decdpo shard`; sought where you are, then beside this",
        path=True,
        absent="make them with `decdpo shard SOURCE --out FOLDER`",
    )
    batch_size: int = option(16, "pairs of one local step", low=1, high=2**31 - 1)


@dataclass(frozen=True)
class Topology:
    """Who talks to whom; algorithms without neighbours, or with a server, take no section."""

    graph: str = option("ring", "the graph, or `file`", choices=GRAPHS)
    weights: str = option(
        "auto",
        "rule for the mixing weights; auto is push for push_sum, else metropolis where links are "
        "mutual, else uniform; pairs weighs agents by their training pairs",
        choices=WEIGHTS,
    )
    degree: int = option(0, "degree of random_regular, small_world; 0 is their default", low=0)
    probability: float = option(
        0.0, "of erdos_renyi's edges, small_world's rewiring; 0 is their default", low=0.0, high=1.0
    )
    seed: int = option(0, "seed of a random graph or schedule", low=0, high=2**63 - 1)
    file: str = option(
        "", 'edge list, or matrix as .npz or .csv, for graph = "file"', path=True
    )


KIND = "which optimizer; left out it is sgd, for a language model adamw"


@dataclass(frozen=True)
class StepSizes:
    """Step sizes, shared by every optimizer."""

    lr: float = option(0.1, "step size eta; left out 0.1; for a language model it must be given",
                       above=0.0)
    schedule: str = option(
        "constant", "how eta changes", choices=("constant", "cosine", "inverse_sqrt")
    )
    warmup_steps: int = option(0, "local steps of linear warm-up", low=0)
    clip_norm: float = option(0.0, "largest Euclidean norm of a gradient; 0 is no clipping", low=0)
    weight_decay: float = option(0.0, "pull towards zero", low=0.0)


@dataclass(frozen=True)
class Sgd(StepSizes):
    """Stochastic gradient descent, with momentum if wanted."""

    kind: str = option("sgd", KIND)
    momentum: float = option(0.0, "share of the last velocity that is kept", low=0.0, below=1.0)
    nesterov: bool = option(False, "look ahead along the velocity")


@dataclass(frozen=True)
class AdamW(StepSizes):
    """Adam with decoupled weight decay."""

    kind: str = option("adamw", KIND)
    lr: float = option(
        1e-3, "step size eta; left out 1e-3, of a language model 1e-5, of adapters 2e-4", above=0.0
    )
    betas: tuple[float, ...] = option((0.9, 0.999), "decay of both moments", low=0.0, below=1.0)
    eps: float = option(1e-8, "added to the root of the second moment", above=0.0)


@dataclass(frozen=True)
class Checkpoint:
    """What is saved, and for how long."""

    every: int | str = option(
        50,
        'rounds between checkpoints; 0 is only at the end, "auto" as often as the time that a '
        "write takes and mtbf_hours suggest",
        low=0,
        word="auto",
    )
    mtbf_hours: float = option(
        24.0, 'mean hours between failures of the job, for every = "auto"', above=0.0, high=1e6
    )
    keep: int = option(2, "newest checkpoints kept", low=1)
    keep_every: int = option(0, "also keep every m-th checkpoint for ever; 0 is none", low=0)

    @property
    def rounds(self) -> int:
        """Rounds between checkpoints, 0 if they do not come by rounds."""
        return self.every if isinstance(self.every, int) else 0

    @property
    def by_time(self) -> bool:
        """Whether the time decides when to save."""
        return self.every == "auto"


@dataclass(frozen=True)
class Log:
    """What is measured while training."""

    every: int = option(
        0,
        "rounds between two records in metrics.jsonl; 0 is 1, but for a language model as many as "
        "keep measuring to about 5% of the training",
        low=0,
    )
    gradient_pairs: int = option(
        -1,
        "training pairs per agent behind the average model's gradient norm; 0 is all, -1 is 64, "
        "but none for a language model",
        low=-1,
    )
    heldout_pairs: int = option(
        -1,
        "held-out pairs per agent behind the accuracies; 0 is all, -1 too, but a sample for a "
        "language model",
        low=-1,
    )
    tensorboard: bool = option(
        False, "also write the records as TensorBoard event files, under TRL's names"
    )
    figure: bool = option(True, "draw curves.png and curves.svg whenever a run ends or stops")


@dataclass(frozen=True)
class Device:
    """Where the arithmetic runs; GPUs use deterministic algorithms: a seed gives the same bits."""

    kind: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    share_gpu: bool = option(False, "let several ranks use one GPU")
    staging: str = option(
        "host",
        "a GPU's messages go through pinned host memory, or from the device by a CUDA-aware MPI",
        choices=("host", "device"),
    )
    threads: int = option(1, "CPU threads of each rank", low=1, high=4096)


@dataclass(frozen=True)
class Lateness:
    """Whether messages may be late; none is where ``max_age`` is no key."""

    kind: str

    @property
    def max_age(self) -> int:
        """q, rounds that a message may be old."""
        return 0


@dataclass(frozen=True)
class OnTime(Lateness):
    """Every message is of this round."""

    kind: str = option("none", "whether messages may be late, and what decides")


@dataclass(frozen=True)
class SeededDelays(Lateness):
    """Messages as late as a seeded schedule says; the same bits on any number of ranks."""

    kind: str = option("seeded", "whether messages may be late, and what decides")
    max_age: int = option(2, "q, rounds that a message may be old", low=0, high=10**6)
    delay: str = option(
        "uniform", "drawn from 0 ... max_age, or always max_age", choices=("uniform", "fixed")
    )


@dataclass(frozen=True)
class Arrival(Lateness):
    """Messages as they come: wait only for what would be too old; ages are recorded in RUN/ages."""

    kind: str = option("arrival", "whether messages may be late, and what decides")
    max_age: int = option(2, "q, rounds that a message may be old", low=0, high=10**6)


@dataclass(frozen=True)
class Replay(Lateness):
    """Messages as late as in a recorded run; its bits, in one process or many."""

    kind: str = option("replay", "whether messages may be late, and what decides")
    run: str = option("", "run folder with ages", path=True)
    max_age: int = option(2, "q, at least that of the recorded run", low=0, high=10**6)


@dataclass(frozen=True)
class Comm:
    """How messages travel."""

    transport: str = option(
        "auto",
        "one-node neighbours by shared memory (window), by messages (p2p), or by size (auto)",
        choices=("auto", "p2p", "window"),
    )
    progress: str = option(
        "thread", "who drives messages during compute", choices=("thread", "none")
    )
    chunk_mib: int = option(32, "size of the parts of a message, MiB", low=1, high=1024)
    timeout: float = option(600.0, "seconds without an answer before a neighbour counts as lost",
                            above=0.0, high=1e8)


@dataclass(frozen=True)
class Faults:
    """What happens when a process is lost."""

    on_loss: str = option(
        "abort",
        "end the job, to be resumed; go on without its agents; or take them over, too",
        choices=("abort", "survive", "adopt"),
    )


@dataclass(frozen=True)
class Loss:
    """What is minimized; the other keys are those that the loss itself declares."""

    kind: str

    def constants(self) -> dict[str, Any]:
        """Return the constants of the loss by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}


def _loss_sections() -> dict[str, type]:
    """Make one dataclass per loss from the options that the losses themselves declare."""
    sections = {}
    for name, loss in LOSSES.items():
        keys: list[Any] = [("kind", str, option(name, "which loss"))]
        keys += [(o.name, type(o.default), option(o.default, o.doc)) for o in loss.options]
        sections[name] = make_dataclass(name, keys, bases=(Loss,), frozen=True)
        sections[name].__doc__ = loss.doc
    return sections


Policy = LogLinear | Trajectory | Tabular | CausalLM
Optim = Sgd | AdamW

SECTIONS: dict[str, type | dict[str, type]] = {
    "run": Run,
    "agents": Agents,
    "data": Data,
    "policy": {
        "loglinear": LogLinear,
        "trajectory": Trajectory,
        "tabular": Tabular,
        "causal_lm": CausalLM,
    },
    "loss": _loss_sections(),
    "algorithm": dict(ALGORITHM_SECTIONS),
    "topology": Topology,
    "staleness": {"none": OnTime, "seeded": SeededDelays, "arrival": Arrival, "replay": Replay},
    "pace": dict(PACES),
    "privacy": dict(PRIVACY),
    "optim": {"sgd": Sgd, "adamw": AdamW},
    "checkpoint": Checkpoint,
    "log": Log,
    "device": Device,
    "comm": Comm,
    "faults": Faults,
}
"""Every section of the TOML file; a dict holds one dataclass per ``kind``, the default first."""

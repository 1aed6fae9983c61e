"""How shards are to be made, and what in it means nothing or two things."""

from dataclasses import dataclass, field
from pathlib import Path

from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.rated import RatedColumns
from decdpo.data.partition import parse_partition
from decdpo.errors import DataError

ITEM, PROMPT = "item", "prompt"
"""Groups that are no column: the rated item, and the prompt as it was read."""


@dataclass(frozen=True)
class RatedPlan:
    """How rated answers become pairs.

    columns : names of the sources' columns. items : file of the items' texts, or None. min_gap : by
    how much the ratings of a pair differ at least; equal ratings never make a pair. own_items : how
    many items of each person are held out from its own training pairs, or which share of them if it
    is below 1; None: what the plan of the sharding says.
    """

    columns: RatedColumns = field(default_factory=RatedColumns)
    items: Path | None = None
    min_gap: float = 0.0
    own_items: float | None = None

    def require_sound(self) -> None:
        """Raise ``DataError`` for numbers that mean nothing."""
        if not 0 <= self.min_gap < float("inf"):
            raise DataError(
                f"--min-gap {self.min_gap} is no difference of ratings", "give 0 or more"
            )
        own = self.own_items
        if own is not None and not (0 < own < 1 or own >= 1 and float(own).is_integer()):
            raise DataError(
                f"--holdout-items-per-user {own:g} is neither a number of items nor a share",
                "give for example 20, or 0.2",
            )


@dataclass(frozen=True)
class Plan:
    """How to make shards.

    partition : see ``decdpo.data.partition.KINDS``. agents : number of shards; None only with
    "by:COLUMN". holdout : share of held-out pairs. group : column whose values are held out as a
    whole; "prompt" stands for the prompt as read. columns : names of the sources' columns.
    strict : any unused judgment is an error, and any warning. split : which split of folders is
    read, such as "train"; None: they must hold no more than one. hub : whether names that are no
    paths are fetched from the Hugging Face hub. pairs_per_agent : how many training pairs an agent
    has at most, and how many held-out ones. rated : how rated answers become pairs; None: they do
    only where the sources are lists of answers with ratings.
    """

    partition: str = "iid"
    agents: int | None = None
    holdout: float = 0.1
    seed: int = 0
    group: str | None = None
    columns: Columns = field(default_factory=Columns)
    strict: bool = False
    split: str | None = None
    hub: bool = False
    pairs_per_agent: int | None = None
    rated: RatedPlan | None = None

    def require_sound(self) -> None:
        """Raise ``DataError`` for what means nothing, or two things."""
        if parse_partition(self.partition).kind != "by" and self.agents is None:
            raise DataError(
                f"partition {self.partition} needs a number of agents", "add --agents 8"
            )
        if self.agents is not None and self.agents < 1:
            raise DataError(f"{self.agents} agents", "use --agents 1 or more")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed {self.seed} is not in [0, 2**63)", "use for example --seed 0")
        if self.pairs_per_agent is not None and self.pairs_per_agent < 1:
            raise DataError(
                f"--pairs-per-agent {self.pairs_per_agent} leaves none", "give 1 or more"
            )
        if self.rated is not None:
            self.rated.require_sound()
            if self.rated.own_items is not None and self.group is not None:
                raise DataError(
                    f"--group {self.group} and --holdout-items-per-user hold out different pairs",
                    "leave one of them out",
                )

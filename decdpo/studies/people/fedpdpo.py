"""Study ``fedpdpo``: what personal parts add to what people share, and which of them does it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.errors import ConfigError
from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.cells import Cell, make_config
from decdpo.studies.claims import OURS, Claim, Mean, Verdict, mean_of
from decdpo.studies.data import Sharded
from decdpo.studies.people.training import ITEMS, STEPS, TASTES, UNSEEN, PeopleTraining, World
from decdpo.studies.study import PLACED, Options, Study, require_free
from decdpo.studies.table import Missing, Table

PAPER = "FedPDPO, abstract"
ROUNDS = 16

ALL: dict[str, Any] = {
    "loss.kind": "fedpdpo",
    "policy.personal.head": "low_rank",
    "policy.personal.reward": True,
    "policy.personal.bottleneck": 8,
}
RESTRAINT: dict[str, Any] = {
    "policy.personal.head_lr_factor": 0.2,
    "policy.personal.reward_lr_factor": 4.0,
    "policy.personal.reward_weight_decay": 3.0,
    "policy.personal.bottleneck_lr_factor": 0.2,
}
"""What keeps personal parts from learning a person's pairs by heart; see data/studies/README.md for
how it was chosen, on other people."""
WHOLE = {**ALL, **RESTRAINT}
PLAIN: dict[str, Any] = {"loss.kind": "dpo"}
SERVER, RING = {"algorithm.kind": "fedavg"}, {"topology.graph": "ring"}
ALONE = {"algorithm.kind": "local"}
REGULAR = {"topology.graph": "random_regular"}


def _without(*parts: str) -> dict[str, Any]:
    """Return the settings of all parts but one, and of how the others are restrained."""
    own = tuple(f"{part}_" for part in parts)
    return {
        key: value
        for key, value in WHOLE.items()
        if (name := key.rpartition(".")[2]) not in parts and not name.startswith(own)
    }


ARMS: dict[str, dict[str, Any]] = {
    "local only": {**PLAIN, **ALONE},
    "FedDPO": {**PLAIN, **SERVER},
    "DecDPO": {**PLAIN, **RING},
    "FedPDPO": {**WHOLE, **SERVER},
    "no restraint": {**ALL, **SERVER},
    "no head": {**_without("head"), **SERVER},
    "no reward head": {**_without("reward"), **SERVER},
    "no bottleneck": {**_without("bottleneck"), **SERVER},
    "nothing shared": {**WHOLE, **ALONE},
    "FedPDPO ring": {**WHOLE, **RING},
    "FedPDPO random regular": {**WHOLE, **REGULAR},
}
"""Every way of training; the ablations are of FedPDPO with a server."""


class FedPDPO(Study):
    """Eleven ways of training on people who rate items, judged person by person."""

    name = "fedpdpo"
    title = "Personal parts for unlike people"
    source = "FedPDPO: personal heads and a bottleneck beside shared adapters"
    agents = 24
    setting = (
        "LoRA r 4, AdamW 0.005, 16 rounds of one step on 16 pairs, beta 1; an item is one token of "
        "a small language model whose embeddings know the items, so that so many people can be "
        "trained on few cores; --data takes shards of people, made with `decdpo shard`, and --set "
        f"policy.model their model. Shards after --agents, {UNSEEN} at most, are unseen people, "
        f"each adapted to by {STEPS} steps on its personal part alone"
    )
    summary_columns = (("method",), ("heldout/accuracy", "heldout/combined/accuracies", "loss"))
    columns = {
        **Study.columns,
        "person": "one person; accuracies are of its held-out pairs, by the combined margin",
        "own": "accuracy of the person's own model",
        "average": "accuracy of the mean of the shared part with the person's own part",
        "shots": "pairs that the personal part was adapted to, of a person not in the run",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed and way of training."""
        taken = {key for settings in ARMS.values() for key in settings}
        remedy = "leave it out, or run a grid of your own: decdpo study FILE.toml"
        require_free(options.overrides, {**dict.fromkeys(taken, remedy), **PLACED})
        given = {override.partition("=")[0].strip() for override in options.overrides}
        if options.data is not None and "policy.model" not in given:
            raise ConfigError(
                "--data names the pairs of people, and no model is named for them",
                "name the folder of a language model: --set policy.model=FOLDER",
            )
        people = options.agents or (8 if options.quick else self.agents)
        cells = []
        for seed in options.seed_range():
            base = self._base(options, people, seed)
            for method, settings in ARMS.items():
                wanted = {**base, **settings}
                if settings is ARMS["FedPDPO random regular"]:
                    wanted["topology.seed"] = seed
                config = make_config(wanted, options.overrides)
                unseen = method == "FedPDPO ring"
                work = PeopleTraining(config, self._digest, unseen=unseen)
                cells.append(Cell({"method": method, "seed": seed}, work))
        return cells

    def _base(self, options: Options, people: int, seed: int) -> dict[str, Any]:
        """Return the settings of all cells of a seed; makes the shards that are not there yet."""
        settings: dict[str, Any] = {
            "policy.kind": "causal_lm",
            "policy.lora.rank": 4,
            "optim.kind": "adamw",
            "optim.lr": 0.005,
            "data.batch_size": 16,
            "run.rounds": 4 if options.quick else ROUNDS,
            "log.every": ROUNDS,
            "log.heldout_pairs": 0,
            "agents.count": people,
            "run.seed": seed,
            "loss.beta": 1.0,
            "policy.tokens_at_once": 4096,
        }
        if options.data is None:
            unseen = 2 if options.quick else UNSEEN
            index, model = World(people + unseen, seed).make(options.room)
            settings |= {"policy.model": str(model), "policy.max_length": 16}
        else:
            index = options.data.shards(seed, options.room)
        self._digest = index.digest
        return {**settings, "data.shards": str(index.folder)}

    def describe_data(self, options: Options) -> str:
        """Return one line on the people."""
        if isinstance(options.data, Sharded):
            return options.data.describe()
        return (
            f"synthetic people, each of whom rates two thirds of {ITEMS} items by a taste in "
            f"{TASTES} factors; a fifth of these is held out of the person's training pairs"
        )

    def claims(self) -> Sequence[Claim]:
        """Return what the source says, and what we expect besides."""
        better = partial(_gain, least=0.0)
        claims = [
            Claim(
                PAPER,
                "FedPDPO's own models beat FedDPO's",
                partial(better, "FedPDPO", "FedDPO"),
            ),
            Claim(
                PAPER,
                "by up to 4.8 points: FedPDPO gains 2 points or more over FedDPO",
                partial(_gain, "FedPDPO", "FedDPO", least=0.02),
            ),
            Claim(
                PAPER,
                "FedPDPO's own models beat those of people alone",
                partial(better, "FedPDPO", "local only"),
            ),
        ]
        claims += [
            Claim(PAPER, f"each part helps: FedPDPO beats {arm}", partial(better, "FedPDPO", arm))
            for arm in ("no head", "no reward head", "no bottleneck", "nothing shared")
        ]
        claims.append(
            Claim(
                OURS,
                "personal parts must be restrained: FedPDPO beats itself without",
                partial(better, "FedPDPO", "no restraint"),
            )
        )
        claims += [
            Claim(
                OURS,
                f"without a server, on a {graph}, FedPDPO gains 2 points or more over DecDPO",
                partial(_gain, f"FedPDPO {graph}", "DecDPO", least=0.02),
            )
            for graph in ("ring", "random regular")
        ]
        return (*claims, Claim(OURS, "new people gain by 64 pairs of their own", _shots))

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return accuracy by pairs that new people were adapted to."""
        shots = table.where(method="FedPDPO ring").curve("shots", "own")
        line = Line.of("unseen people", shots)
        return (Figure(self.name, (Panel("few shots", "pairs", "held-out accuracy", (line,)),)),)


def _people(table: Table, method: str) -> dict[tuple[int, str], float]:
    """Return the accuracy of each person of the run, by seed and name."""
    rows = table.where(method=method).rows
    found = {
        (row["seed"], row["person"]): float(row["own"])
        for row in rows
        if "person" in row and "shots" not in row
    }
    if not found:
        raise Missing(f"no cell of {method} is finished")
    return found


def _difference(a: dict[tuple[int, str], float], b: dict[tuple[int, str], float]) -> Mean:
    """Return the mean of a - b over people, with its interval; everybody is paired with itself."""
    shared = sorted(set(a) & set(b))
    if len(shared) < 2:
        raise Missing("fewer than two people were measured both ways")
    return mean_of({number: a[who] - b[who] for number, who in enumerate(shared)})


def _gain(method: str, other: str, table: Table, *, least: float) -> Verdict:
    """Judge by people whether ``method`` is more accurate than ``other`` by more than ``least``."""
    ours, theirs = _people(table, method), _people(table, other)
    found = _difference(ours, theirs)
    held = True if found.low > least else False if found.high < least else None
    both = sorted(set(ours) & set(theirs))
    means = [sum(side[who] for who in both) / len(both) for side in (ours, theirs)]
    return Verdict(
        held,
        f"{method} {means[0]:.4f}, {other} {means[1]:.4f}: difference {found} over "
        f"{found.seeds} people",
    )


def _shots(table: Table) -> Verdict:
    """Compare new people's accuracy with 64 pairs and without any."""
    rows = table.where(method="FedPDPO ring").rows
    by: dict[int, dict[tuple[int, str], float]] = {}
    for row in rows:
        if "shots" in row:
            by.setdefault(row["shots"], {})[row["seed"], row["person"]] = float(row["own"])
    if not by:
        raise Missing("no new people were adapted to")
    found = _difference(by[max(by)], by[min(by)])
    curve = ", ".join(f"{k}: {sum(v.values()) / len(v):.4f}" for k, v in sorted(by.items()))
    held = True if found.low > 0 else False if found.high < 0 else None
    return Verdict(held, f"accuracy by pairs {curve}; {max(by)} minus {min(by)}: {found}")

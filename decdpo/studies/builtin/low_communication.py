"""Study ``low-communication``: what fewer rounds and fewer bytes cost at equal local steps.

Every method takes the same local steps on the same batches; they differ in how often agents talk,
with whom, and in how many bytes: DecDPO by neighbours in every step and in every E-th, DiLoCo with
a server, DiLoCo's form by gossip, both of gossip in fragments, and compressed gossip.

A language model with adapters, in the place of the log-linear policy, is a matter of overrides:
``--set policy.kind=causal_lm --set policy.model=FOLDER --set policy.lora.rank=4``, with a step size
of its own (``--set optim.lr=0.003``: with the usual one, 1, adapters of a small model diverge in
the first round) and fewer pairs to measure on (``--set log.heldout_pairs=8 --set
log.gradient_pairs=1``: with all of them a cell measures for longer than it trains).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.report.study_figures import Figure, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import Claim, Verdict, errors, increasing, no_worse
from decdpo.studies.study import (
    COLUMNS,
    Options,
    Study,
    curves,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Row, Table

STEPS, QUICK = 320, 64
"""Local steps of a cell."""
E = 8
FRAGMENTS = 4
RATIO = 1 / 16
GOSSIP = {"algorithm.kind": "gossip_outer_momentum"}
CHOCO = {"algorithm.kind": "choco", "algorithm.codec": "topk", "algorithm.ratio": RATIO}
METHODS: dict[str, dict[str, Any]] = {
    "DecDPO, E=1": {"algorithm.local_steps": 1},
    "DecDPO": {"algorithm.local_steps": E},
    "DecDPO, fragments": {"algorithm.local_steps": E, "algorithm.fragments": FRAGMENTS},
    "CHOCO": {**CHOCO, "algorithm.local_steps": E},
    "DiLoCo": {"algorithm.kind": "outer_momentum", "algorithm.local_steps": E},
    "gossip DiLoCo": {**GOSSIP, "algorithm.local_steps": E},
    "gossip DiLoCo, fragments": {
        **GOSSIP, "algorithm.local_steps": E, "algorithm.fragments": FRAGMENTS,
    },
}  # fmt: skip
NAMES = tuple(METHODS)
HUE = [(name, {"method": name}) for name in NAMES]
ERROR = "held-out error of the average model"
NEAR = (
    "Where the way to the optimum is short, momentum multiplies the noise and drift of local steps "
    "instead."
)


class LowCommunication(Study):
    """Seven methods, one budget of local steps."""

    name = "low-communication"
    title = "Rounds and bytes at equal local steps"
    source = "DiLoCo, Streaming DiLoCo, GASLoC and NoLoCo, CHOCO-SGD; the numbers are ours"
    columns = {
        **COLUMNS,
        "bytes": "sent by all agents so far, a message counted for each agent that it is for",
        "round_bytes": "bytes of a round of all agents",
        "steps": "local steps of an agent so far",
    }
    setting = (
        f"{STEPS} local steps ({QUICK} if quick), E = {E} between two exchanges unless said; ring, "
        f"but a server in DiLoCo; fragments: {FRAGMENTS} parts in turn; CHOCO: top-k of {RATIO:g} "
        "of the bytes; outer steps 0.7 with Nesterov's momentum 0.9; optim.lr 0.1 (1 on texts)"
    )
    summary_columns = (
        ("method",),
        (
            "round", "round_bytes", "bytes", "gap", "loss", "heldout/accuracy",
            "heldout/average/accuracy", "heldout/average/loss", "consensus_distance",
        ),
    )  # fmt: skip

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed and method."""
        pairs = pairs_of(options, self.agents)
        total = QUICK if options.quick else STEPS
        variants = []
        for method, settings in METHODS.items():
            rounds = total // settings["algorithm.local_steps"]
            more = {"run.rounds": rounds, "log.every": rounds // 8, "optim.lr": usual_lr(pairs)}
            variants.append(({"method": method}, {**settings, **more}))
        return training_cells(options, variants, pairs=pairs)

    def derive(self, table: Table) -> None:
        """Add local steps so far, and the bytes of a round."""
        super().derive(table)
        last: dict[str, Row] = {row["cell"]: row for row in table.final().rows}
        for row in table.rows:
            steps = METHODS[row["method"]]["algorithm.local_steps"]
            row["steps"] = steps * row["round"]
            if row is last.get(row["cell"]) and row.get("bytes") is not None and row["round"]:
                row["round_bytes"] = row["bytes"] / row["round"]

    def claims(self) -> Sequence[Claim]:
        """Return what the sources say of each way to talk less."""
        return (
            Claim(
                "DiLoCo, and local SGD before it",
                f"with E = {E} DecDPO predicts no worse than with E = 1, at an eighth of the bytes",
                partial(kept, cheap="DecDPO", dear="DecDPO, E=1"),
            ),
            Claim(
                "DiLoCo",
                "outer momentum gets further in the same local steps: DiLoCo's average model ends "
                "with a smaller gradient than DecDPO's",
                partial(increasing, y="gap", steps=[HUE[4], HUE[1]], why=NEAR),
            ),
            Claim(
                "GASLoC, NoLoCo",
                "by gossip DiLoCo predicts no worse than with a server",
                partial(kept, cheap="gossip DiLoCo", dear="DiLoCo"),
            ),
            Claim(
                "Streaming DiLoCo",
                "in fragments gossip DiLoCo predicts no worse, at a quarter of the bytes",
                partial(kept, cheap="gossip DiLoCo, fragments", dear="gossip DiLoCo"),
            ),
            Claim(
                "Streaming DiLoCo",
                "in fragments DecDPO predicts no worse, at a quarter of the bytes",
                partial(kept, cheap="DecDPO, fragments", dear="DecDPO"),
            ),
            Claim(
                "CHOCO-SGD",
                "compressed gossip predicts no worse than DecDPO, by codes of a sixteenth (of few "
                "values: more)",
                partial(kept, cheap="CHOCO", dear="DecDPO"),
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return loss over local steps, and accuracy over local steps and over bytes."""
        loss = tuple(curves(table, HUE, "loss", "steps"))
        accuracy = "heldout/average/accuracy"
        steps = tuple(curves(table, HUE, accuracy, "steps"))
        sent = tuple(curves(table.above("bytes", 1), HUE, accuracy, "bytes"))
        panels = (
            Panel("training loss", "local steps", "loss", loss),
            Panel("average model", "local steps", "held-out accuracy", steps),
            Panel("average model", "bytes sent by all agents", "held-out accuracy", sent, True),
        )
        return (Figure(self.name, panels),)


def kept(table: Table, cheap: str, dear: str) -> Verdict:
    """Judge whether the cheaper method predicts no worse; say the bytes of both."""
    accuracy = "heldout/average/accuracy"
    first, second = ((name, errors(table, accuracy, method=name)) for name in (cheap, dear))
    verdict = no_worse(ERROR, first, second)
    sent = []
    for name in (cheap, dear):
        found = table.final().where(method=name).by_seed("bytes")
        sent.append(sum(found.values()) / len(found))
    more = f"bytes {sent[0]:.3g} and {sent[1]:.3g}, a share of {sent[0] / sent[1]:.3g}"
    why = "What is not sent is missed." if verdict.held is False else ""
    return Verdict(verdict.held, f"{verdict.numbers}; {more}", why)

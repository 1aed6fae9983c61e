"""Study ``attack``: agents that send lies, among neighbours who do or do not trust everybody.

f of the n agents are attackers, drawn with the seed. What they send in place of their model:

noise   : Gaussian noise, ten times as long as their model.
flipped : their model with all signs flipped, four times as long.
scaled  : their model, three times as long.

All methods adapt, then combine; the robust ones know that f of an agent's neighbours may lie. What
is judged are the held-out pairs of the honest agents.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.report.study_figures import Figure, Line, Panel
from decdpo.studies.attackers import LIES, AttackedTraining
from decdpo.studies.cells import Cell, Training
from decdpo.studies.claims import (
    OURS,
    Claim,
    Named,
    Verdict,
    each_of,
    errors,
    in_order,
    no_worse,
)
from decdpo.studies.study import (
    COLUMNS,
    Options,
    Study,
    num_agents,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Missing, Table

CLIPPED = "ClippedGossip (He, Karimireddy and Jaggi)"
TRIMMED = "BRIDGE (Fang, Yang and Bajwa)"
GRAPH = "exponential_undirected"
"""A sparse graph with more than 2 f neighbours for every agent."""
METHODS: dict[str, dict[str, Any]] = {
    "plain gossip": {"algorithm.kind": "dsgd", "algorithm.overlap": False},
    "clipped gossip": {"algorithm.kind": "clipped_gossip"},
    "trimmed mean": {"algorithm.kind": "trimmed_mean"},
}
PLAIN, *ROBUST = METHODS
SHARE = 0.2
"""Of the agents that lie at most: 3 of 16."""


class Attack(Study):
    """Three methods, three lies, none, one and a fifth of the agents as attackers."""

    name = "attack"
    title = "Untrusted neighbours"
    source = "the sources of clipped_gossip and trimmed_mean; the numbers are ours"
    columns = {
        **COLUMNS,
        "attack": "what attackers send; none where there are none",
        "f": "attackers among the agents",
        "honest/accuracy": "own models of honest agents on their held-out pairs",
        "honest/loss": "the loss on them",
        "honest/average_accuracy": "the mean of the honest agents' models on them",
    }
    setting = (
        f"graph {GRAPH}, 120 rounds of one local step, adapt then combine, optim.lr 0.1 (1 on "
        "texts), float64; attackers drawn with the seed, algorithm.dishonest = f (1 where f = 0)"
    )
    summary_columns = (
        ("attack", "f", "method"),
        ("honest/accuracy", "honest/loss", "honest/average_accuracy"),
    )

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, method, lie and number of attackers."""
        pairs = pairs_of(options, self.agents)
        most = int(SHARE * num_agents(options, pairs))
        base = {
            "topology.graph": GRAPH,
            # Plain gossip grows by what liars send, beyond what float32 holds.
            "policy.dtype": "float64",
            "optim.lr": usual_lr(pairs),
            "run.rounds": 40 if options.quick else 120,
            "log.every": 40,
            "log.gradient_pairs": 16,
        }
        lies = [("none", 0), *((lie, f) for f in dict.fromkeys((1, most)) for lie in LIES if f)]
        variants = []
        for lie, f in lies:
            for method, settings in METHODS.items():
                more = {} if method == PLAIN else {"algorithm.dishonest": max(f, 1)}
                labels = {"attack": lie, "f": f, "method": method}
                variants.append((labels, {**base, **settings, **more}))
        return [attacked(cell) for cell in training_cells(options, variants, pairs=pairs)]

    def claims(self) -> Sequence[Claim]:
        """Return what the sources say of each method, and what our readings come to."""
        found = [
            Claim(
                source,
                f"without attackers {method} predicts no worse than plain gossip",
                partial(cautious, method=method),
            )
            for method, source in zip(ROBUST, (CLIPPED, TRIMMED), strict=True)
        ]
        for lie in LIES:
            found += [
                Claim(
                    source,
                    f"with a fifth of attackers whose messages are {lie}, {method} predicts better "
                    "than plain gossip",
                    partial(beats, method=method, lie=lie),
                )
                for method, source in zip(ROBUST, (CLIPPED, TRIMMED), strict=True)
            ]
        found += [
            Claim(
                OURS,
                f"with a fifth of attackers of any kind, {method} predicts no worse than without",
                partial(unmoved, method=method),
            )
            for method in ROBUST
        ]
        return found

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return the honest agents' accuracy over the number of attackers, for each lie."""
        panels = []
        for lie in LIES:
            lines = []
            for method in METHODS:
                rows = table.final().where(method=method).rows
                points = Table(r for r in rows if r["attack"] in ("none", lie))
                lines.append(Line.of(method, points.curve("f", "honest/accuracy")))
            drawn = tuple(line for line in lines if line.x)
            panels.append(Panel(f"attackers send {SENT[lie]}", "attackers f", OF_HONEST, drawn))
        return (Figure(self.name, tuple(panels), same_y=True),)


ERROR = "held-out error of honest agents"
OF_HONEST = "held-out accuracy of honest agents"
SENT = {"noise": "noise", "flipped": "flipped models", "scaled": "scaled models"}


def attacked(cell: Cell) -> Cell:
    """Return the cell, among whose agents are the attackers that its labels name."""
    work = cell.work
    assert isinstance(work, Training)
    lie, count = cell.labels["attack"], cell.labels["f"]
    return Cell(cell.labels, AttackedTraining(work.config, work.data, lie=lie, attackers=count))


def most_attackers(table: Table) -> int:
    """Return the largest f. Raises ``Missing`` without a cell."""
    found = table.values("f")
    if not found:
        raise Missing("no cell is finished")
    return int(max(found))


def named(table: Table, method: str, lie: str = "none", f: int = 0) -> Named:
    """Return the honest agents' held-out error by seed, with the method's name."""
    name = method if lie == "none" else f"{method}, f = {f}, {lie}"
    return name, errors(table, "honest/accuracy", method=method, attack=lie, f=f)


def cautious(table: Table, method: str) -> Verdict:
    """Compare a method with plain gossip where nobody lies."""
    why = "It follows some neighbours less."
    return no_worse(ERROR, named(table, method), named(table, PLAIN), why)


def beats(table: Table, method: str, lie: str) -> Verdict:
    """Compare a method with plain gossip among the most attackers of a kind."""
    f = most_attackers(table)
    why = "This lie leads plain gossip astray by less than the method's own caution costs."
    return in_order(ERROR, [named(table, method, lie, f), named(table, PLAIN, lie, f)], why)


def unmoved(table: Table, method: str) -> Verdict:
    """Compare a method among the most attackers of each kind with itself without any."""
    f = most_attackers(table)
    found = [
        no_worse(ERROR, named(table, method, lie, f), named(table, method)) for lie in LIES
    ]
    why = "What f liars may still pull is more than the difference that counts."
    return each_of(ERROR, found, why)

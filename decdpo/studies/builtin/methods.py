"""Study ``methods``: centralized DPO, FedDPO and DecDPO side by side.

In the authors' public program centralized DPO takes as many steps in a round as FedDPO; ours takes
one, the gradient of all users, which is FedDPO's E = 1. What E = 3 gains over it is our question.
"""

from collections.abc import Sequence
from typing import Any

from decdpo.report.study_figures import Figure, Panel
from decdpo.studies.cells import Cell
from decdpo.studies.claims import OURS, Claim, Verdict, descends, errors, in_order, increasing
from decdpo.studies.study import (
    Options,
    Study,
    curves,
    distance_panel,
    gap_panel,
    num_agents,
    pairs_of,
    training_cells,
    usual_lr,
)
from decdpo.studies.table import Table

PAPER = "Distributed DPO, Fig. 1 and 6"

METHODS: dict[str, dict[str, Any]] = {
    "centralized": {"algorithm.kind": "centralized"},
    "FedDPO E=1": {"algorithm.kind": "fedavg"},
    "FedDPO E=3": {"algorithm.kind": "fedavg", "algorithm.local_steps": 3},
    "FedDPO E=3 S=n/2": {"algorithm.kind": "fedavg", "algorithm.local_steps": 3},
    "DecDPO exponential": {"topology.graph": "exponential"},
    "DecDPO ring": {"topology.graph": "ring"},
    "local": {"algorithm.kind": "local"},
}
NAMES = tuple(METHODS)
HUE = [(name, {"method": name}) for name in NAMES]


class Methods(Study):
    """Seven ways to train, one step size."""

    name = "methods"
    title = "Centralized, federated and decentralized DPO"
    source = PAPER
    setting = (
        "optim.lr 0.1 (1 on texts) for all; E local steps, S of n participants, 1 and n unless said"
    )
    summary_columns = (
        ("method",),
        ("gap", "loss", "consensus_distance", "heldout/accuracy", "heldout/average/accuracy"),
    )

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed and method."""
        pairs = pairs_of(options)
        half = max(num_agents(options, pairs) // 2, 1)
        variants = []
        for name, settings in METHODS.items():
            more = {**settings, "optim.lr": usual_lr(pairs)}
            if "S=" in name:
                more["algorithm.participants"] = half
            variants.append(({"method": name}, more))
        return training_cells(options, variants)

    def claims(self) -> Sequence[Claim]:
        """Return what the figure shows, and what the theory says of it."""
        drift = (
            "More steps per round pay only while the distance to the optimum dominates: "
            "drift and noise grow with E."
        )
        second_order = (
            "With doubly stochastic weights the average model follows the average gradient on any "
            "graph; the graph enters only through where the gradients are taken, which is "
            "second order in eta."
        )
        return (
            Claim(
                PAPER,
                "FedDPO and DecDPO converge: their gradient norm falls",
                lambda t: descends(t, HUE[:6], "The step is too small for 80 rounds."),
            ),
            Claim(
                OURS,
                "per round, FedDPO with E = 3 is faster than centralized DPO with one step",
                lambda t: increasing(t, "gap", [HUE[2], HUE[0]], drift),
            ),
            Claim(
                "Distributed DPO, abstract",
                "connectivity governs DecDPO: on the exponential graph it ends closer to a "
                "stationary point than on the ring",
                lambda t: increasing(t, "gap", [HUE[4], HUE[5]], second_order),
            ),
            Claim(
                "Distributed DPO, abstract",
                "connectivity governs consensus: the exponential graph keeps the agents closer",
                lambda t: increasing(t, "consensus_distance", [HUE[4], HUE[5]]),
            ),
            Claim(OURS, "DecDPO's average model predicts better than agents alone", together),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return gradient norm, training loss and consensus distance over the rounds."""
        loss = Panel("training loss", "round", "loss", tuple(curves(table, HUE, "loss")))
        distance = distance_panel(table, HUE)
        return (Figure(self.name, (gap_panel(table, HUE), loss, distance)),)


def together(table: Table) -> Verdict:
    """Compare held-out errors: the average model of DecDPO on a ring, and agents alone."""
    return in_order(
        "held-out error",
        [
            (
                "DecDPO ring, average model",
                errors(table, "heldout/average/accuracy", method="DecDPO ring"),
            ),
            ("local, own models", errors(table, "heldout/accuracy", method="local")),
        ],
        "Users differ: what a model for all loses on each user outweighs what it gains from the "
        "others' pairs.",
    )

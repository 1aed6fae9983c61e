"""Study ``lora``: five ways to mix adapters, as the agents drift further apart between exchanges.

Every cell takes the same local steps, E of them between two exchanges: with a larger E the factors
part further before they are mixed. What mixing A and B apart then misses of mixing their product,
the interference, is of second order in that distance; the floor is what the best product of the
same rank would miss. All rules take plain steps, since one of them allows no others.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from decdpo.config import parse_override
from decdpo.policies.lm.names import MIX_RULES
from decdpo.report.study_figures import Figure, Panel
from decdpo.studies.builtin.small import Tastes, small_model
from decdpo.studies.cells import Cell
from decdpo.studies.claims import OURS, Claim, Verdict, compare, errors, in_order, slope_by_seed
from decdpo.studies.study import Options, Study, curves, distance_panel, training_cells
from decdpo.studies.table import Missing, Table

GRAPHS = ("ring", "torus")
STEPS = (1, 10, 100)
TOTAL, QUICK = 200, 100
"""Local steps of a cell."""
RANK = 4
TARGETS = ("q_proj", "v_proj", "down_proj")
INTERFERENCE, FLOOR = "lora/interference", "lora/floor"
SAME = 1.02
"""Factor between two losses that is called none."""


class LoraStudy(Study):
    """The five rules, E in {1, 10, 100}, ring and torus."""

    name = "lora"
    title = "Adapters under gossip"
    source = "FedPDPO's shared adapters, by gossip; the numbers are ours"
    agents = 8
    partition = "by:user"
    setting = (
        f"rank {RANK} on {', '.join(TARGETS)}; {TOTAL} local steps in all, of batches of 2, with "
        "SGD, step size 1, adapt then combine; a random model of one layer unless policy.model "
        "names another"
    )
    summary_columns = (
        ("graph", "E", "rule"),
        (
            "loss", "heldout/average/loss", "heldout/accuracy", "heldout/average/accuracy",
            "consensus_distance", INTERFERENCE, FLOOR, "bytes",
        ),
    )  # fmt: skip
    columns = {
        **Study.columns,
        "rule": "policy.lora.mix",
        INTERFERENCE: "norm of what mixing A and B apart misses of mixing B A, over the norm of "
        "the mixed products, in the recorded round",
        FLOOR: "the same of what the best product of rank r misses; svd loses this much",
        "bytes": "sent by all agents so far",
    }

    def cells(self, options: Options) -> list[Cell]:
        """Return a cell for each seed, graph, E and rule."""
        total = QUICK if options.quick else TOTAL
        named = {".".join(parse_override(override)[:2]) for override in options.overrides}
        base: dict[str, Any] = {
            "policy.kind": "causal_lm",
            "policy.max_length": 64,
            "policy.lora.rank": RANK,
            "policy.lora.targets": TARGETS,
            "policy.tokens_at_once": 512,
            "data.batch_size": 2,
            "optim.lr": 1.0,
            "algorithm.overlap": False,
            "log.gradient_pairs": -1,
            "log.heldout_pairs": 8,
        }
        if "policy.model" not in named:
            base["policy.model"] = str(small_model(options.room / "model").absolute())
        variants = [
            (
                {"graph": graph, "E": steps, "rule": rule},
                {
                    **base,
                    "topology.graph": graph,
                    "algorithm.local_steps": steps,
                    "run.rounds": total // steps,
                    "log.every": max(total // steps // 4, 1),
                    "policy.lora.mix": rule,
                },
            )
            for graph in GRAPHS
            for steps in STEPS
            for rule in MIX_RULES
        ]
        pairs = options.data or Tastes(options.agents or self.agents)
        return training_cells(options, variants, pairs=pairs, seeds=options.seed_range(2))

    def describe_data(self, options: Options) -> str:
        """Return one line on the pairs."""
        return (options.data or Tastes(options.agents or self.agents)).describe()

    def claims(self) -> Sequence[Claim]:
        """Return what is expected of the rules."""
        return (
            Claim(
                OURS,
                "mixing factors apart misses more, the more local steps lie between exchanges",
                _grows,
            ),
            Claim(
                "the identity sum_j w_j B_j A_j - B A = 1/2 sum w_j w_k (B_j - B_k)(A_j - A_k)",
                "interference grows as the consensus distance, a square, to the power of 0.6 to "
                "1.4",
                _second_order,
            ),
            Claim(
                OURS,
                "the floor of rank r lies below the interference in every cell",
                _floor,
            ),
            Claim(
                "FFA-LoRA",
                "freeze_a sends half the bytes of factors, or less",
                partial(_bytes, rule="freeze_a", most=0.6),
            ),
            Claim(
                "LoRA-XS, Fed-SB",
                "core sends a tenth of the bytes of factors, or less",
                partial(_bytes, rule="core", most=0.1),
            ),
            *(
                Claim(
                    OURS,
                    f"after as many steps (E = {STEPS[-1]}) the average model of {rule} has a "
                    f"training loss at most {SAME - 1:.0%} above that of factors",
                    partial(_as_good, rule=rule),
                )
                for rule in ("freeze_a", "core", "svd")
            ),
            Claim(
                "FedSA-LoRA",
                "an agent's own B (share_a) errs less on its own held-out pairs than what factors "
                f"share (E = {STEPS[0]})",
                _personal,
            ),
        )

    def figures(self, table: Table) -> Sequence[Figure]:
        """Return loss, distance and interference over the local steps, on the ring."""
        panels = []
        for steps in STEPS:
            hue = [(rule, {"graph": "ring", "E": steps, "rule": rule}) for rule in MIX_RULES]
            lines = tuple(curves(table, hue, "heldout/average/loss"))
            panels.append(Panel(f"held-out loss, E = {steps}", "round", "average model", lines))
            panels.append(distance_panel(table, hue, f"consensus distance, E = {steps}"))
        common = {"graph": "ring", "rule": "factors"}
        apart = [(f"E = {steps}", {**common, "E": steps}) for steps in STEPS]
        lines = tuple(curves(table, apart, INTERFERENCE))
        panels.append(Panel("interference of factors", "round", "relative", lines, log_y=True))
        return (Figure(self.name, tuple(panels), columns=2),)


def _of(table: Table, rule: str, **labels: Any) -> Table:
    return table.final().where(rule=rule, **labels)


def _grows(table: Table) -> Verdict:
    """Compare the interference on the ring along E."""
    found = [
        (f"E={steps}", _of(table, "factors", graph="ring", E=steps).by_seed(INTERFERENCE))
        for steps in STEPS
    ]
    return in_order("relative interference on the ring", found)


def _second_order(table: Table) -> Verdict:
    """Fit interference against the squared distance over E and graph, seed by seed."""
    rows = [r for r in _of(table, "factors").rows if r.get(INTERFERENCE)]
    slope = slope_by_seed(rows, "consensus_distance", INTERFERENCE)
    return Verdict(slope.within(0.6, 1.4), f"exponent {slope}")


def _floor(table: Table) -> Verdict:
    """Compare floor and interference in the last record of every cell of factors."""
    rows = [r for r in _of(table, "factors").rows if r.get(INTERFERENCE) is not None]
    if not rows:
        raise Missing("no cell of factors is finished")
    shares = [row[FLOOR] / row[INTERFERENCE] for row in rows if row[INTERFERENCE]]
    span = f"from {min(shares):.3g} to {max(shares):.3g}"
    numbers = f"floor / interference {span}, {len(rows)} cells"
    return Verdict(max(shares) < 1, numbers)


def _bytes(table: Table, rule: str, most: float) -> Verdict:
    """Compare the bytes that travelled."""
    labels = {"graph": "ring", "E": STEPS[0]}
    ours, theirs = (_of(table, name, **labels).by_seed("bytes") for name in (rule, "factors"))
    found = compare(ours, theirs)
    return Verdict(found.ratio <= most, f"bytes of {rule} / factors = {found.ratio:.3g}")


def _as_good(table: Table, rule: str) -> Verdict:
    """Compare training losses on both graphs together, seed by seed."""
    sides = []
    for name in (rule, "factors"):
        losses: dict[int, list[float]] = {}
        for graph in GRAPHS:
            for seed, loss in _of(table, name, graph=graph, E=STEPS[-1]).by_seed("loss").items():
                losses.setdefault(seed, []).append(loss)
        sides.append({seed: sum(values) / len(values) for seed, values in losses.items()})
    found = compare(*sides)
    held = True if found.high <= SAME else False if found.low > SAME else None
    return Verdict(held, f"loss of {rule} / factors = {found}")


def _personal(table: Table) -> Verdict:
    """Compare held-out errors of the agents' own models on the ring."""
    sides = [
        (rule, errors(_of(table, rule, graph="ring", E=STEPS[0]), "heldout/accuracy"))
        for rule in ("share_a", "factors")
    ]
    return in_order("held-out error of own models", sides)

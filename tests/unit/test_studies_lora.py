"""The study of adapters: its grid, its pairs, and how its claims are judged."""

from dataclasses import replace

import pytest
from small_models import write_model

from decdpo.studies.builtin.lora import FLOOR, INTERFERENCE
from decdpo.studies.builtin.small import Tastes
from decdpo.studies.catalogue import builtin
from decdpo.studies.cells import Memory
from decdpo.studies.study import Options
from decdpo.studies.table import Table

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    model = write_model(out / "base")
    options = Options(out, seeds=1, quick=True, agents=3, overrides=(f"policy.model={model}",))
    return builtin("lora").cells(options)


def test_every_rule_meets_every_graph_and_number_of_steps(cells):
    places = {(c.labels["graph"], c.labels["E"], c.labels["rule"]) for c in cells}
    assert len(places) == len(cells) == 2 * 3 * 5
    for cell in cells:
        config = cell.work.config
        assert config.policy.lora.mix == cell.labels["rule"]
        assert config.run.rounds * config.algorithm.local_steps == 100
        assert config.topology.graph == cell.labels["graph"]


def test_a_cell_records_what_mixing_misses(cells, tmp_path):
    (cell,) = [c for c in cells if c.labels == {**cells[0].labels, "E": 10, "rule": "factors"}]
    config = cell.work.config
    work = replace(cell.work, config=replace(config, run=replace(config.run, rounds=2)))
    work.run(tmp_path, Memory())
    start, *_, last = work.records(tmp_path, Memory())
    assert 0 < last[FLOOR] < last[INTERFERENCE]
    assert last["loss"] < start["loss"]


def test_users_of_a_seed_are_the_same_and_partly_alike(tmp_path):
    users = Tastes(3, pairs=24)
    rows = users._rows(0)
    assert rows == users._rows(0) and rows != users._rows(1)
    index = users.shards(0, tmp_path)
    assert index.num_agents == 3 and users.shards(0, tmp_path).digest == index.digest


def rows(**change):
    """Return a finished table in which every claim holds, changed for some rules."""
    found = []
    for seed in range(3):
        for graph in ("ring", "torus"):
            for steps in (1, 10, 100):
                for rule in ("factors", "freeze_a", "core", "svd", "share_a"):
                    jitter = 1 + 0.01 * seed
                    row = {
                        "cell": f"{graph}{steps}{rule}{seed}", "seed": seed, "round": 4,
                        "graph": graph, "E": steps, "rule": rule, "loss": 0.6 * jitter,
                        "consensus_distance": steps * jitter * (1 + (graph == "torus")),
                        "bytes": {"freeze_a": 50, "core": 4}.get(rule, 100),
                        "heldout/accuracy": 0.9 if rule == "share_a" else 0.7 + 0.01 * seed,
                    }  # fmt: skip
                    if rule == "factors":
                        row[INTERFERENCE] = row["consensus_distance"] / 1000
                        row[FLOOR] = row[INTERFERENCE] / 2
                    found.append({**row, **change.get(rule, {})})
    return Table(found)


def verdicts(table):
    return [claim.judge(table).held for claim in builtin("lora").claims()]


def test_claims_hold_where_the_numbers_bear_them_out():
    assert verdicts(rows()) == [True] * 9


@pytest.mark.parametrize(
    "place, change",
    [
        (0, {"factors": {INTERFERENCE: 0.5}}),
        (1, {"factors": {INTERFERENCE: 0.5}}),
        (2, {"factors": {FLOOR: 9.0}}),
        (3, {"freeze_a": {"bytes": 90}}),
        (4, {"core": {"bytes": 90}}),
        (5, {"freeze_a": {"loss": 0.9}}),
        (6, {"core": {"loss": 0.9}}),
        (7, {"svd": {"loss": 0.9}}),
        (8, {"share_a": {"heldout/accuracy": 0.2}}),
    ],
)
def test_a_claim_does_not_hold_where_they_do_not(place, change):
    found = verdicts(rows(**change))
    assert found[place] is False
    assert [held for i, held in enumerate(found) if i not in (place, 0, 1)] == [True] * (
        len(found) - 2 - (place > 1)
    )


def test_claims_of_cells_that_are_not_there_are_undecided():
    assert verdicts(Table([])) == [None] * 9

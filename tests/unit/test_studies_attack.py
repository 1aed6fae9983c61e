"""The studies of untrusted neighbours, low communication and privacy: cells and verdicts."""

import pytest

from decdpo.studies.attackers import LIES, attackers_of
from decdpo.studies.builtin import low_communication, privacy
from decdpo.studies.builtin.attack import METHODS, PLAIN
from decdpo.studies.catalogue import builtin
from decdpo.studies.cells import Memory
from decdpo.studies.study import Options
from decdpo.studies.table import Table


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Return the quick cells of one seed by their labels."""
    options = Options(tmp_path_factory.mktemp("attack"), seeds=1, quick=True)
    found = builtin("attack").cells(options)
    return {(c.labels["attack"], c.labels["f"], c.labels["method"]): c for c in found}


def last(cell, folder):
    folder.mkdir()
    cell.work.run(folder, Memory())
    assert cell.work.finished(folder)
    return cell.work.records(folder, Memory())[-1]


def test_attackers_are_drawn_with_the_seed():
    assert attackers_of(0, 16, 3) == attackers_of(0, 16, 3)
    assert len({attackers_of(seed, 16, 3) for seed in range(9)}) > 5
    assert attackers_of(0, 16, 0) == frozenset()


def test_the_grid_has_every_method_with_every_lie(cells):
    assert set(cells) == {
        (lie, f, method) for lie, f in [("none", 0), *((lie, 1) for lie in LIES)]
        for method in METHODS
    }  # fmt: skip
    assert len({cell.digest for cell in cells.values()}) == len(cells)


def test_lies_are_seeded_and_reach_plain_gossip_alone(cells, tmp_path):
    noisy = last(cells["noise", 1, PLAIN], tmp_path / "a")
    again = last(cells["noise", 1, PLAIN], tmp_path / "b")
    assert noisy["honest/loss"] == again["honest/loss"]
    honest = last(cells["none", 0, PLAIN], tmp_path / "c")
    clipped = last(cells["noise", 1, "clipped gossip"], tmp_path / "d")
    assert honest["honest/accuracy"] == pytest.approx(honest["heldout/accuracy"])
    assert clipped["honest/loss"] < 0.7 < noisy["honest/loss"]


def attack_table(errors):
    rows = []
    for seed in range(5):
        for lie, f in [("none", 0), *((lie, 3) for lie in LIES)]:
            for method in METHODS:
                accuracy = 1 - errors(lie, method) * (1 + 0.002 * seed)
                labels = {"attack": lie, "f": f, "method": method, "seed": seed}
                cell = f"{lie}{method}{seed}"
                rows.append({"cell": cell, **labels, "round": 9, "honest/accuracy": accuracy})
    return Table(rows)


def test_the_claims_of_attack_are_judged_by_the_errors_of_the_honest():
    good = attack_table(lambda lie, m: 0.5 if lie != "none" and m == PLAIN else 0.3)
    assert [claim.judge(good).held for claim in builtin("attack").claims()] == [True] * 10
    bad = attack_table(lambda lie, m: 0.3 if lie == "none" and m == PLAIN else 0.5)
    assert [claim.judge(bad).held for claim in builtin("attack").claims()] == [False] * 8 + [
        True, True,
    ]  # fmt: skip


def communication_table(error):
    rows = []
    for seed in range(5):
        for method, settings in low_communication.METHODS.items():
            rounds = 320 // settings["algorithm.local_steps"]
            rows.append({
                "cell": f"{method}{seed}", "method": method, "seed": seed, "round": rounds,
                "bytes": 64 * rounds, "gap": error(method) * (1 + 0.002 * seed),
                "heldout/average/accuracy": 1 - error(method) * (1 + 0.002 * seed),
            })  # fmt: skip
    return Table(rows)


def test_the_claims_of_low_communication_weigh_errors_and_say_bytes():
    study = builtin("low-communication")
    table = communication_table(lambda method: 0.2 if "DiLoCo" in method else 0.3)
    study.derive(table)
    assert {row["steps"] for row in table.rows} == {320}
    assert {row["round_bytes"] for row in table.rows} == {64.0}
    verdicts = [claim.judge(table) for claim in study.claims()]
    assert all(verdict.held for verdict in verdicts)
    assert "a share of 0.125" in verdicts[0].numbers
    worse = communication_table(lambda method: 0.4 if method != "DecDPO, E=1" else 0.3)
    assert study.claims()[0].judge(worse).held is False


def privacy_table(error):
    rows = []
    for seed in range(5):
        for method in privacy.METHODS:
            for noise in privacy.NOISES:
                accuracy = 1 - error(method, noise) * (1 + 0.002 * seed)
                labels = {"method": method, "noise": noise, "seed": seed}
                row = {"cell": f"{method}{noise}{seed}", **labels, "heldout/accuracy": accuracy}
                rows.append({**row, "round": 80})
    return Table(rows)


def test_the_claims_of_privacy_compare_methods_at_every_noise():
    claims = builtin("privacy").claims()
    table = privacy_table(lambda m, noise: (0.3 if m == "alone" else 0.2) + 0.02 * noise)
    assert [claim.judge(table).held for claim in claims] == [True] * 6
    table = privacy_table(lambda m, noise: 0.2 if m != "DecDPO" or noise < 4 else 0.3)
    held = [claim.judge(table).held for claim in claims]
    assert held == [False, True, False, False, False, False]

"""The built-in studies: their grids, and what they make of tables with known numbers."""

import numpy as np
import pytest

from decdpo.cli import main
from decdpo.errors import ConfigError
from decdpo.studies.builtin.rates import problem_of
from decdpo.studies.catalogue import STUDIES, builtin
from decdpo.studies.cells import Memory, Training
from decdpo.studies.engine import folder_of
from decdpo.studies.study import Options
from decdpo.studies.table import Table
from decdpo.theory.bounds import best_step, federated


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_grid_of_different_cells_and_undecided_claims(name, tmp_path):
    study = builtin(name)
    cells = study.cells(Options(tmp_path, quick=True, seeds=1))
    assert len({cell.digest for cell in cells}) == len(cells) >= 3
    assert {cell.labels["seed"] for cell in cells} == {0}
    labels, numbers = study.summary_columns
    assert set(labels) & set().union(*(cell.labels for cell in cells))
    for claim in study.claims():
        assert claim.source and claim.text
        if "Fig. 1" not in claim.source or name != "balanced-toy":
            assert claim.judge(Table([])).held is None, claim.text


@pytest.mark.parametrize("name", STUDIES)
def test_the_default_has_five_seeds_or_two_of_a_language_model(name, tmp_path, monkeypatch):
    monkeypatch.setattr("decdpo.studies.study.Options.room", tmp_path)
    monkeypatch.setattr("decdpo.studies.study.usual_users", small_users)
    monkeypatch.setattr("decdpo.studies.builtin.topology_scaling.TRAINED_SIZES", (8,))
    monkeypatch.setattr("decdpo.studies.people.fedpdpo.UNSEEN", 1)
    monkeypatch.setattr("decdpo.studies.people.fedpdpo.FedPDPO.agents", 2)
    cells = builtin(name).cells(Options(tmp_path))
    assert {cell.labels["seed"] for cell in cells} == set(range(2 if name == "lora" else 5))


def small_users(options, agents=8, **changes):
    from decdpo.data.synthetic import Choices

    changes.pop("agents", None)
    return Choices(agents=8, pairs=4, dimension=2, **changes)


def test_the_list_names_every_study(capsys):
    assert main(["study", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(STUDIES)


def training_rows(labels, norms, seed=0, **last):
    """A cell whose gradient norm takes these values; the last record has ``last`` as well."""
    cell = f"{labels}{seed}"
    rows = [
        {"cell": cell, **labels, "seed": seed, "round": 10 * t, "gradient_norm": norm}
        for t, norm in enumerate(norms)
    ]
    rows[-1].update(last)
    return rows


def test_the_gap_is_the_squared_norm_over_its_first_value():
    table = Table(training_rows({"method": "x"}, [2.0, 1.0, 0.5, 0.25, 0.125]))
    builtin("methods").derive(table)
    assert [r["gap"] for r in table.rows] == [1, 1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert table.rows[-1]["gap_tail"] == 1 / 256


def local_steps_table(gap, clipped):
    """A table whose final gap is ``gap(lr, E)`` with a little noise.

    clipped : the other measure, min(1, ||g||)^2 of batch gradients, of E.
    """
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        for lr in (0.01, 0.1, 1.0):
            for steps in (1, 3, 6):
                last = np.sqrt(gap(lr, steps) * np.exp(rng.normal(0, 0.01)))
                rows += training_rows(
                    {"lr": lr, "E": steps}, [1.0, last], seed, clipped_gradient_sq=clipped[steps]
                )
    table = Table(rows)
    builtin("local-steps").derive(table)
    return table


def verdicts(name, table):
    return {c.text: c.judge(table) for c in builtin(name).claims()}


THEIRS = {1: 1.0, 3: 0.4616, 6: 0.1554}


def test_the_sources_own_gaps_would_hold():
    # Whatever our own gap is, as long as it falls with E.
    found = verdicts("local-steps", local_steps_table(lambda lr, e: 0.01 / e, THEIRS))
    assert all(v.held for v in found.values()), found
    assert any("source 0.1554" in v.numbers for v in found.values())


def test_the_sources_gaps_are_compared_in_size_and_by_its_own_measure():
    small = {steps: 0.02 * gap for steps, gap in THEIRS.items()}
    found = verdicts("local-steps", local_steps_table(lambda lr, e: THEIRS[e], small))
    beside = [v for text, v in found.items() if "0.4616" in text]
    # The same ratios to E = 1, in both measures, and yet other gaps.
    assert [v.held for v in beside] == [False] * 3
    assert "E=1 0.02 ± 0 (source 1.0000)" in beside[0].numbers and "our gap" in beside[0].numbers
    unknown = Table([])
    assert [c.judge(unknown).held for c in builtin("local-steps").claims()] == [None] * 8


def test_drift_that_dominates_is_found_out():
    noise = dict.fromkeys(THEIRS, 0.02)
    found = verdicts("local-steps", local_steps_table(lambda lr, e: e * lr, noise))
    assert not any(v.held for v in found.values())
    assert any("grow with E, outweigh it" in v.why for v in found.values())


def test_the_order_of_graphs_is_judged_by_the_seeds():
    def table(distances):
        rng = np.random.default_rng(1)
        rows = []
        for seed in range(5):
            for graph, (rho, distance) in distances.items():
                value = distance * np.exp(rng.normal(0, 0.01))
                rows += training_rows(
                    {"graph": graph}, [1.0, 0.5], seed, consensus_distance=value, rho=rho
                )
        table = Table(rows)
        builtin("topology").derive(table)
        return table

    right = {
        "complete": (0.0, 1), "exponential": (0.6, 2), "torus": (0.8, 4), "ring": (0.95, 15),
        "star": (0.9, 9), "path": (0.99, 60),
    }  # fmt: skip
    found = list(verdicts("topology", table(right)).values())
    assert found[0].held is True and found[1].held is True and found[2].held is False
    assert found[0].numbers.index("star") < found[0].numbers.index("ring")
    # 2 / (1 - rho)^0.76 or so between them
    assert "exponent" in found[3].numbers
    wrong = list(verdicts("topology", table({**right, "torus": (0.8, 40)})).values())
    assert wrong[0].held is True and wrong[1].held is False
    # A star that is farther apart than its gap says is out of the source's order, not of ours.
    wide = list(verdicts("topology", table({**right, "star": (0.9, 90)})).values())
    assert wide[0].held is False and wide[1].held is True


def test_flat_curves_are_what_the_source_says_of_stale_messages():
    def table(gaps):
        rng = np.random.default_rng(2)
        rows = []
        for seed in range(5):
            for lr in (0.01, 0.1, 1.0):
                for age, gap in gaps.items():
                    last = np.sqrt(gap * np.exp(rng.normal(0, 0.001)))
                    rows += training_rows(
                        {"lr": lr, "q": age}, [1.0, last], seed, consensus_distance=gap
                    )
        table = Table(rows)
        builtin("staleness").derive(table)
        return table

    stalled = list(verdicts("staleness", table({0: 0.2, 2: 0.99, 5: 0.998})).values())
    slowed = list(verdicts("staleness", table({0: 0.2, 2: 0.4, 5: 0.6})).values())
    assert stalled[-2].held is True and slowed[-2].held is False
    # ln 0.2 / ln 0.4 = 1.76 and ln 0.2 / ln 0.6 = 3.15, where 1.67 and 2.67 are predicted
    assert "1.75" in slowed[-1].numbers and slowed[-1].held is False
    assert slowed[0].held is True


def test_a_bound_below_the_measured_mean_is_found_out(tmp_path):
    known = {
        "cell": "c", "method": "constants", "lr": None, "seed": 0, "smoothness": 1.0, "gap": 1.0,
        "smoothness_max": 1.0, "gradient_sq": 1.0, "kappa_sq": 0.1, "zeta_sq": 0.1, "num_agents": 4,
    }  # fmt: skip
    study = builtin("rates")
    for norms, held in (([0.5, 0.2, 0.1], True), ([90.0, 80.0, 70.0], False)):
        rows = training_rows({"method": "FedDPO E=3", "lr": 0.1}, norms)
        table = Table([known, *rows])
        study.derive(table)
        last = table.rows[-1]
        squares = np.interp(range(20), (0, 10, 20), np.square(norms))
        assert np.isclose(last["mean_gradient_sq"], squares.mean())
        # Theorem 5.1 with S = n = 4, E = 3, R = 20, eta = 0.1, written out
        bound = 2 / (0.1 * 3 * 20) + 0.1 * 0.1 / 4 + 0.01 * 3 * 0.1 + 0.09 * 0.1 / 4
        assert np.isclose(last["bound"], bound)
        assert study.claims()[0].judge(table).held is held


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """The cells of the study of the advisor for one seed of eight agents, 60 rounds."""
    options = Options(
        tmp_path_factory.mktemp("advisor"), quick=True, seeds=1,
        overrides=("run.rounds=60", "optim.lr=0.05"),
    )  # fmt: skip
    constants, *cells = builtin("advisor").cells(options)
    return constants.work.records(folder_of(options.out, constants), Memory())[0], cells


@pytest.mark.parametrize("budget", ["rounds", "messages", "time"])
def test_every_candidate_of_the_advisor_spends_the_default_s_budget(advised, budget):
    known, cells = advised
    found = {}
    for cell in cells:
        found.setdefault(cell.labels.get(f"role_{budget}"), []).append(cell)
    (default,), (choice,) = found["default"], found["advised"]
    assert default.work.config.optim.lr == 0.05
    candidates = [choice, *found["candidate"]]
    assert len(candidates) == 18
    assert choice.labels["predicted"] == min(c.labels["predicted"] for c in candidates)
    messages = {"ring": 16, "exponential": 24, "one_peer_exponential": 8, "complete": 56}
    spent = []
    for cell in candidates:
        config = cell.work.config
        rounds, steps = config.run.rounds, config.algorithm.local_steps
        if config.algorithm.kind == "fedavg":
            sent = busiest = 8 + config.algorithm.participants
        else:
            sent = messages[config.topology.graph]
            busiest = sent // 8
        one = {"rounds": 1, "messages": sent, "time": busiest + steps}[budget]
        spent.append((rounds * one, one))
    limit = 60 * {"rounds": 1, "messages": 16, "time": 3}[budget]
    assert all(limit - one < total <= limit for total, one in spent)
    lr = choice.work.config.optim.lr
    steps = [found[f"advised, step {change}"][0].work.config for change in ("/ 4", "* 4")]
    assert [c.optim.lr / lr for c in steps] == pytest.approx([1 / 4, 4], rel=1e-5)
    assert {c.run.rounds for c in steps} == {choice.work.config.run.rounds}


def test_the_advised_step_is_that_of_the_measured_constants(advised):
    known, cells = advised
    (cell,) = [
        c for c in cells if c.labels["setting"] == "FedDPO, S=8, E=4" and "role_rounds" in c.labels
    ]
    smooth, eta = known["smoothness"], cell.work.config.optim.lr
    best = best_step(lambda step: federated(problem_of(known), step, 60, 4, 8))
    assert eta == pytest.approx(best.step, rel=1e-5) and eta <= 1 / (4 * smooth)
    assert cell.labels["predicted"] == pytest.approx(best.total)
    # As many messages as the ring's, so it is a candidate on that budget by the same run.
    assert cell.labels["role_messages"] == cell.labels["role_rounds"] == "candidate"
    (longer,) = [c for c in cells if c.labels["setting"].startswith("default, gradients")]
    (choice,) = [c for c in cells if c.labels.get("role_rounds") == "advised"]
    assert longer.work.config.run.rounds == 60 * choice.work.config.algorithm.local_steps
    assert longer.work.config.optim.lr == 0.05


def advice_table(measured):
    """A table where candidate k = 1, 2, 3 was predicted 2^k and measured ``measured(k)``.

    The default is candidate 4; the advised one at other steps is ten times worse.
    """
    rng = np.random.default_rng(4)
    rows = []
    for seed in range(5):
        runs = [
            ("default", "default", 4, measured(4), 16.0),
            ("advised", "FedDPO, S=8, E=16", 16, measured(1), 2.0),
            ("candidate", "DecDPO ring, E=4", 4, measured(2), 4.0),
            ("candidate", "DecDPO ring, E=1", 1, measured(3), 8.0),
            ("advised, step / 4", "advised, step / 4", 16, 10 * measured(1), None),
            ("advised, step * 4", "advised, step * 4", 16, 10 * measured(1), None),
            ("default, gradients of the advised", "longer", 1, measured(0), None),
        ]
        for role, name, steps, square, predicted in runs:
            roles = {f"role_{budget}": role for budget in ("rounds", "messages", "time")}
            norm = np.sqrt(square * np.exp(rng.normal(0, 0.01)))
            last = {"heldout/average/accuracy": 1 - square / 100}
            labels = {"setting": name, "E": steps, "rounds": 10, **roles}
            if predicted is not None:
                labels["predicted"] = predicted
            rows += training_rows(labels, [norm, norm], seed, **last)
            for row in rows[-2:]:
                row.update(loss=square, lr=0.1)
    table = Table(rows)
    builtin("advisor").derive(table)
    return table


def test_good_advice_is_known_from_bad_advice():
    good = verdicts("advisor", advice_table(lambda k: 2.0 ** max(k, 1) / 3 if k else 1e-3))
    bad = verdicts("advisor", advice_table(lambda k: 2.0**-k))
    for text, verdict in good.items():
        # The default that goes on is the best of all here.
        assert verdict.held is ("goes on" not in text), (text, verdict)
    assert any("Spearman 1" in v.numbers for v in good.values())
    assert "Advised: FedDPO, S=8, E=16, 10 rounds in 5 seeds" in list(good.values())[0].numbers
    paid = [v.held for text, v in bad.items() if "advised setting" in text and "goes" not in text]
    assert paid == [False] * 10
    assert [v.held for text, v in bad.items() if "rank" in text] == [False] * 3
    assert [v.held for text, v in bad.items() if "on the ring" in text] == [False]
    far = [v for text, v in bad.items() if "predicted is above" in text]
    assert [v.held for v in far] == [False] * 3 and "most 6" in far[0].numbers


def test_a_prediction_below_what_is_measured_is_found_out():
    found = verdicts("advisor", advice_table(lambda k: 2.0 ** max(k, 1) * 1.5))
    low = [v for text, v in found.items() if "predicted is above" in text]
    assert [v.held for v in low] == [False] * 3
    assert all("below 1 in 15 of 15 runs" in v.numbers for v in low)


def test_every_training_cell_of_a_seed_has_the_same_data(tmp_path):
    cells = builtin("participation").cells(Options(tmp_path, quick=True))
    data = {}
    for cell in cells:
        assert isinstance(cell.work, Training)
        data.setdefault(cell.labels["seed"], set()).add(cell.work.data)
    assert [len(d) for d in data.values()] == [1, 1] and data[0] != data[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["participation", "staleness", "rates"])
def test_a_quick_study_runs_to_its_summary(name, tmp_path, capsys):
    arguments = ["--quick", "--seeds", "2", "--agents", "8", "--set", "run.rounds=8"]
    assert main(["study", name, "--out", str(tmp_path / "s"), *arguments]) == 0
    page = (tmp_path / "s" / "summary.md").read_text()
    assert "## Claims" in page and "not measured" not in page
    assert capsys.readouterr().out.count("\n") == 2 * len(builtin(name).claims())


@pytest.mark.slow
def test_the_study_of_the_advisor_runs_to_its_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--quick", "--seeds", "1", "--agents", "4", "--set", "run.rounds=4"]
    assert main(["study", "advisor", "--out", str(tmp_path), *arguments]) == 0
    page = (tmp_path / "summary.md").read_text()
    assert "Spearman" in page and "nan" not in page and "not measured" not in page
    drawn = (tmp_path / "advisor.svg").read_text()
    for name in ("FedDPO", "DecDPO ring", "default", "advised", "bound = measured"):
        assert f">{name}</text>" in drawn, name


def test_advice_is_compared_with_dsgd_alone(tmp_path):
    options = Options(tmp_path, quick=True, seeds=1, overrides=("algorithm.kind=local",))
    with pytest.raises(ConfigError, match="compared with local"):
        builtin("advisor").cells(options)

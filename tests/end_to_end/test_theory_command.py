"""decdpo theory on configurations and run folders, alone and on several ranks."""

import json

import pytest

from decdpo.theory.series import mean_over_rounds

CONFIG = """[run]
rounds = 20
[data]
shards = "users"
batch_size = 8
[policy]
kind = "loglinear"
features = "columns"
[optim]
lr = 0.5
[topology]
graph = "{graph}"
[comm]
timeout = 60.0
"""


@pytest.fixture
def users(shell):
    options = ("--agents", 6, "--pairs", 20, "--dimension", 4, "--kappa", 1.0)
    shell("synthesize", "choices", *options, "--out", "users")
    return shell.write("run.toml", CONFIG.format(graph="ring"))


def test_constants_predictions_and_advice(shell, users):
    alone = json.loads(shell("theory", users, "--json"))
    constants = alone["constants"]
    assert constants["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert constants["smoothness_max"] > constants["smoothness"] > 0
    # The steps are limited by the least smooth agent, not by the objective.
    prediction = alone["prediction"]
    limit = (1 - prediction["rho"]) / (2 * constants["smoothness_max"])
    assert prediction["bound"]["step_limit"] == pytest.approx(limit)
    stable = (1 + prediction["lambda_min"]) / constants["smoothness_max"]
    assert prediction["largest_stable_step"] == pytest.approx(stable)
    assert prediction["applies"] and prediction["not_covered"] == []
    assert 0 < constants["gap"] < constants["loss"] and constants["kappa_sq"] > 0
    assert alone["prediction"]["formula"] == "DecDPO"
    totals = [choice["bound"]["total"] for choice in alone["advice"]]
    assert totals == sorted(totals) and len(totals) > 20


def test_a_run_is_shown_beside_its_bound(shell, users):
    shell("train", users, "--out", "run")
    found = json.loads(shell("theory", "run", "--json", "--delay", 2))
    assert found["checkpoint"]["round"] == 20
    assert found["checkpoint"]["constants"]["loss"] < found["constants"]["loss"]
    prediction, measured = found["prediction"], found["measured"]
    assert (measured["records"], measured["rounds"]) == (20, 20)
    # All pairs are behind the norms of so small shards: the mean begins where the constants are.
    assert measured["pairs"] == measured["of_pairs"]
    assert measured["first"] == pytest.approx(found["constants"]["gradient_sq"], rel=1e-5)
    squares = [measured["first"], *(r["gradient_norm"] ** 2 for r in shell.metrics("run")[1:])]
    assert measured["mean"] == pytest.approx(sum(squares[:-1]) / 20)
    # A bound is only one if it holds, where it is claimed.
    assert prediction["lr"] <= prediction["bound"]["step_limit"]
    assert measured["mean"] <= prediction["bound"]["total"]
    assert prediction["bound_2_rounds_late"]["total"] > prediction["bound"]["total"]
    page = shell("theory", "run", "--top", 3)
    for words in (
        "smoothness", "L_max", "kappa^2", "measured: mean", "over 20 rounds", "of the start",
        "largest stable step", "--top",
    ):  # fmt: skip
        assert words in page
    assert "log.gradient_pairs" not in page


def test_norms_of_a_few_pairs_and_rounds_are_said_to_be_that(shell, users):
    options = ("--set", "log.gradient_pairs=4", "--set", "log.every=5")
    shell("train", users, "--out", "run", *options)
    measured = json.loads(shell("theory", "run", "--json"))["measured"]
    assert measured["records"] == 4 and measured["pairs"] == 24 < measured["of_pairs"]
    records = [(0, measured["first"])]
    records += [(r["round"], r["gradient_norm"] ** 2) for r in shell.metrics("run")[1:]]
    assert measured["mean"] == pytest.approx(mean_over_rounds(*zip(*records)))
    page = shell("theory", "run")
    assert "24 of the" in page and "log.gradient_pairs" in page


@pytest.mark.parametrize(
    "settings, stable",
    [
        (("optim.momentum=0.9",), False),
        (("optim.kind=adamw",), False),
        (("optim.weight_decay=0.1",), False),
        (("algorithm.kind=quasi_global_momentum",), False),
        (("staleness.kind=seeded", "staleness.max_age=3"), False),
        (("optim.schedule=cosine", "optim.warmup_steps=5"), True),
        (("optim.clip_norm=1.0",), True),
    ],
)
def test_what_the_theory_does_not_cover_is_said(shell, users, settings, stable):
    options = [word for setting in settings for word in ("--set", setting)]
    found = json.loads(shell("theory", users, "--json", *options))["prediction"]
    said = [setting for setting in settings if not setting.startswith("staleness.kind")]
    assert not found["applies"] and len(found["not_covered"]) == len(said)
    assert (found["largest_stable_step"] is not None) == stable
    named = settings[-1].split("=")[0]
    assert named in found["not_covered"][-1]
    assert ("bound_3_rounds_late" in found) == (named == "staleness.max_age")
    page = shell("theory", users, *options)
    assert named in page and ("the theory has none" in page) != stable


def test_the_server_settings_that_the_theory_does_not_cover_are_said(shell, users):
    text = CONFIG.split("[topology]")[0] + '[algorithm]\nkind = "fedavg"\nlocal_steps = {}\n'
    plain = shell.write("plain.toml", text.format(1))
    found = json.loads(shell("theory", plain, "--json"))
    constants, prediction = found["constants"], found["prediction"]
    assert prediction["applies"]
    assert prediction["largest_stable_step"] == pytest.approx(2 / constants["smoothness"])
    more = shell.write(
        "more.toml", text.format(3) + 'weighting = "pairs"\nserver_momentum = 0.5\n'
    )
    prediction = json.loads(shell("theory", more, "--json"))["prediction"]
    assert prediction["largest_stable_step"] is None
    said = " ".join(prediction["not_covered"])
    assert "server_momentum" in said and "weighting" in said
    third = shell.write("third.toml", text.format(3))
    prediction = json.loads(shell("theory", third, "--json"))["prediction"]
    stable = 2 / constants["smoothness_max"]
    assert prediction["largest_stable_step"] == pytest.approx(stable)


def test_fedavg_has_its_own_bound_and_budgets_count(shell, users):
    text = CONFIG.split("[topology]")[0] + '[algorithm]\nkind = "fedavg"\nparticipants = 3\n'
    config = shell.write("fed.toml", text)
    found = json.loads(shell("theory", config, "--json", "--budget-bytes", 1e5))
    assert found["prediction"]["formula"] == "FedDPO"
    assert found["prediction"]["bound"]["terms"]["participation"] > 0
    assert all(choice["bytes"] <= 1e5 for choice in found["advice"])


def test_the_methods_of_the_advice_are_chosen_and_the_best_of_each_is_shown(shell, users):
    def kinds(*words):
        found = json.loads(shell("theory", users, "--json", "--iterations", 5, *words))["advice"]
        return {(choice["method"], choice["graph"]) for choice in found}

    assert kinds("--graphs", "ring") == {("dsgd", "ring")}
    assert kinds("--methods", "fedavg") == {("fedavg", "")}
    both = kinds("--graphs", "ring", "--methods", "dsgd", "fedavg")
    assert both == {("dsgd", "ring"), ("fedavg", "")}
    shell("theory", users, "--graphs", "ring", "--methods", "fedavg", status=2)
    assert "--graphs ring would be ignored" in shell.said
    page = shell("theory", users, "--iterations", 5, "--top", 1)
    best = page.split("the best of each method and graph:")[1].splitlines()[2:]
    assert {line.split()[1] for line in best if line[:6] in ("dsgd  ", "fedavg")} >= {"-", "ring"}
    assert "first of dsgd: --set" in page and "first of fedavg: --set" in page
    # Without a budget of seconds no choice costs any, and there is no column for them.
    assert "seconds" not in page.split("best first:")[1]
    timed = ("--budget-seconds", 10, "--seconds-per-gradient", 0.01)
    assert "seconds" in shell("theory", users, *timed).split("best first:")[1]


def test_advice_can_be_taken(shell, users):
    text = CONFIG.split("[topology]")[0]
    config = shell.write("plain.toml", text)
    found = json.loads(shell("theory", config, "--json", "--budget-rounds", 4))
    for method in ("dsgd", "fedavg"):
        choice = next(c for c in found["advice"] if c["method"] == method)
        options = [word for setting in choice["set"] for word in ("--set", setting)]
        shell("train", config, "--out", method, *options)
        assert [r["round"] for r in shell.metrics(method)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "options, word",
    [
        (("--budget-rounds", 5, "--budget-bytes", 5), "exactly one"),
        (("--budget-seconds", 5), "neither"),
        (("--local-steps", 0), "--local-steps"),
        (("--graphs", "rign"), "rign"),
        (("--pairs", -1), "--pairs"),
        (("--set", "loss.kind=beta_dpo"), "beta_dpo"),
        (("--set", "loss.kind=robust", "--iterations", 0), "initial gap"),
    ],
)
def test_bad_input_is_one_message(shell, users, options, word):
    shell("theory", users, *options, status=2)
    assert word in shell.said and "Traceback" not in shell.said

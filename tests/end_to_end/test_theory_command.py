"""decdpo theory on configurations and run folders, alone and on several ranks."""

import json

import pytest

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


def test_constants_are_the_same_on_any_number_of_ranks(shell, users):
    alone = json.loads(shell("theory", users, "--json"))
    spread = json.loads(shell("theory", users, "--json", ranks=3))
    assert alone == spread
    constants = alone["constants"]
    assert constants["loss"] == pytest.approx(0.6931472, abs=1e-6)
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
    assert measured["records"] == 20
    # A bound is only one if it holds, where it is claimed.
    assert prediction["lr"] <= prediction["bound"]["step_limit"]
    assert measured["mean"] <= prediction["bound"]["total"]
    assert prediction["bound_2_rounds_late"]["total"] > prediction["bound"]["total"]
    page = shell("theory", "run", "--top", 3)
    for words in ("smoothness", "kappa^2", "measured: mean", "largest stable step", "--top"):
        assert words in page


def test_fedavg_has_its_own_bound_and_budgets_count(shell, users):
    text = CONFIG.split("[topology]")[0] + '[algorithm]\nkind = "fedavg"\nparticipants = 3\n'
    config = shell.write("fed.toml", text)
    found = json.loads(shell("theory", config, "--json", "--budget-bytes", 1e5))
    assert found["prediction"]["formula"] == "FedDPO"
    assert found["prediction"]["bound"]["terms"]["participation"] > 0
    assert all(choice["bytes"] <= 1e5 for choice in found["advice"])


def test_advice_can_be_taken(shell, users):
    text = CONFIG.split("[topology]")[0]
    config = shell.write("plain.toml", text)
    found = json.loads(shell("theory", config, "--json", "--budget-rounds", 4))
    for method in ("dsgd", "fedavg"):
        choice = next(c for c in found["advice"] if c["method"] == method)
        options = [word for setting in choice["set"] for word in ("--set", setting)]
        shell("train", config, "--out", method, *options)
        assert len(shell.metrics(method)) == 4


@pytest.mark.parametrize(
    "options, word",
    [
        (("--budget-rounds", 5, "--budget-bytes", 5), "exactly one"),
        (("--budget-seconds", 5), "neither"),
        (("--local-steps", 0), "--local-steps"),
        (("--graphs", "rign"), "rign"),
        (("--pairs", -1), "--pairs"),
        (("--set", "loss.kind=beta_dpo"), "beta_dpo"),
    ],
)
def test_bad_input_is_one_message(shell, users, options, word):
    shell("theory", users, *options, status=2)
    assert word in shell.said and "Traceback" not in shell.said

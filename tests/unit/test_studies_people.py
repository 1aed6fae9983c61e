"""The study of personal parts: its people, its model of items, what it makes of their rows."""

import numpy as np
import pytest
import rated_people
import torch

from decdpo.cli import main
from decdpo.config import parse_override
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError
from decdpo.studies.catalogue import builtin
from decdpo.studies.data import Sharded
from decdpo.studies.people.fedpdpo import ARMS, RESTRAINT, WHOLE
from decdpo.studies.people.item_model import HIDDEN, write_item_model
from decdpo.studies.people.training import SHOTS, World
from decdpo.studies.study import Options
from decdpo.studies.table import Table

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


def test_an_item_is_one_token_of_the_model_and_its_embedding_what_is_known(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    known = np.arange(12.0).reshape(4, 3)
    folder = write_item_model(tmp_path / "m", [f"item{j}" for j in range(4)], known, 3)
    tokens = AutoTokenizer.from_pretrained(folder)
    ids = tokens("which item2", add_special_tokens=False).input_ids
    assert len(ids) == 2
    table = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    assert table.shape[1] == HIDDEN
    torch.testing.assert_close(table[ids[1], :3].double(), torch.from_numpy(known[2]))


def test_people_rate_some_items_and_hold_out_their_own(tmp_path):
    index, model = World(3, 0).make(tmp_path)
    assert index.num_agents == 3 and (model / "config.json").exists()
    assert index.report["held_out_by"].startswith("each person's own items")
    for agent in range(3):
        shard = index.open(agent)
        sides = [
            {text for p in shard.pairs(rows) for text in (p.chosen, p.rejected)}
            for rows in (range(shard.num_train), range(shard.num_train, shard.num_pairs))
        ]
        assert not sides[0] & sides[1] and len(sides[1]) == 8
    again, _ = World(3, 0).make(tmp_path / "again")
    assert again.digest == index.digest


def test_an_ablation_changes_what_it_names(tmp_path):
    cells = builtin("fedpdpo").cells(Options(tmp_path, quick=True, seeds=1, agents=2))
    configs = {cell.labels["method"]: cell.work.config for cell in cells}
    assert set(configs) == set(ARMS)
    whole = configs["FedPDPO"].policy.personal
    assert whole.head == "low_rank" and whole.reward and whole.bottleneck
    for arm, key, off in (
        ("no head", "head", "none"),
        ("no reward head", "reward", False),
        ("no bottleneck", "bottleneck", 0),
    ):
        parts = vars(configs[arm].policy.personal)
        changed = {k for k in parts if parts[k] != vars(whole)[k]}
        assert key in changed and parts[key] == off
        # What restrains a part goes with it.
        assert all(k.startswith(f"{key}_") for k in changed - {key})
    free = vars(configs["no restraint"].policy.personal)
    changed = {f"policy.personal.{k}" for k in free if free[k] != vars(whole)[k]}
    assert changed == set(RESTRAINT)
    assert configs["nothing shared"].policy == configs["FedPDPO"].policy
    assert not configs["FedDPO"].policy.personal.on
    assert all(c.agents.count == 2 for c in configs.values())
    for key in WHOLE:
        assert parse_override(f"{key}=1")[0] in ("loss", "policy")
        with pytest.raises(ConfigError, match="chooses for each cell"):
            options = Options(tmp_path, quick=True, seeds=1, overrides=(f"{key}=1",))
            builtin("fedpdpo").cells(options)


def people_rows(method, accuracies, **more):
    return [
        {"cell": method, "method": method, "seed": 0, "person": f"p{i}", "own": own, **more}
        for i, own in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    "gain, spread, better, two",
    [
        (0.04, 0.004, True, True),
        (0.01, 0.004, True, False),
        (-0.04, 0.004, False, False),
        # The interval holds 2 points; it holds 0 as well.
        (0.022, 0.02, True, None),
        (0.01, 0.1, None, None),
    ],
)
def test_claims_pair_every_person_with_itself(gain, spread, better, two):
    base = np.random.default_rng(0).uniform(0.4, 0.9, 30)
    noise = np.random.default_rng(1).normal(scale=spread, size=30)
    # One more was measured one way alone: it counts in neither mean.
    table = Table(
        people_rows("FedDPO", [*base, 0.0])
        + people_rows("FedPDPO", base + gain + noise)
        + people_rows("FedPDPO", base * 0, shots=4)
    )
    found = {claim.text: claim.judge(table) for claim in builtin("fedpdpo").claims()}
    verdict = found["FedPDPO's own models beat FedDPO's"]
    assert verdict.held is better and f"FedDPO {base.mean():.4f}:" in verdict.numbers
    assert found["by up to 4.8 points: FedPDPO gains 2 points or more over FedDPO"].held is two
    assert found["each part helps: FedPDPO beats no head"].held is None


def test_the_study_runs_to_its_few_shots(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decdpo.studies.people.training.STEPS", 2)
    arguments = ["--quick", "--seeds", "1", "--agents", "2", "--set", "run.rounds=1"]
    assert main(["study", "fedpdpo", "--out", str(tmp_path / "s"), *arguments]) == 0
    page = (tmp_path / "s" / "summary.md").read_text()
    assert "not measured" not in page
    table = (tmp_path / "s" / "table.csv").read_text()
    assert all(f",{shots}" in table for shots in SHOTS)
    assert "new people gain" in capsys.readouterr().out


TAKEN = sorted(f"u{i}" for i in range(30))[np.random.default_rng(5).permutation(30)[0]]
"""The first of 30 people to be chosen; the others rate nothing that this one alone rates."""


@pytest.fixture
def make_people(tmp_path, monkeypatch):
    """Return a function that runs tools/rated_people.py on a table of 30 people and 12 items."""
    rng = np.random.default_rng(0)
    table = [(f"u{i}", f"j{j}", rng.normal(j)) for i in range(30) for j in range(12)]

    def run(*words, more=()):
        source = tmp_path / "ratings.csv"
        lines = [f"{u},{j},{r}\n" for u, j, r in [*table, *more]]
        source.write_text("user,joke,rating\n" + "".join(lines))
        words = [source, "--people", "4", "--seeds", "2", "--out", tmp_path / "out", *words]
        monkeypatch.setattr("sys.argv", ["rated_people", *map(str, words)])
        rated_people.main()
        return tmp_path / "out"

    return run


def test_a_table_of_ratings_becomes_people_and_a_model_of_the_others(make_people):
    from transformers import AutoModelForCausalLM

    out = make_people("--item", "joke")
    indices = [ShardIndex.load(out / str(seed)) for seed in range(2)]
    people = [{entry.name for entry in index.agents} for index in indices]
    assert [len(some) for some in people] == [4, 4] and not people[0] & people[1]
    known = AutoModelForCausalLM.from_pretrained(out / "model").get_input_embeddings().weight[4:, 0]
    # An item's mean rating comes first, and grows with its number; "j10" is sorted behind "j1".
    names = sorted(f"j{j}" for j in range(12))
    order = [names[i] for i in known.argsort().tolist()]
    assert order == [f"j{j}" for j in range(12)]


@pytest.mark.parametrize(
    "words, more, said",
    [
        ([], [], "row 1 of .* has no user, item and rating in user, item, rating"),
        (["--item", "joke"], [("u1", "j1", "good")], "row 361 of .*good"),
        (["--item", "joke", "--people", "20"], [], "30 people rate, of whom 40 are taken"),
        (["--item", "joke"], [(TAKEN, "j99", 1.0)], "such as 'j99'"),
    ],
)
def test_ratings_that_do_not_do_are_one_error(make_people, words, more, said):
    with pytest.raises(SystemExit, match=said):
        make_people(*words, more=more)


def test_people_of_ones_own_need_a_model(tmp_path):
    index, _ = World(2, 0).make(tmp_path)
    with pytest.raises(ConfigError, match="no model"):
        builtin("fedpdpo").cells(Options(tmp_path, data=Sharded((index.folder,))))

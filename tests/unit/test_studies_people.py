"""The study of personal parts: its people, its model of items, what it makes of their rows."""

import numpy as np
import pytest
import torch

from decdpo.cli import main
from decdpo.config import parse_override
from decdpo.errors import ConfigError
from decdpo.studies.catalogue import builtin
from decdpo.studies.data import Sharded
from decdpo.studies.fedpdpo import ALL, ARMS
from decdpo.studies.item_model import HIDDEN, write_item_model
from decdpo.studies.people import SHOTS, World
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
        assert {k for k in parts if parts[k] != vars(whole)[k]} == {key} and parts[key] == off
    assert configs["nothing shared"].policy == configs["FedPDPO"].policy
    assert not configs["FedDPO"].policy.personal.on
    assert all(c.agents.count == 2 for c in configs.values())
    for key in ALL:
        assert parse_override(f"{key}=1")[0] in ("loss", "policy")
        with pytest.raises(ConfigError, match="chooses for each cell"):
            options = Options(tmp_path, quick=True, seeds=1, overrides=(f"{key}=1",))
            builtin("fedpdpo").cells(options)


def people_rows(method, accuracies, **more):
    return [
        {"cell": method, "method": method, "seed": 0, "person": f"p{i}", "own": own, **more}
        for i, own in enumerate(accuracies)
    ]


@pytest.mark.parametrize("gain, better, two", [(0.04, True, True), (0.01, True, False),
                                               (-0.04, False, False)])  # fmt: skip
def test_claims_pair_every_person_with_itself(gain, better, two):
    base = np.random.default_rng(0).uniform(0.4, 0.9, 30)
    noise = np.random.default_rng(1).normal(scale=0.004, size=30)
    table = Table(
        people_rows("FedDPO", base)
        + people_rows("FedPDPO", base + gain + noise)
        + people_rows("FedPDPO", base * 0, shots=4)
    )
    found = {claim.text: claim.judge(table) for claim in builtin("fedpdpo").claims()}
    assert found["FedPDPO's own models beat FedDPO's"].held is better
    assert found["by up to 4.8 points: FedPDPO gains 2 points or more over FedDPO"].held is two
    assert found["each part helps: FedPDPO beats no head"].held is None


def test_the_study_runs_to_its_few_shots(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decdpo.studies.people.STEPS", 2)
    arguments = ["--quick", "--seeds", "1", "--agents", "2", "--set", "run.rounds=1"]
    assert main(["study", "fedpdpo", "--out", str(tmp_path / "s"), *arguments]) == 0
    page = (tmp_path / "s" / "summary.md").read_text()
    assert "not measured" not in page
    table = (tmp_path / "s" / "table.csv").read_text()
    assert all(f",{shots}" in table for shots in SHOTS)
    assert "new people gain" in capsys.readouterr().out


def test_people_of_ones_own_need_a_model(tmp_path):
    index, _ = World(2, 0).make(tmp_path)
    with pytest.raises(ConfigError, match="no model"):
        builtin("fedpdpo").cells(Options(tmp_path, data=Sharded((index.folder,))))

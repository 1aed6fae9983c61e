"""The personal parts of a language model: what they are, compute, and leave alone at the start."""

import itertools

import numpy as np
import pytest
import torch
from adapted import PAIRS, encoded, near_start
from small_models import write_model

from decdpo.config import parse
from decdpo.errors import ConfigError, PolicyError
from decdpo.losses.dpo import DPO
from decdpo.losses.fedpdpo import FedPDPO, RewardedScores
from decdpo.params.flat import Tag
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.adapters.personal import PersonalOptions
from decdpo.policies.lm.forward.head import token_logps
from decdpo.policies.objective import Objective

ROWS = np.arange(len(PAIRS))
ALL = {"head": "low_rank", "head_rank": 3, "reward": True, "bottleneck": 5}
SWITCHES = {
    "head": ({"head": "low_rank", "head_rank": 3}, {"personal.head_in", "personal.head_out"}),
    "full": ({"head": "full"}, {"personal.head"}),
    "reward": ({"reward": True}, {"personal.reward"}),
    "bottleneck": ({"bottleneck": 5}, {"personal.down", "personal.up"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("personal") / "model", layers=2)


def model(folder, parts=ALL, **more):
    own = PersonalOptions(**parts, seed=7) if parts else None
    return CausalLM(folder, max_length=64, lora=LoraOptions(2, 4.0), personal=own, **more)


def at(policy, noise=0.2, seed=0):
    return near_start(policy, noise, seed)


def scores(policy, params, rows=ROWS):
    return policy.forward(params, encoded(policy), rows, need_grad=False).scores


PARTS = [ALL, {**ALL, "head": "full"}, *(parts for parts, _ in SWITCHES.values())]


WAYS = [{}, {"dtype": "bfloat16"}, {"tokens_at_once": 10**6}, {"cache_reference": False}]


@pytest.mark.parametrize(
    "parts, more", [*((parts, {}) for parts in PARTS), *((ALL, way) for way in WAYS[1:])]
)
def test_the_start_is_the_reference_to_the_bit(folder, parts, more):
    policy = model(folder, parts, **more)
    plain = CausalLM(folder, max_length=64, **more)
    found, base = scores(policy, at(policy, 0.0)), scores(plain, at(plain, 0.0))
    for name in ("chosen", "rejected"):
        assert torch.equal(getattr(found, name), getattr(base, name))
        assert torch.equal(getattr(found, f"ref_{name}"), getattr(found, name))
    if parts.get("reward"):
        assert torch.equal(found.reward_chosen, torch.zeros(len(PAIRS)))
    moved = scores(policy, at(policy))
    assert not torch.equal(moved.chosen, found.chosen) and torch.equal(
        moved.ref_chosen, found.ref_chosen
    )


def test_each_switch_adds_the_parameters_it_names_and_no_other(folder):
    bare = model(folder, None)
    names = set(bare.layout.names)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(("head", "reward", "bottleneck"), count):
            parts = {key: value for name in chosen for key, value in SWITCHES[name][0].items()}
            layout = model(folder, parts).layout
            added = set.union(*(SWITCHES[name][1] for name in chosen))
            assert set(layout.names) - names == added and names <= set(layout.names)
            assert layout.num_shared == bare.layout.num_shared == bare.layout.size
            assert layout.names[: len(names)] == bare.layout.names
            assert {name for name in layout.names if layout.tag(name) is Tag.PERSONAL} == added
    full = model(folder, SWITCHES["full"][0])
    assert set(full.layout.names) - names == {"personal.head"}


def test_policies_of_other_parts_are_other_policies(folder):
    kinds = [None, *PARTS, {**ALL, "activation": "tanh"}]
    policies = [model(folder, parts) for parts in kinds]
    assert len({policy.digest for policy in policies}) == len(kinds)
    # The reference is the base model for all of them, so that its values are kept once.
    assert len({policy.weights.reference_digest for policy in policies}) == 1
    assert model(folder, ALL).digest == policies[1].digest


def by_hand(policy, params, prompt, answer):
    """Return log pi and the explicit reward of an answer from the states of one plain sequence."""
    module = policy.bind(params)
    own, ids = module.personal, torch.from_numpy(np.concatenate((prompt, answer))).long()
    with torch.no_grad():
        states = module.base_model(inputs_embeds=module.get_input_embeddings()(ids)[None])
        states = states.last_hidden_state[0, len(prompt) - 1 : -1].double()
        d, u = own.down.double(), own.up.double()
        inner = states @ d.t()
        states = states + (0.5 * inner * (1 + torch.erf(inner / 2**0.5))) @ u.t()
        if own.head is not None:
            weight = own.head.double()
        else:
            weight = module.get_output_embeddings().weight.double()
            weight = weight + own.head_out.double() @ own.head_in.double()
        logps = torch.log_softmax(states @ weight.t(), dim=1)
        total = logps[torch.arange(len(answer)), ids[len(prompt) :]].sum()
        return total.item(), (states[-1] @ own.reward.double()).item()


@pytest.mark.parametrize("head", ["low_rank", "full"])
def test_scores_are_those_of_the_formulas(folder, head):
    policy = model(folder, {**ALL, "head": head})
    params, data = at(policy, 0.1), encoded(policy)
    found = policy.forward(params, data, ROWS, need_grad=False).scores
    # The model's attention takes packed rows; one sequence needs its own.
    policy.scorer.release()
    for row in ROWS:
        prompt, *answers = data.tokens.parts(int(row))
        for side, answer in zip(("chosen", "rejected"), answers):
            logp, reward = by_hand(policy, params, prompt, answer)
            assert getattr(found, side)[row].item() == pytest.approx(logp, rel=1e-5, abs=1e-4)
            own = getattr(found, f"reward_{side}")[row].item()
            assert own == pytest.approx(reward, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("parts", [ALL, {**ALL, "head": "full"}, {"bottleneck": 5}])
def test_the_gradient_is_that_of_finite_differences(folder, parts):
    policy = model(folder, parts)
    objective, data = Objective(policy, FedPDPO(beta=0.3, explicit_loss=0.7)), encoded(policy)
    params = at(policy, 0.1)
    objective.gradient(params, data, ROWS)
    gradient, x = params.grad.clone(), params.data.clone()
    for name in policy.layout.names:
        if not name.startswith("personal.") and "layers.0.self_attn.q_proj" not in name:
            continue
        place = policy.layout.place(name)
        way = torch.zeros_like(x)
        way[place] = gradient[place]
        slope = float(gradient[place].double().square().sum())
        assert slope > 0, name
        step = 2e-3 / slope**0.5
        both = []
        for sign in (1, -1):
            params.data.copy_(x + sign * step * way)
            both.append(objective.evaluate(params, data, ROWS).means()["loss"])
        params.data.copy_(x)
        assert (both[0] - both[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=3e-6)


def test_a_low_rank_head_is_the_matrix_it_stands_for():
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4)
    q, p = torch.randn(2, 4, requires_grad=True), torch.randn(11, 2, requires_grad=True)
    targets, slopes = torch.arange(7), torch.randn(7)
    leaves = hidden, q, p
    for chunk in (11, 33, 10**6):
        for cap in (None, 3.0):
            found = token_logps(
                hidden, weight, targets, softcap=cap, chunk_values=chunk, added=(hidden @ q.t(), p)
            )
            logits = hidden @ (weight + p @ q).t()
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            expected = torch.log_softmax(logits, 1)[torch.arange(7), targets]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            ours = torch.autograd.grad((found * slopes).sum(), leaves)
            theirs = torch.autograd.grad((expected * slopes).sum(), leaves)
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_a_reward_head_the_loss_is_dpo(folder):
    policy = model(folder, {"bottleneck": 5})
    params, data = at(policy), encoded(policy)
    found = {}
    for loss in (DPO(), FedPDPO(explicit_weight=3.0, explicit_loss=2.0)):
        stats = Objective(policy, loss).gradient(params, data, ROWS).means()
        found[type(loss)] = stats, params.grad.clone()
    assert torch.equal(found[DPO][1], found[FedPDPO][1])
    assert found[DPO][0]["loss"] == found[FedPDPO][0]["loss"]
    implicit = found[DPO][0]["rewards/margins"]
    assert found[FedPDPO][0]["combined/margins"] == pytest.approx(implicit, rel=1e-6)
    assert found[FedPDPO][0]["explicit/accuracies"] == 0.5


def test_the_metrics_are_those_of_each_margin_and_of_both():
    one = torch.tensor
    pairs = RewardedScores(
        chosen=one([1.0, 1.0, 0.0]), rejected=one([0.0, 3.0, 0.0]), ref_chosen=torch.zeros(3),
        ref_rejected=torch.zeros(3), chosen_length=torch.ones(3), rejected_length=torch.ones(3),
        reward_chosen=one([-1.0, 5.0, 0.0]), reward_rejected=one([0.0, 0.0, 0.0]),
    )  # fmt: skip
    loss = FedPDPO(beta=0.5, explicit_weight=2.0, explicit_loss=0.25)
    found = {name: metric(pairs).tolist() for name, metric in loss.metrics.items()}
    assert found == {
        "explicit/margins": [-1.0, 5.0, 0.0],
        "explicit/accuracies": [0.0, 1.0, 0.5],
        "combined/margins": [-1.5, 9.0, 0.0],
        "combined/accuracies": [0.0, 1.0, 0.5],
    }
    expected = torch.nn.functional.softplus(-one([-1.5, 9.0, 0.0]))
    expected = expected + 0.25 * torch.nn.functional.softplus(-one([-1.0, 5.0, 0.0]))
    torch.testing.assert_close(loss(pairs), expected)


BASE = """[policy]
kind = "causal_lm"
model = "m"
[policy.lora]
rank = 2
"""


@pytest.mark.parametrize(
    "overrides, what",
    [
        (["policy.personal.reward=true"], "would not be trained"),
        (["loss.kind=fedpdpo"], "personal parts"),
        (["policy.personal.bottleneck=4", "policy.lora.rank=0"], "policy.lora.rank = 0"),
        (["policy.personal.head_rank=4"], "no personal part"),
        (["policy.personal.head=full", "policy.personal.head_rank=4"], "head_rank is not used"),
        (["policy.personal.head=full", "policy.personal.activation=relu"], "activation is not"),
        (["policy.personal.head=whole"], "policy.personal.head"),
        (["policy.personal.bottlenek=4"], "bottleneck"),
    ],
)
def test_sections_that_mean_nothing_are_refused(overrides, what):
    with pytest.raises(ConfigError, match=what):
        parse(BASE, overrides)


def test_a_model_that_takes_no_packed_rows_has_no_personal_parts(folder):
    with pytest.raises(PolicyError, match="cannot have personal parts"):
        model(folder, ALL, plain=True)

"""What a run is measured by: here, whether anything can be learnt at its start."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decdpo.cli import main
from decdpo.comm.local import LocalWorld
from decdpo.data.synthetic import Choices, synthesize
from decdpo.errors import DataError
from decdpo.metrics import evaluation
from decdpo.metrics.evaluation import average_model, require_gradient, squared_gaps
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.objective import Objective
from decdpo.policies.stats import Stats
from decdpo.records import read_records
from decdpo.run import Agent


class Slope:
    """An objective whose gradient is 1 where ``steep`` says so of an agent's rows, else 0."""

    def __init__(self, steep):
        self.steep = steep
        self.looks = 0

    def gradients(self, batches):
        for batch in batches:
            self.looks += 1
            batch.params.grad.fill_(float(self.steep(batch.data.agent, list(batch.rows))))
            yield Stats.zero()


def agents(pairs=40):
    found = []
    for i in range(3):
        params = FlatParams(Layout(("x",), ((2,),), 2), torch.zeros(2))
        data = SimpleNamespace(agent=i, train_rows=np.arange(pairs))
        found.append(Agent(i, params, None, data, None, Stats.zero()))
    return found


def test_a_start_without_any_gradient_is_refused_with_its_likely_causes():
    with pytest.raises(DataError, match="gradient of every training pair of all agents") as caught:
        require_gradient(LocalWorld(3), Slope(lambda agent, rows: False), agents())
    assert caught.value.collective and "policy.features" in caught.value.remedy
    with pytest.raises(DataError):
        require_gradient(LocalWorld(3), Slope(lambda agent, rows: False), agents(pairs=0))


@pytest.mark.parametrize(
    "steep",
    [
        lambda agent, rows: agent == 2 and rows == [37],
        lambda agent, rows: agent == 0 and rows == [0],
        lambda agent, rows: agent == 1 and len(rows) > 1,
    ],
)
def test_one_pair_of_one_agent_with_a_gradient_is_enough(steep):
    require_gradient(LocalWorld(3), Slope(steep), agents())


def test_as_a_rule_one_look_is_enough():
    slope = Slope(lambda agent, rows: True)
    require_gradient(LocalWorld(3), slope, agents())
    assert slope.looks == 1


def spread(num_shared=1000):
    """Return three agents whose parameters are anything."""
    layout = Layout(("x",), ((1000,),), num_shared)
    rng = torch.Generator().manual_seed(1)
    vectors = [torch.randn(1000, generator=rng) for _ in range(3)]
    return [Agent(i, FlatParams(layout, x), None, None, None, Stats.zero())
            for i, x in enumerate(vectors)]  # fmt: skip


@pytest.mark.parametrize("num_shared", [1000, 700])
def test_a_mean_made_block_by_block_has_the_same_bits(monkeypatch, num_shared):
    agents = spread(num_shared)
    whole = average_model(LocalWorld(3), agents)
    wide = sum(a.params.data.double() for a in agents) / 3
    assert torch.equal(whole.shared, wide.float()[:num_shared])
    assert not whole.data[num_shared:].any()
    gaps = squared_gaps(agents, whole)
    monkeypatch.setattr(evaluation, "BLOCK", 64)
    assert torch.equal(average_model(LocalWorld(3), agents).data, whole.data)
    for agent, gap in squared_gaps(agents, whole).items():
        assert gap == pytest.approx(gaps[agent], rel=1e-12)
        other = (agents[agent].params.shared - whole.shared).double().square().sum()
        assert gap == pytest.approx(float(other), rel=1e-12)


def test_measuring_one_agent_copies_nothing_and_shares_the_gradient():
    agents = spread()
    assert average_model(LocalWorld(1), agents[:1]) is agents[0].params
    mean = average_model(LocalWorld(3), agents)
    assert mean.grad is agents[0].params.grad


@pytest.mark.parametrize(("count", "scored"), [(1, 4), (3, 2 * 3 * 4)])
def test_a_single_agents_pairs_are_scored_once_as_its_mean_is_its_model(tmp_path, count, scored):
    synthesize(Choices(agents=count, pairs=16, dimension=3, holdout=0.25, seed=0), tmp_path / "s")
    text = f'[data]\nshards = "{tmp_path}/s"\n[policy]\nfeatures = "columns"\n[run]\nrounds = 1\n'
    (tmp_path / "run.toml").write_text(text)
    seen = []
    usual = Objective.evaluations

    def counted(self, batches, *rest):
        seen.append(sum(len(batch.rows) for batch in batches))
        return usual(self, batches, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "evaluations", counted)
        assert main(["train", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 0
        # The start: training pairs, then those held out; then the record of the last round.
        assert sum(seen[2:]) == scored
        seen.clear()
        assert main(["evaluate", str(tmp_path / "run")]) == 0
        assert sum(seen) == scored
    last = read_records(tmp_path / "run" / "metrics.jsonl")[-1]
    assert (last["heldout/loss"] == last["heldout/average/loss"]) == (count == 1)


def test_the_mean_of_many_agents_takes_a_block_at_a_time(monkeypatch) -> None:
    count, size = 16, 3000
    vectors = torch.randn(count, size)
    alive, most = [], []
    array = evaluation._array

    def watched(piece):
        found = array(piece.clone())
        alive.append(weakref.ref(found))
        most.append(sum(held() is not None for held in alive))
        return found

    monkeypatch.setattr(evaluation, "_array", watched)
    mean = evaluation.mean_vector(
        LocalWorld(count), torch.empty(size), size, lambda agent, part: vectors[agent, part]
    )
    assert torch.allclose(mean, vectors.mean(0), atol=1e-6)
    assert len(most) == count and max(most) <= 2

"""Clipped and noised gradients: against their formula, in runs, and what the accountant counts."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shells import CONFIG, Shell

from decdpo import build
from decdpo.comm.local import LocalWorld
from decdpo.config import parse
from decdpo.data.index import ShardIndex
from decdpo.data.sampling import PoissonSampler
from decdpo.errors import ConfigError, EnvironmentFault
from decdpo.metrics.privacy import epsilon, require_accountant
from decdpo.policies.base import Draw
from decdpo.policies.objective import Batch
from decdpo.policies.private import PrivateGradients
from decdpo.rng import Stream, generator

ON = '[privacy]\nkind = "dp_sgd"\n'


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 3 synthetic users with 40 pairs each, and 8 features."""
    folder = tmp_path_factory.mktemp("privacy")
    words = "--agents 3 --pairs 50 --holdout 0.2 --dimension 8 --out users".split()
    Shell(folder)("synthesize", "choices", *words)
    return folder / "users"


@pytest.fixture(scope="module")
def ensemble(users: Path):
    config = parse(
        f'[data]\nshards = "{users}"\n[policy]\nfeatures = "columns"\ndtype = "float64"\n'
        "[loss]\nbeta = 1.0\n"
    )
    world = LocalWorld(3)
    return build.make_ensemble(config, world, ShardIndex.load(users), "cpu")


def guard(ensemble, by_pair=True, clip=0.3, noise=1.0, size=10):
    return PrivateGradients(ensemble.objective, clip, noise, size, 7, by_pair)


def clipped(vector, most):
    return vector * min(1.0, most / max(float(vector.norm()), 1e-300))


@pytest.mark.parametrize("rows", [[0, 3, 5, 17], [2], list(range(23))])
@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_the_gradient_of_each_pair_is_clipped(ensemble, rows, clip):
    agent, objective = ensemble.agents[1], ensemble.objective
    start = torch.linspace(-1, 1, 8, dtype=torch.float64)
    model = agent.params.beside(start)
    own = []
    for row in rows:
        objective.gradient(model, agent.data, np.array([row]))
        own.append(agent.params.grad.clone())
    (stats,) = guard(ensemble, clip=clip).gradients([Batch(model, agent.data, np.array(rows))])
    expected = sum(clipped(gradient, clip) for gradient in own) / 10
    torch.testing.assert_close(agent.params.grad, expected, rtol=1e-12, atol=1e-14)
    assert stats.count == len(rows)
    assert max(gradient.norm() for gradient in own) > 0.3


def test_a_batch_is_clipped_as_a_whole_where_pairs_are_not(ensemble):
    agent, rows = ensemble.agents[0], np.arange(12)
    ensemble.objective.gradient(agent.params, agent.data, rows)
    plain = agent.params.grad.clone()
    next(guard(ensemble, by_pair=False, clip=0.05).gradients([agent.batch(rows)]))
    torch.testing.assert_close(agent.params.grad, clipped(plain, 0.05), rtol=1e-12, atol=0)
    next(guard(ensemble, by_pair=False, clip=9.0).gradients([agent.batch(rows)]))
    assert torch.equal(agent.params.grad, plain)


def test_a_batch_keeps_the_address_of_its_dropout(ensemble):
    agent, seen = ensemble.agents[0], []

    class Noted:
        def gradients(self, batches):
            seen.extend(batches)
            yield "stats"

    private = PrivateGradients(Noted(), 1.0, 1.0, 10, 7, by_pair=False)
    batch = agent.batch(np.arange(3))._replace(draw=Draw(0, 5))
    assert list(private.gradients([batch])) == ["stats"] and seen[0].draw == Draw(0, 5)


def test_an_empty_batch_has_no_gradient_and_all_the_noise(ensemble):
    agent = ensemble.agents[2]
    agent.params.grad.fill_(3.0)
    private = guard(ensemble, noise=2.0)
    (stats,) = private.gradients([agent.batch(np.zeros(0, dtype=np.int64))])
    assert not agent.params.grad.any() and stats.count == 0
    private.blur(agent.params, agent.data, 5)
    drawn = generator(7, Stream.PRIVACY, 2, step=5).standard_normal(8)
    np.testing.assert_allclose(agent.params.grad.numpy(), 2.0 * 0.3 / 10 * drawn, rtol=1e-12)
    agent.params.grad.zero_()
    guard(ensemble, by_pair=False, noise=2.0).blur(agent.params, agent.data, 5)
    np.testing.assert_allclose(agent.params.grad.numpy(), 2 * 2.0 * 0.3 * drawn, rtol=1e-12)


def test_pairs_are_drawn_independently_with_one_probability():
    sampler = PoissonSampler(3, 1, 40)
    batches = [sampler.rows(step, 10) for step in range(2000)]
    sizes = [len(batch) for batch in batches]
    # Mean 10 and variance 7.5 of a binomial of 40 with 1/4, to four standard errors.
    assert abs(np.mean(sizes) - 10) < 0.25 and abs(np.var(sizes) - 7.5) < 1.0
    counts = np.bincount(np.concatenate(batches), minlength=40)
    assert abs(counts - 500).max() < 4.5 * (2000 * 3 / 16) ** 0.5
    assert np.array_equal(sampler.rows(7, 10), PoissonSampler(3, 1, 40).rows(7, 10))
    assert len(sampler.rows(0, 40)) == 40


# --- the accountant ------------------------------------------------------------------------------


def test_epsilon_of_one_plain_gaussian_is_above_the_exact_one_and_near():
    """Of N(0, 1) against N(1, 1) at delta 1e-5: 4.377 (Balle and Wang 2018, Theorem 8)."""
    pytest.importorskip("dp_accounting")
    assert 4.377 < epsilon(1.0, 1.0, 1, 1e-5) < 4.9


def test_epsilon_grows_with_steps_and_share_and_falls_with_noise():
    pytest.importorskip("dp_accounting")
    assert epsilon(0.1, 1.0, 0, 1e-5) == 0.0
    assert epsilon(0.1, 1.0, 50, 1e-5) < epsilon(0.1, 1.0, 200, 1e-5)
    assert epsilon(0.1, 1.0, 50, 1e-5) < epsilon(0.2, 1.0, 50, 1e-5)
    assert epsilon(0.1, 2.0, 50, 1e-5) < epsilon(0.1, 1.0, 50, 1e-5)


def test_without_the_accountant_it_is_refused_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.rdp", None)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(EnvironmentFault, match="needs an accountant") as caught:
        require_accountant()
    assert "decdpo[privacy]" in caught.value.remedy


@pytest.mark.parametrize(
    "text, found",
    [
        ('[loss]\nkind = "beta_dpo"', "running statistic"),
        ('[policy]\nkind = "tabular"', "not known by itself"),
        ("clip = 0", "privacy.clip = 0"),
        ("delta = 1.0", "privacy.delta = 1.0"),
    ],
)
def test_what_would_leave_an_agent_as_it_is_is_refused(text, found):
    with pytest.raises(ConfigError, match=found):
        parse(ON + text)


# --- whole runs ----------------------------------------------------------------------------------


def test_a_private_run_is_resumed_and_replayed_to_the_bit_and_tells_what_it_spent(tmp_path, users):
    pytest.importorskip("dp_accounting")
    shell = Shell(tmp_path)
    text = CONFIG.format(shards=users).replace("dimension = 4096", 'features = "columns"')
    shell.write("run.toml", text + ON + "noise = 1.5\n")
    shell("train", "run.toml", "--out", "whole")
    assert "privacy: epsilon" in shell.said and "one training pair" in shell.said
    assert "warning: the noise is drawn by run.seed" in shell.said
    records = shell.metrics("whole")
    spent = [record["privacy/epsilon"] for record in records]
    assert spent[0] == 0.0 and all(a < b for a, b in zip(spent, spent[1:]))
    assert spent[-1] == pytest.approx(epsilon(16 / 40, 1.5, 12, 1e-5))
    assert "epsilon spent" in (tmp_path / "whole/summary.txt").read_text()
    shell("replay", "whole")
    shell("train", "run.toml", "--out", "part", "--set", "run.rounds=5")
    shell("resume", "part", "--set", "run.rounds=12")
    assert shell.digests("part") == shell.digests("whole")
    shell("train", "run.toml", "--out", "other", "--set", "privacy.noise=3.0")
    assert shell.digests("other") != shell.digests("whole")
    (tmp_path / "key").write_bytes(b"sixteen bytes or more")
    secret = ("--set", "privacy.secret=key")
    shell("train", "run.toml", "--out", "kept", "--set", "run.rounds=5", *secret)
    assert "do not know the secret" in shell.said and "warning" not in shell.said
    (tmp_path / "key").write_bytes(b"another key of some length")
    shell("resume", "kept", "--set", "run.rounds=6", status=3)
    assert "privacy.secret: saved" in shell.said
    (tmp_path / "key").write_bytes(b"short")
    shell("train", "run.toml", "--out", "short", *secret, status=2)
    assert "has 5 bytes, which can be guessed" in shell.said
    shell("train", "run.toml", "--out", "kto", "--set", "loss.kind=kto", status=2)
    assert "depends on the other pairs of its batch" in shell.said

"""Agents that take local steps at their own pace, and weigh by their pairs: oracles and runs."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from quadratics import LR, ROUNDS, N, P, Quadratics, agree, dense, make_run, zeros
from shells import CONFIG, ROOT, Shell

from decdpo import pacing
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.wrappers.own_pace import OwnPace
from decdpo.config import parse
from decdpo.errors import ConfigError, TopologyError
from decdpo.pacing import Paced, Timetable, chosen, read_timetable
from decdpo.params.optim import SGD
from decdpo.topology.graphs import make_graph
from decdpo.topology.living import left_of
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import make_schedule
from decdpo.topology.weights import metropolis
from decdpo.topology.weights import pairs as pair_weights
from decdpo.train import train

STEPS = (1, 2, 3, 4, 5, 6)
PAIRS = (10, 70, 20, 40, 10, 30)


def paced(inner, schedule, problem, steps=STEPS, *, pairs=(1,) * N, normalised=True, **options):
    """Train agents with ``steps`` each, and return X (rounds + 1, n, P)."""
    algorithm = OwnPace(inner, P, normalised)
    run = make_run(algorithm, schedule, problem, **options)
    table = Timetable(2)
    table.add(0, dict(enumerate(steps)))
    run.pace = Paced(table, algorithm, pairs)
    train(run)
    return np.stack([zeros(), *run.monitor.path])


def adapted(problem, X, t, steps, scales, V, momentum=0.0):
    """Return where the local steps of round t lead from X (n, P), the progress scaled."""
    Y = X.copy()
    for i, count in enumerate(steps):
        for step in range(t * count, (t + 1) * count):
            slope = problem.A[i] @ (Y[i] - problem.c[i]) + problem.noise[step % 200, i]
            V[i] = momentum * V[i] + slope
            Y[i] = Y[i] - LR * V[i]
    return X + np.array(scales)[:, None] * (Y - X)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("weights, momentum", [("auto", 0.5), ("pairs", 0.0)])
@pytest.mark.parametrize("normalised", [True, False])
def test_own_pace_is_its_recursion(overlap, weights, momentum, normalised):
    problem, schedule = Quadratics(), make_schedule("ring", weights, N, pairs=PAIRS)
    pairs = PAIRS if weights == "pairs" else (1,) * N
    ours = paced(Dsgd(SGD(momentum=momentum), P), schedule, problem, pairs=pairs,
                 normalised=normalised, overlap=overlap)  # fmt: skip
    tau = np.dot(pairs, STEPS) / sum(pairs)
    scales = tau / np.array(STEPS) if normalised else np.ones(N)
    X, V, theirs = zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        Y, W = adapted(problem, X, t, STEPS, scales, V, momentum), dense(schedule, t)
        X = Y + (W - np.eye(N)) @ X if overlap else W @ Y
        theirs.append(X)
    agree(ours, theirs)


def test_outer_momentum_by_gossip_at_own_pace_is_its_recursion():
    problem, schedule = Quadratics(), make_schedule("star", "pairs", N, pairs=PAIRS)
    outer = SGD(momentum=0.8, nesterov=True)
    ours = paced(GossipOuterMomentum(SGD(), P, outer, 0.7), schedule, problem, pairs=PAIRS)
    scales = np.dot(PAIRS, STEPS) / sum(PAIRS) / np.array(STEPS)
    X, v, theirs = zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        delta = X - dense(schedule, t) @ adapted(problem, X, t, STEPS, scales, zeros())
        v = 0.8 * v + delta
        X = X - 0.7 * (delta + 0.8 * v)
        theirs.append(X)
    agree(ours, theirs)


def test_the_mean_by_pairs_follows_the_mean_progress_of_a_step():
    problem, schedule = Quadratics(), make_schedule("ring", "pairs", N, pairs=PAIRS)
    X = paced(Dsgd(SGD(), P), schedule, problem, pairs=PAIRS)
    p = np.array(PAIRS) / sum(PAIRS)
    tau = p @ STEPS
    for t in range(ROUNDS):
        moved = adapted(problem, X[t], t, STEPS, np.ones(N), zeros()) - X[t]
        expected = p @ X[t] + tau * (p / STEPS) @ moved
        np.testing.assert_allclose(p @ X[t + 1], expected, rtol=0, atol=1e-12)


def test_a_fast_agent_pulls_no_harder_where_progress_counts_by_the_step():
    """FedNova's point: the fixed point is that of the objective, whatever the pace."""
    problem = Quadratics(noise=0.0)
    p = np.array(PAIRS) / sum(PAIRS)
    weighted = np.einsum("n,npq->pq", p, problem.A)
    optimum = np.linalg.solve(weighted, np.einsum("n,npq,nq->p", p, problem.A, problem.c))
    distance = {}
    for normalised in (True, False):
        schedule = Participation(N, N, seed=0, weights=PAIRS)
        X = paced(FedAvg(SGD(), P), schedule, problem, pairs=PAIRS, normalised=normalised,
                  server=True, rounds=60, lr=0.05)  # fmt: skip
        distance[normalised] = float(np.linalg.norm(X[-1, 0] - optimum))
    assert distance[True] < 0.3 * distance[False]


@pytest.mark.parametrize("overlap", [True, False])
def test_equal_paces_are_the_plain_bits(overlap):
    schedule = make_schedule("ring", "auto", N)
    inner, options = Dsgd(SGD(momentum=0.9), P), {"local_steps": 2, "overlap": overlap}
    plain = make_run(inner, schedule, Quadratics(), **options)
    train(plain)
    own = paced(inner, schedule, Quadratics(), (2,) * N, pairs=PAIRS, **options)
    assert np.array_equal(own[1:], np.stack(plain.monitor.path))


# --- the timetable -------------------------------------------------------------------------------


def test_local_steps_follow_each_other_whatever_is_decided():
    table = Timetable(3)
    table.add(0, {0: 3, 1: 3})
    table.add(4, {0: 1, 1: 7})
    table.add(6, {0: 2})
    for agent in range(3):
        taken = [step for t in range(10) for step in table.steps(agent, t)]
        assert taken == list(range(len(taken)))
    assert [table.count(0, t) for t in (3, 4, 5, 6, 9)] == [3, 1, 1, 2, 2]
    assert [table.count(1, t) for t in (5, 6)] == [7, 3]


def test_steps_are_chosen_by_speed():
    assert chosen({0: 1.0, 1: 1.0, 2: 1.0}, 4, 16) == {0: 4, 1: 4, 2: 4}
    assert chosen({0: 1.0, 1: 2.0, 2: 0.5}, 4, 16) == {0: 4, 1: 2, 2: 8}
    assert chosen({0: 1.0, 1: 1e3, 2: 1e-3}, 4, 16) == {0: 4, 1: 1, 2: 16}
    assert chosen({0: 1.0, 1: 1.05, 2: 0.96}, 4, 16) == {0: 4, 1: 4, 2: 4}


# --- pairs as weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["ring", "star", "complete", "erdos_renyi"])
def test_pair_weights_keep_the_mean_by_pairs(graph):
    links = make_graph(graph, N, seed=1)
    matrix = pair_weights(links, PAIRS)
    W, p = matrix.weights.toarray(), np.array(PAIRS) / sum(PAIRS)
    np.testing.assert_allclose(p @ W, p, atol=1e-15)
    np.testing.assert_allclose(W.sum(axis=1), 1, atol=1e-15)
    assert W.min() >= 0 and (np.diag(W) > 0).all() and not matrix.doubly_stochastic
    second = np.sort(np.abs(np.linalg.eigvals(W)))[-2]
    assert matrix.rho == pytest.approx(second, abs=1e-12)
    if graph == "complete":
        np.testing.assert_allclose(W, np.tile(p, (N, 1)), atol=1e-15)
    equal = pair_weights(links, [7] * N)
    assert equal.digest == metropolis(links).digest and equal.doubly_stochastic


def test_those_who_are_left_weigh_by_their_pairs():
    schedule = make_schedule("ring", "pairs", N, pairs=PAIRS)
    left = left_of(schedule, (0, 2, 3, 5))
    rows = {i: left.mixing(0).row(i) for i in (0, 2, 3, 5)}
    W = {(i, j): w for i, row in rows.items() for j, w in zip(row.sources, row.weights)}
    assert W and all(PAIRS[i] * w == pytest.approx(PAIRS[j] * W[j, i]) for (i, j), w in W.items())


def test_what_pairs_cannot_weigh_is_refused():
    with pytest.raises(TopologyError, match="agent 2 has no training pairs"):
        make_schedule("ring", "pairs", 4, pairs=[3, 1, 0, 2])
    with pytest.raises(ConfigError, match="cannot be used on graph"):
        parse('[topology]\ngraph = "exponential"\nweights = "pairs"')
    for kind in ("gradient_tracking", "choco", "clipped_gossip"):
        with pytest.raises(ConfigError, match="not doubly stochastic"):
            parse(f'[algorithm]\nkind = "{kind}"\n[topology]\nweights = "pairs"')


@pytest.mark.parametrize(
    "text, found",
    [
        ('[algorithm]\nkind = "gradient_tracking"', "whose agents step alike"),
        (
            '[policy]\nkind = "causal_lm"\n[policy.lora]\nrank = 2\nmix = "svd"\n'
            '[optim]\nkind = "sgd"\nlr = 0.1',
            "their product",
        ),
        ('[faults]\non_loss = "survive"', "that others take over"),
    ],
)
def test_paces_are_refused_where_agents_must_step_alike(text, found):
    with pytest.raises(ConfigError, match=found):
        parse('[pace]\nkind = "measured"\n' + text)


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of unlike sizes: 40, 30, 20 and 10 pairs."""
    folder = tmp_path_factory.mktemp("own-pace")
    with gzip.open(ROOT / "data" / "preferences.jsonl.gz", "rt") as stream:
        lines = list(itertools.islice(stream, 100))
    owners = [user for user, size in enumerate((40, 30, 20, 10)) for _ in range(size)]
    rows = [{**json.loads(line), "user": owner} for line, owner in zip(lines, owners)]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Shell(folder)("shard", "few.jsonl", "--partition", "by:user", "--out", "users")
    return folder / "users"


@pytest.fixture
def shell(tmp_path: Path, users: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.write("run.toml", CONFIG.format(shards=users))
    return shell


def run(shell: Shell, out: str, *pairs: str) -> dict[str, str]:
    """Train and return the digests of the parameters."""
    words = [word for pair in pairs for word in ("--set", pair)]
    shell("train", "run.toml", "--out", out, *words)
    return {agent: found["x"] for agent, found in shell.digests(out).items()}


def test_runs_at_equal_pace_have_the_plain_digests(shell: Shell) -> None:
    three = "algorithm.local_steps=3"
    plain = run(shell, "plain", three)
    assert "[pace]" not in (shell.folder / "plain/config.toml").read_text()
    given = run(shell, "given", three, "pace.kind=given", "pace.steps=[3,3,3,3]")
    # The agents of one process are equally fast.
    measured = run(shell, "own", three, "pace.kind=measured", "pace.every=2")
    assert plain == given == measured
    record = (shell.folder / "own/pace.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in record] == [1, 3, 5, 7, 9, 11]


def test_given_steps_are_resumed_and_replayed_to_the_bit(shell: Shell) -> None:
    words = ["pace.kind=given", "pace.steps=[1,4,2,3]", "topology.weights=pairs"]
    whole = run(shell, "whole", *words)
    assert whole != run(shell, "plain", "topology.weights=pairs")
    run(shell, "part", *words, "run.rounds=7")
    shell("resume", "part", "--set", "run.rounds=12")
    assert "dsgd, E = 1 to 4 by agent, loss dpo" in shell.said
    assert shell.digests("part") == shell.digests("whole")
    shell("replay", "whole")
    words = ["--set", "pace.kind=given", "--set", "pace.steps=[1,2]"]
    shell("train", "run.toml", "--out", "odd", *words, status=2)
    assert "pace.steps has 2 numbers, but there are 4 agents" in shell.said


def test_a_measured_pace_is_recorded_resumed_and_replayed_to_the_bit(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = itertools.cycle([1, 5, 2, 3, 4, 6, 1])

    def noisy(seconds: dict[int, float], usual: int, most: int) -> dict[int, int]:
        return {agent: next(speeds) for agent in seconds}

    monkeypatch.setattr(pacing, "chosen", noisy)
    words = ["pace.kind=measured", "pace.every=2", "algorithm.local_steps=2"]
    run(shell, "whole", *words)
    table = read_timetable(shell.folder / "whole/pace.jsonl", 2)
    assert len({tuple(steps.values()) for _, steps in table.entries[1:]}) == 5
    shell("replay", "whole")
    again = ["algorithm.local_steps=2", "pace.kind=replay", "pace.run=whole"]
    run(shell, "again", *again)
    assert shell.digests("again") == shell.digests("whole")
    # Rounds after the newest checkpoint are trained again by the decisions that were made.
    newest = shell.folder / "whole/checkpoints/round_000012"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    shell("resume", "whole")
    assert shell.digests("again") == shell.digests("whole")
    record = shell.folder / "whole/pace.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:2]))
    shell("resume", "whole", "--set", "run.rounds=14", status=2)
    assert "does not say how many local steps were taken from round 5 on" in shell.said

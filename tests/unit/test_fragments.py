"""Parts of the vector in turn: every algorithm against its recursion, in matrix form, part by part.

To an algorithm a part is a vector of its own that is mixed every F-th round. The agents hold
heterogeneous quadratics (``quadratics``) and are trained by the loop of ``decdpo.train``.
"""

import numpy as np
import pytest
import torch
from quadratics import (
    LR,
    ROUNDS,
    N,
    P,
    Quadratics,
    agree,
    dense,
    goes_on_to_the_bit,
    make_run,
    trained,
    zeros,
)

from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.gossip.dsgd import Dsgd
from decdpo.algorithms.gossip.exact_diffusion import ExactDiffusion
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.gossip.gradient_tracking import GradientTracking
from decdpo.algorithms.gossip.push_sum import PushSum
from decdpo.algorithms.gossip.quasi_global_momentum import QuasiGlobalMomentum
from decdpo.algorithms.robust.clipped_gossip import ClippedGossip
from decdpo.algorithms.robust.trimmed_mean import TrimmedMean
from decdpo.algorithms.server.outer_momentum import OuterMomentum
from decdpo.algorithms.wrappers.fragments import Fragments
from decdpo.codecs.quantize import Quantize
from decdpo.codecs.topk import TopK
from decdpo.metrics.traffic import Sent
from decdpo.params.optim import SGD, AdamW
from decdpo.topology.schedule import Averaging, make_schedule
from decdpo.train import train

COUNTS = [2, 3, 5]


def part_of(t, count):
    """Return the values of round t as a mask: P values in ``count`` parts as equal as can be."""
    ends = [k * P // count for k in range(count + 1)]
    k = t % count
    return (np.arange(P) >= ends[k]) & (np.arange(P) < ends[k + 1])


def in_parts(algorithm, count):
    return Fragments(algorithm, algorithm.num_shared, count)


@pytest.mark.parametrize("graph", ["ring", "one_peer_exponential", "random_matching"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", COUNTS)
def test_fragments_of_dsgd_are_their_recursion(graph, overlap, count):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    algorithm = Fragments(Dsgd(SGD(), P), P, count)
    ours = trained(algorithm, schedule, problem, overlap=overlap, local_steps=2)
    X, theirs = zeros(), [zeros()]
    for t in range(ROUNDS):
        W, Y, part = dense(schedule, t), X, part_of(t, count)
        for step in (2 * t, 2 * t + 1):
            Y = Y - LR * problem.slopes(Y, step)
        X = np.where(part, W @ X + Y - X if overlap else W @ Y, Y)
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("graph", ["server", "ring", "random_matching"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fragments_of_outer_momentum_are_their_recursion(graph, count, momentum):
    problem, server = Quadratics(), graph == "server"
    schedule = Averaging(range(N)) if server else make_schedule(graph, "auto", N, seed=3)
    kind = OuterMomentum if server else GossipOuterMomentum
    algorithm = Fragments(kind(SGD(), P, SGD(momentum=momentum), 0.7), P, count)
    ours = trained(algorithm, schedule, problem, server=server, local_steps=2)
    X, anchor, v, theirs = zeros(), zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        W = np.full((N, N), 1 / N) if server else dense(schedule, t)
        for step in (2 * t, 2 * t + 1):
            X = X - LR * problem.slopes(X, step)
        part = part_of(t, count)
        v = np.where(part, momentum * v + anchor - W @ X, v)
        anchor = np.where(part, anchor - 0.7 * v, anchor)
        X = np.where(part, anchor, X)
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_round_with_fragments_carries_a_part_of_the_values(count):
    schedule = make_schedule("ring", "auto", N)
    run = make_run(Fragments(Dsgd(SGD(), P), P, count), schedule, Quadratics())
    train(run)
    assert run.exchange.message_bytes == 8 * -(-P // count)
    messages, nbytes = Sent(run.exchange, schedule, tuple(range(N))).until(ROUNDS)
    assert (messages, nbytes) == (2 * N * ROUNDS, 2 * N * ROUNDS * 8 * -(-P // count))


@pytest.mark.parametrize("graph", ["ring", "one_peer_exponential", "random_matching"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", COUNTS)
def test_gradient_tracking_mixes_a_part_of_the_tracker_and_of_the_model(graph, overlap, count):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    algorithm = in_parts(GradientTracking(SGD(), P), count)
    run = make_run(algorithm, schedule, problem, overlap=overlap)
    train(run)
    X, Y, old, theirs = zeros(), zeros(), zeros(), []
    for t in range(ROUNDS):
        W, G, part = dense(schedule, t), problem.slopes(X, t), part_of(t, count)
        adapted = Y + G - old
        mixed = W @ Y + G - old if overlap else W @ adapted
        Y = np.where(part, mixed, adapted)
        X, old = np.where(part, W @ X, X) - LR * Y, G
        theirs.append(X)
    agree(np.stack(run.monitor.path), theirs)
    tracked = sum(agent.state.y for agent in run.agents)
    slopes = sum(agent.state.grad for agent in run.agents)
    torch.testing.assert_close(tracked, slopes, rtol=0, atol=1e-13)


@pytest.mark.parametrize("graph", ["ring", "complete", "random_matching"])
@pytest.mark.parametrize("count", COUNTS)
def test_exact_diffusion_shares_a_displacement_out_over_the_rounds_of_a_turn(graph, count):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)
    ours = trained(in_parts(ExactDiffusion(SGD(), P), count), schedule, problem)
    X, D, theirs = zeros(), zeros(), [zeros()]
    for t in range(ROUNDS):
        phi = X - LR * problem.slopes(X, t) + D
        moved = np.where(part_of(t, count), (dense(schedule, t) - np.eye(N)) / 2 @ phi, 0)
        X, D = phi + moved, D + moved / count
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("kind", [ExactDiffusion, GradientTracking])
@pytest.mark.parametrize("count", [2, 5])
def test_exact_methods_reach_the_optimum_in_parts_too(kind, count):
    problem, schedule = Quadratics(noise=0.0), make_schedule("ring", "auto", N)
    X = trained(in_parts(kind(SGD(), P), count), schedule, problem, rounds=4000, lr=0.02)
    np.testing.assert_allclose(X[-1], np.tile(problem.optimum, (N, 1)), rtol=0, atol=1e-9)
    biased = trained(in_parts(Dsgd(SGD(), P), count), schedule, problem, rounds=4000, lr=0.02)
    assert np.abs(biased[-1] - problem.optimum).max() > 1e-2


@pytest.mark.parametrize("graph", ["ring", "random_matching"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("count", COUNTS)
def test_quasi_global_momentum_takes_the_change_since_a_part_was_mixed(
    graph, overlap, local_steps, count
):
    problem, schedule = Quadratics(), make_schedule(graph, "auto", N, seed=3)

    def lr(step):
        return LR / (1 + 0.05 * step)

    algorithm = in_parts(QuasiGlobalMomentum(SGD(), P, beta=0.9, mu=0.8), count)
    ours = trained(algorithm, schedule, problem, overlap=overlap, local_steps=local_steps, lr=lr)
    X, M, before, path, theirs = zeros(), zeros(), zeros(), np.zeros(P), [zeros()]
    for t in range(ROUNDS):
        W, Y, part = dense(schedule, t), X, part_of(t, count)
        for step in range(t * local_steps, (t + 1) * local_steps):
            Y = Y - lr(step) * (0.9 * M + problem.slopes(Y, step))
            path += lr(step)
        X = np.where(part, W @ X + Y - X if overlap else W @ Y, Y)
        M = np.where(part, 0.8 * M + 0.2 * (before - X) / path, M)
        before, path = np.where(part, X, before), np.where(part, 0.0, path)
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("graph, weights", [("star", "push"), ("exponential", "push"),
                                            ("random_matching", "auto")])  # fmt: skip
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("local_steps, momentum", [(1, 0.0), (3, 0.9)])
@pytest.mark.parametrize("count", COUNTS)
def test_push_sum_has_a_weight_for_each_part(
    graph, weights, overlap, local_steps, momentum, count
):
    problem, schedule = Quadratics(), make_schedule(graph, weights, N, seed=3, push_sum=True)
    algorithm = in_parts(PushSum(SGD(momentum=momentum), P), count)
    ours = trained(algorithm, schedule, problem, overlap=overlap, local_steps=local_steps)
    X, V, w, theirs = zeros(), zeros(), np.ones((N, P)), [zeros()]
    for t in range(ROUNDS):
        A, Y, part = dense(schedule, t), X, part_of(t, count)
        for step in range(t * local_steps, (t + 1) * local_steps):
            V = momentum * V + problem.slopes(Y / w, step)
            Y = Y - LR * V
        X = np.where(part, A @ X + Y - X if overlap else A @ Y, Y)
        w = np.where(part, A @ w, w)
        theirs.append(X / w)
    agree(ours, theirs)
    np.testing.assert_allclose(w.sum(axis=0), N)
    if graph == "star":
        assert np.abs(w - 1).max() > 0.1


def test_a_limit_on_the_gradient_is_one_on_the_whole_of_it():
    """Push-sum divides the steps of parts by weights of their own, not the gradients."""
    problem, schedule = Quadratics(), make_schedule("complete", "auto", N)
    plain = trained(Dsgd(SGD(max_norm=0.5), P), schedule, problem, rounds=2)
    parts = trained(in_parts(PushSum(SGD(max_norm=0.5), P), 2), schedule, problem, rounds=2)
    # Before any mixing counts, and with all weights 1, the steps are those of the whole vector.
    half = ~part_of(0, 2)
    np.testing.assert_allclose(parts[1][:, half].mean(axis=0), plain[1][:, half].mean(axis=0))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("codec", ["topk", "int8"])
def test_choco_keeps_a_public_copy_of_each_part(codec, overlap, count):
    problem, schedule = Quadratics(), make_schedule("ring", "auto", N)

    def coder(size):
        dtype = torch.float64
        return TopK(size, dtype, 1) if codec == "topk" else Quantize(size, dtype, 8, seed=7)

    sizes = sorted({int(part_of(t, count).sum()) for t in range(count)})
    choco = Choco(SGD(), P, coder(sizes[-1]), 0.3, codec_below=coder(sizes[0]))
    algorithm = in_parts(choco, count)
    run = make_run(algorithm, schedule, problem, overlap=overlap)
    run.exchange = run.world.exchange(algorithm.message_size(P), torch.uint8)
    train(run)
    W = dense(schedule, 0)
    X, public, theirs = zeros(), zeros(), []
    for t in range(ROUNDS):
        Y, part = X - LR * problem.slopes(X, t), part_of(t, count)
        difference = ((X if overlap else Y) - public)[:, part]
        coded = np.zeros_like(difference)
        for i, d in enumerate(difference):
            if codec == "topk":
                coded[i, np.abs(d).argmax()] = d[np.abs(d).argmax()]
            else:
                with_codec = coder(len(d))
                code = torch.empty(with_codec.nbytes, dtype=torch.uint8)
                with_codec.encode(torch.from_numpy(d), code, t)
                with_codec.add(code, torch.from_numpy(coded[i]), t)
        public[:, part] += coded
        X = np.where(part, Y + 0.3 * (W @ public - public), Y)
        theirs.append(X)
    agree(np.stack(run.monitor.path), theirs)


@pytest.mark.parametrize("count", COUNTS)
def test_clipped_gossip_clips_what_a_part_is_pulled_by(count):
    problem, schedule = Quadratics(), make_schedule("complete", "auto", N)
    ours = trained(in_parts(ClippedGossip(SGD(), P, 1), count), schedule, problem)
    X, W, theirs = zeros(), dense(schedule, 0), [zeros()]
    for t in range(ROUNDS):
        Y, part = X - LR * problem.slopes(X, t), part_of(t, count)
        X = Y.copy()
        for i in range(N):
            pulls = {j: np.where(part, Y[j] - Y[i], 0) for j in range(N) if j != i}
            tau = sorted(np.linalg.norm(pull) for pull in pulls.values())[-2]
            for j, pull in pulls.items():
                X[i] += W[i, j] * min(1, tau / np.linalg.norm(pull)) * pull
        theirs.append(X)
    agree(ours, theirs)


@pytest.mark.parametrize("count", COUNTS)
def test_a_trimmed_mean_leaves_out_extreme_values_of_a_part(count):
    problem, schedule = Quadratics(), make_schedule("complete", "auto", N)
    ours = trained(in_parts(TrimmedMean(SGD(), P, 1), count), schedule, problem)
    X, W, theirs = zeros(), dense(schedule, 0), [zeros()]
    for t in range(ROUNDS):
        Y, part = X - LR * problem.slopes(X, t), part_of(t, count)
        X = Y.copy()
        for i in range(N):
            for c in np.flatnonzero(part):
                kept = sorted((j for j in range(N) if j != i), key=lambda j: Y[j, c])[1:-1]
                X[i, c] += sum(W[i, j] * (Y[j, c] - Y[i, c]) for j in kept)
        theirs.append(X)
    agree(ours, theirs)


# --- What all have in common --------------------------------------------------------------------

ALL = {
    "dsgd": lambda m: Dsgd(SGD(momentum=0.9), m),
    "outer_momentum": lambda m: OuterMomentum(AdamW(), m, SGD(momentum=0.9), 0.7),
    "gossip_outer_momentum": lambda m: GossipOuterMomentum(SGD(), m, SGD(momentum=0.9), 0.7),
    "gradient_tracking": lambda m: GradientTracking(AdamW(), m),
    "exact_diffusion": lambda m: ExactDiffusion(SGD(momentum=0.5), m),
    "quasi_global_momentum": lambda m: QuasiGlobalMomentum(SGD(weight_decay=0.1), m),
    "push_sum": lambda m: PushSum(AdamW(weight_decay=0.1), m),
    "clipped_gossip": lambda m: ClippedGossip(SGD(), m, 1),
    "trimmed_mean": lambda m: TrimmedMean(SGD(), m, 1),
}
PERSONAL = 1


def setting(name, count):
    """Return an algorithm in parts with a schedule and the options of a run."""
    algorithm, server = in_parts(ALL[name](P - PERSONAL), count), name == "outer_momentum"
    schedule = Averaging(range(N)) if server else make_schedule("exponential", "auto", N)
    if name == "exact_diffusion":
        schedule = make_schedule("random_matching", "auto", N, seed=2)
    if name == "push_sum":
        schedule = make_schedule("path", "push", N, push_sum=True)
    return algorithm, schedule, {"personal": PERSONAL, "server": server}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [2, 3])
def test_a_restored_state_goes_on_to_the_bit_in_parts(name, count):
    algorithm, schedule, options = setting(name, count)
    goes_on_to_the_bit(algorithm, schedule, **options)


@pytest.mark.parametrize("name", ALL)
def test_personal_parameters_stay_at_home_in_parts(name):
    """With A_i diagonal the personal coordinate is trained as if each agent were alone."""
    problem = Quadratics()
    problem.A = problem.A * np.eye(P)
    algorithm, schedule, options = setting(name, 2)
    X = trained(algorithm, schedule, problem, **options)
    nobody = make_run(algorithm, schedule, problem, **options)
    for agent in nobody.agents:
        state = agent.state
        size = algorithm.message_size(P - PERSONAL)
        assert algorithm.message(state).shape == (size,)
    if name in ("quasi_global_momentum", "push_sum"):
        return
    alone = [make_alone(name, problem, i) for i in range(N)]
    np.testing.assert_allclose(X[-1, :, -1], alone, rtol=0, atol=1e-9)


def make_alone(name, problem, i):
    """Return the last coordinate of agent i after as many steps of its optimizer alone."""
    inner = ALL[name](P - PERSONAL)
    x = torch.zeros(P, dtype=torch.float64)
    state = inner.optimizer.init(x)
    for t in range(ROUNDS):
        slope = np.diag(problem.A[i]) * (x.numpy() - problem.c[i]) + problem.noise[t % 200, i]
        inner.optimizer.step(x, state, torch.from_numpy(slope), LR)
    return float(x[-1])


@pytest.mark.parametrize("name", ALL)
def test_one_part_is_the_algorithm_itself(name):
    _, schedule, options = setting(name, 2)
    plain = trained(ALL[name](P - PERSONAL), schedule, Quadratics(), **options)
    whole = trained(in_parts(ALL[name](P - PERSONAL), 1), schedule, Quadratics(), **options)
    if name == "push_sum":  # which then divides a step by the weight after taking it
        np.testing.assert_allclose(plain, whole, rtol=0, atol=1e-12)
    else:
        assert (plain == whole).all()

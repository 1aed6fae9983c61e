"""From a configuration to algorithm, schedule and exchange: the right ones, or a named refusal."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from decdpo import build
from decdpo.algorithms.catalogue import ALGORITHMS, needs_of
from decdpo.algorithms.gossip.gossip_outer_momentum import GossipOuterMomentum
from decdpo.algorithms.server.fedavg import FedAvg
from decdpo.algorithms.server.outer_momentum import OuterMomentum
from decdpo.algorithms.wrappers.fragments import Fragments
from decdpo.algorithms.wrappers.recall import Recalling
from decdpo.algorithms.wrappers.running import Running
from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.config import parse
from decdpo.config.schema import SECTIONS, WITHOUT_TOPOLOGY
from decdpo.errors import ConfigError, TopologyError
from decdpo.params.flat import Layout
from decdpo.params.optim import SGD

LAYOUT = Layout(("x",), ((4,),), 4)
PAIRS = [10, 20, 30, 40]


def made(text):
    config = parse(text)
    algorithm = build.make_algorithm(config.algorithm, build.make_optimizer(config.optim), LAYOUT)
    exchange = build.make_exchange(config, LocalWorld(4), algorithm, LAYOUT, "cpu")
    return algorithm, build.make_topology(config, PAIRS), exchange


def test_fedavg_draws_its_participants_from_the_seed_of_the_run():
    text = '[algorithm]\nkind = "fedavg"\nparticipants = 2\nweighting = "pairs"\n[run]\nseed = '
    algorithm, schedule, exchange = made(text + "5")
    assert type(algorithm) is FedAvg and isinstance(exchange, ServerExchange)
    rows = [schedule.mixing(t).row(0) for t in range(20)]
    for row in rows:
        total = sum(PAIRS[i] for i in row.sources)
        assert row.weights == pytest.approx([PAIRS[i] / total for i in row.sources])
    _, other, _ = made(text + "6")
    assert [r.sources for r in rows] != [other.mixing(t).row(0).sources for t in range(20)]
    _, everybody, _ = made('[algorithm]\nkind = "fedavg"')
    assert everybody.mixing(0).row(3).weights == (0.25,) * 4


def test_momentum_of_the_server_is_an_outer_heavy_ball():
    algorithm, _, _ = made('[algorithm]\nkind = "fedavg"\nserver_momentum = 0.8')
    assert isinstance(algorithm, OuterMomentum)
    assert algorithm.outer == SGD(momentum=0.8) and algorithm.outer_lr == 1.0


def test_by_default_outer_momentum_is_that_of_diloco():
    algorithm, schedule, exchange = made('[algorithm]\nkind = "outer_momentum"')
    assert algorithm.outer == SGD(momentum=0.9, nesterov=True) and algorithm.outer_lr == 0.7
    assert schedule.mixing(0).row(1).sources == (0, 1, 2, 3)
    assert isinstance(exchange, ServerExchange)


def test_outer_momentum_by_gossip_meets_neighbours():
    algorithm, schedule, exchange = made('[algorithm]\nkind = "gossip_outer_momentum"')
    assert type(algorithm) is GossipOuterMomentum
    assert algorithm.outer == SGD(momentum=0.9, nesterov=True) and algorithm.outer_lr == 0.7
    assert schedule.mixing(0).row(1).sources == (0, 2)
    assert not isinstance(exchange, ServerExchange)


@pytest.mark.parametrize(
    "text, found",
    [
        ("outer_lr = 1.5", "algorithm.outer_lr = 1.5"),
        ("outer_momentum = 0", "algorithm.nesterov = true is ignored"),
        ("overlap = true", "overlap"),
        ('[staleness]\nkind = "seeded"', "enters them once"),
        ('[topology]\nweights = "push"', "would not converge"),
    ],
)
def test_outer_momentum_by_gossip_refuses_what_breaks_it(text, found):
    with pytest.raises(ConfigError, match=found):
        parse('[algorithm]\nkind = "gossip_outer_momentum"\n' + text)


def test_an_adopted_agent_begins_its_round_at_the_mean_of_its_neighbours():
    algorithm, _, _ = made('[algorithm]\nkind = "gossip_outer_momentum"')
    parse('[algorithm]\nkind = "gossip_outer_momentum"\n[faults]\non_loss = "adopt"')
    state = algorithm.init(torch.zeros(4))
    state.x.copy_(mean := torch.tensor([1.0, 2.0, 3.0, 4.0]))
    algorithm.restart(state, 5, None)
    assert torch.equal(state.anchor, mean)


def run_algorithm(text):
    return build.make_run_algorithm(parse(text), LAYOUT)


IN_PARTS = [kind for kind in ALGORITHMS if needs_of(kind).in_parts]


@pytest.mark.parametrize("kind", IN_PARTS)
def test_fragments_are_made_of_every_algorithm_that_mixes_in_parts(kind):
    text = f'[algorithm]\nkind = "{kind}"\nfragments = '
    assert type(run_algorithm(text + "1")) is ALGORITHMS[kind]
    algorithm = run_algorithm(text + "3")
    assert isinstance(algorithm, Fragments) and type(algorithm.inner) is ALGORITHMS[kind]
    needs = ALGORITHMS[kind].needs
    assert algorithm.needs.on_loss == ("refuses" if needs.on_loss == "refuses" else "restarts")
    assert not algorithm.needs.sends_model
    state = algorithm.init(torch.zeros(4))
    for turn in range(3):
        state.turn = turn
        assert algorithm.message(state).shape == (algorithm.message_size(4),)
    with pytest.raises(ConfigError, match="fragments = 5, but only 4"):
        run_algorithm(text + "5")


def test_choco_in_fragments_takes_the_smaller_constant_of_its_codecs():
    text = '[algorithm]\nkind = "choco"\nratio = 1.0\nfragments = 3'
    choco = run_algorithm(text).inner
    assert (choco.codec.size, choco.codec_below.size) == (2, 1)
    assert choco.gamma == min(choco.codec.delta, choco.codec_below.delta)


def test_fragments_send_the_parts_in_turn():
    algorithm = run_algorithm('[algorithm]\nkind = "dsgd"\nfragments = 3')
    state = algorithm.init(torch.arange(4.0))
    sent = []
    for turn in range(4):
        algorithm.restart(state, turn, None)
        sent.append(algorithm.message(state).tolist())
    assert sent == [[0, 0], [1, 0], [2, 3], [0, 0]]


def test_fragments_are_an_option_of_the_algorithms_that_mix_in_parts():
    known = {kind for kind, section in SECTIONS["algorithm"].items()
             if "fragments" in {f.name for f in fields(section)}}  # fmt: skip
    assert known == set(IN_PARTS)
    assert known == set(ALGORITHMS) - {"local", "centralized", "fedavg"}


@pytest.mark.parametrize(
    "text, found",
    [
        ('[staleness]\nkind = "seeded"', "another part of the vector"),
        (
            '[policy]\nkind = "causal_lm"\n[policy.lora]\nrank = 2\nmix = "svd"\n'
            '[optim]\nkind = "sgd"\nlr = 0.1',
            "both of its",
        ),
        ('[topology]\ngraph = "one_peer_exponential"\n[faults]\non_loss = "survive"', "unmixed"),
    ],
)
def test_fragments_are_refused_where_parts_do_not_suit(text, found):
    with pytest.raises(ConfigError, match=found):
        parse("[algorithm]\nfragments = 3\n" + text)
    parse("[algorithm]\nfragments = 1\n" + text)


def test_fragments_and_a_graph_that_repeats_must_not_keep_step():
    text = '[algorithm]\nfragments = %d\n[topology]\ngraph = "one_peer_exponential"'
    build.make_topology(parse(text % 3), PAIRS)
    with pytest.raises(TopologyError, match="repeats after 2 rounds") as caught:
        build.make_topology(parse(text % 4), PAIRS)
    assert "without a common factor with 2" in caught.value.remedy


def test_push_sum_takes_push_weights_unless_told_otherwise():
    _, schedule, _ = made('[algorithm]\nkind = "push_sum"\n[topology]\ngraph = "star"')
    assert not schedule.doubly_stochastic
    text = '[algorithm]\nkind = "push_sum"\n[topology]\ngraph = "star"\nweights = "metropolis"'
    assert made(text)[1].doubly_stochastic


def test_the_message_has_room_for_what_travels():
    for kind, size in (("gradient_tracking", 8), ("push_sum", 5), ("exact_diffusion", 4)):
        algorithm, schedule, exchange = made(f'[algorithm]\nkind = "{kind}"')
        message = algorithm.message(algorithm.init(torch.zeros(4)))
        assert message.shape == (size,) and message.is_contiguous()
        exchange.start(0, 0, schedule.mixing(0).row(0), message)


def test_too_many_participants_are_refused():
    with pytest.raises(ConfigError, match="participants = 5, but there are 4 agents"):
        made('[algorithm]\nkind = "fedavg"\nparticipants = 5')


def test_an_agent_without_pairs_cannot_be_weighed_by_them():
    config = parse('[algorithm]\nkind = "fedavg"\nweighting = "pairs"')
    with pytest.raises(TopologyError, match="agent 2 has weight 0"):
        build.make_topology(config, [3, 1, 0, 2])


def test_exact_diffusion_refuses_a_matrix_that_is_not_symmetric(tmp_path):
    path = tmp_path / "w.csv"
    W = 0.4 * np.eye(4) + 0.4 * np.roll(np.eye(4), 1, 1) + 0.2 * np.roll(np.eye(4), 3, 1)
    np.savetxt(path, W, delimiter=",", fmt="%.17g")
    text = f'[algorithm]\nkind = "%s"\n[topology]\ngraph = "file"\nfile = "{path}"'
    with pytest.raises(TopologyError, match="not symmetric") as caught:
        made(text % "exact_diffusion")
    assert "gradient_tracking" in caught.value.remedy
    assert not made(text % "gradient_tracking")[1].symmetric


def test_sections_and_classes_agree_on_who_has_neighbours():
    assert list(SECTIONS["algorithm"]) == list(ALGORITHMS)
    for kind in ALGORITHMS:
        alone = needs_of(kind).meets != "neighbours"
        assert (kind in WITHOUT_TOPOLOGY) == alone
        assert (parse(f'[algorithm]\nkind = "{kind}"').topology is None) == alone


def test_what_the_loss_of_an_agent_means_to_each_algorithm():
    meaning = {kind: needs_of(kind).on_loss for kind in ALGORITHMS}
    assert {k for k, v in meaning.items() if v == "keeps"} == {
        "dsgd", "push_sum", "fedavg", "outer_momentum"
    }  # fmt: skip
    restarts = {"gradient_tracking", "exact_diffusion", "choco", "gossip_outer_momentum"}
    assert {k for k, v in meaning.items() if v == "restarts"} == restarts
    assert all("The loss of an agent" in ALGORITHMS[kind].__doc__ for kind in ALGORITHMS)


def test_a_wrapped_algorithm_needs_what_it_wraps():
    inner = ALGORITHMS["choco"].needs
    algorithm, _, exchange = made('[algorithm]\nkind = "choco"')
    for wrapped in (Running(algorithm), Recalling(algorithm, 4, 1)):
        assert wrapped.needs is inner
    assert exchange is not None and algorithm.needs.sends_bytes


def test_a_plain_configuration_is_read_without_the_classes():
    code = "import sys, decdpo.config as c; c.parse(''); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

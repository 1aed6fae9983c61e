"""What agents send is counted from the schedule: the same for any placement and any restart."""

import numpy as np
import pytest
import torch

from decdpo.comm.local import LocalWorld
from decdpo.comm.server import ServerExchange
from decdpo.metrics.traffic import Sent
from decdpo.topology.participation import Participation
from decdpo.topology.schedule import Averaging, make_schedule

N, P = 6, 5


class Counting:
    """An exchange that counts the messages that are really handed to each target."""

    def __init__(self, inner):
        self.inner = inner
        self.messages = 0
        self.message_bytes = inner.message_bytes
        self.counters = inner.counters
        self.sends = inner.sends

    def start(self, agent, round, row, message):
        self.messages += 0 if message is None else len(row.targets)
        self.inner.start(agent, round, row, message)

    def collect(self, round):
        return self.inner.collect(round)

    def inbox(self, agent, round):
        return self.inner.inbox(agent, round)

    def blank(self):
        return self.inner.blank()


def new():
    return Counting(LocalWorld(N).exchange(P, torch.float64))


def gossip(graph):
    exchange = new()
    return exchange, make_schedule(graph, "auto", N, seed=3), lambda: exchange.messages


def served(schedule, all_hear):
    up, down = new(), new()
    exchange = ServerExchange(up, down, all_hear=all_hear)
    return exchange, schedule, lambda: up.messages + down.messages


KINDS = {
    "ring": lambda: gossip("ring"),
    "star": lambda: gossip("star"),
    "one_peer_exponential": lambda: gossip("one_peer_exponential"),
    "random_matching": lambda: gossip("random_matching"),
    "centralized": lambda: served(Averaging(range(N)), N),
    "two of six, heard by all": lambda: served(Participation(N, 2, seed=5), N),
    "three of six, heard by these": lambda: served(Participation(N, 3, seed=5), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_messages_are_counted_as_are_sent(kind):
    exchange, schedule, sent = KINDS[kind]()
    count = Sent(exchange, schedule, tuple(range(N)))
    for t in range(9):
        mixing = schedule.mixing(t)
        for i in range(N):
            row = mixing.row(i)
            message = torch.full((P,), 1.0 * i, dtype=torch.float64)
            exchange.start(i, t, row, message if row.active else None)
        exchange.collect(t)
        for i in range(N):
            exchange.inbox(i, t).settle()
        if t % 2:
            assert count.until(t + 1) == (sent(), 8 * P * sent())
    assert sent() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_the_same_after_a_restart_and_for_any_placement(kind):
    exchange, schedule, _ = KINDS[kind]()
    whole = Sent(exchange, schedule, tuple(range(N)))
    steps = [whole.until(t) for t in range(12)]
    assert Sent(exchange, schedule, tuple(range(N))).until(11) == steps[-1]
    parts = [Sent(exchange, schedule, part).until(11) for part in ((0, 1), (2,), (3, 4, 5))]
    assert tuple(np.sum(parts, axis=0)) == steps[-1]


def test_a_round_of_an_average_costs_one_message_up_and_one_down_for_each_other_agent():
    exchange, schedule, _ = KINDS["centralized"]()
    assert Sent(exchange, schedule, tuple(range(N))).until(1)[0] == 2 * (N - 1)


def test_agents_that_train_alone_send_nothing():
    assert Sent(None, make_schedule("ring", "auto", N), (0, 1)).until(7) == (0, 0)

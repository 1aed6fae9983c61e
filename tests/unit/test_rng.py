"""Counter-based random numbers."""

import numpy as np
import pytest

from decdpo.rng import Stream, generator


def draw(*address):
    return tuple(generator(*address).integers(0, 2**63, size=4).tolist())


def test_the_same_address_gives_the_same_numbers():
    assert draw(7, Stream.BATCH, 3, 5, 2) == draw(7, Stream.BATCH, 3, 5, 2)


def test_every_part_of_the_address_matters():
    base = [7, Stream.BATCH, 3, 5, 2]
    draws = {draw(*base)}
    for i, other in enumerate([8, Stream.PARTITION, 4, 6, 3]):
        draws.add(draw(*(base[:i] + [other] + base[i + 1 :])))
    assert len(draws) == 6


def test_neighbouring_addresses_do_not_overlap():
    long = generator(0, Stream.BATCH, 0, 0, 0).integers(0, 2**63, size=4096)
    nearby = generator(0, Stream.BATCH, 0, 0, 1).integers(0, 2**63, size=4096)
    assert not np.intersect1d(long, nearby).size


def test_a_known_value_guards_old_runs():
    assert draw(0, Stream.BATCH)[0] == 7511823885658883584


def test_a_negative_address_is_refused():
    with pytest.raises(ValueError, match="negative"):
        generator(0, Stream.BATCH, -1)

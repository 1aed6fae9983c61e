"""Shard files: what goes in comes out, and nothing damaged or swapped is accepted."""

import os
import shutil
import stat

import h5py
import numpy as np
import pytest

from decdpo.data.index import ShardEntry, ShardIndex
from decdpo.data.shard import Pair, PreferenceShard
from decdpo.errors import DataError, EnvironmentFault

PAIRS = [
    Pair("Tea or coffee?", "Tea.", "Coffee!"),
    Pair("Größe in 中文?", "“ja” 🙂", "nein"),
    Pair("", "x", "y\x00z"),
    Pair("last", "a\n\nb", "c" * 300),
]


def example(agent=3, **columns):
    return PreferenceShard.from_pairs(
        PAIRS,
        3,
        agent=agent,
        sharding="uuid-1",
        users=["bo", "ann", "bo", "zoé"],
        columns={
            "source_row": np.array([4, 8, 15, 16]),
            "score_chosen": np.array([3.0, 1.0, 0.5, 2.0]),
            "score_rejected": np.array([1.0, 2.0, 0.5, -1.0]),
            "weight": np.array([1.0, 2.0, 0.5, 1.0]),
            "chosen_features": np.arange(8.0).reshape(4, 2),
            "rejected_features": -np.arange(8.0).reshape(4, 2),
            **columns,
        },
    )


@pytest.fixture
def path(tmp_path):
    example().save(tmp_path / "agent_0003.h5")
    return tmp_path / "agent_0003.h5"


def test_a_saved_shard_comes_back_whole(path):
    made, shard = example(), PreferenceShard.open(path)
    assert shard.digest == made.digest
    assert (shard.agent, shard.num_pairs, shard.num_train, shard.num_heldout) == (3, 4, 3, 1)
    assert shard.prompt_format == "plain"
    assert shard.pairs(range(4)) == PAIRS
    assert shard.pair(1) == PAIRS[1]
    assert shard.user.tolist() == ["bo", "ann", "bo", "zoé"]
    np.testing.assert_array_equal(shard.source_row, [4, 8, 15, 16])
    np.testing.assert_array_equal(shard.score_gap, [2.0, -1.0, 0.0, 3.0])
    np.testing.assert_array_equal(shard.weight, [1.0, 2.0, 0.5, 1.0])
    chosen, rejected = shard.features
    np.testing.assert_array_equal(chosen, -rejected)
    assert chosen.shape == (4, 2)


def test_optional_columns_are_none_when_absent(tmp_path):
    PreferenceShard.from_pairs(PAIRS).save(tmp_path / "a.h5")
    shard = PreferenceShard.open(tmp_path / "a.h5")
    assert shard.num_heldout == 0
    assert shard.score_gap is None and shard.weight is None
    assert shard.user is None and shard.features is None
    np.testing.assert_array_equal(shard.source_row, [1, 2, 3, 4])


def test_only_the_owner_may_read_a_shard(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    PreferenceShard.open(path).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    example().save(tmp_path / "again.h5")
    assert path.read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_rows_outside_the_shard_are_refused(path):
    shard = PreferenceShard.open(path)
    for row in (-1, 4):
        with pytest.raises(IndexError):
            shard.pair(row)


def test_what_is_kept_beside_a_shard_does_not_change_it(path):
    shard, before = PreferenceShard.open(path), path.read_bytes()
    shard.references.add([(b"k" * 32, b"value")])
    shard.tokens.add([(b"k" * 32, b"tokens")])
    again = PreferenceShard.open(path, shard.digest)
    assert again.references.find([b"k" * 32]) == {b"k" * 32: [b"value"]}
    assert again.tokens.find([b"k" * 32]) == {b"k" * 32: [b"tokens"]}
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == [path.name, path.stem + ".tokens", "reference.cache"]


def test_a_shard_in_memory_keeps_what_is_made_of_it_there():
    shard = example()
    shard.references.add([(b"k" * 32, b"value")])
    assert shard.references.find([b"k" * 32]) and not shard.tokens.find([b"k" * 32])


def test_a_failed_rewrite_leaves_the_old_shard(path, monkeypatch):
    shard, before = PreferenceShard.open(path), path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        shard.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_truncated_file_is_refused(path):
    content = path.read_bytes()
    for size in (0, 10, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="truncated|damaged|not an HDF5"):
            PreferenceShard.open(path)


def test_no_flipped_bit_changes_what_is_read(path):
    content, made = path.read_bytes(), example()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            shard = PreferenceShard.open(path, made.digest)
        except DataError:
            refused += 1
        else:
            assert shard.pairs(range(4)) == PAIRS and shard.digest == made.digest
    assert refused > 100


@pytest.mark.parametrize("name", ["text", "spans", "source_row", "weight", "user"])
def test_an_edited_dataset_is_named(path, name):
    with h5py.File(path, "r+", libver="latest") as file:
        values = file[name][...]
        values.flat[-1] += 1
        file[name][...] = values
    with pytest.raises(DataError, match=f"{name} does not match its checksum"):
        PreferenceShard.open(path)


@pytest.mark.parametrize(
    "attribute, value, message",
    [
        ("num_train", 2, "do not match its digest"),
        ("agent", 5, "do not match its digest"),
        ("version", 99, "version 99"),
        ("format", "other", "not a shard of decdpo"),
    ],
)
def test_an_edited_attribute_is_refused(path, attribute, value, message):
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs[attribute] = value
    with pytest.raises(DataError, match=message):
        PreferenceShard.open(path)


def test_a_dataset_turned_into_a_group_is_refused(path):
    with h5py.File(path, "r+", libver="latest") as file:
        del file["spans"]
        file.create_group("spans")
    with pytest.raises(DataError, match="is damaged"):
        PreferenceShard.open(path)


def test_foreign_files_are_refused(tmp_path):
    text, foreign = tmp_path / "a.h5", tmp_path / "b.h5"
    text.write_text("prompt,chosen,rejected\n")
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="not an HDF5 file"):
        PreferenceShard.open(text)
    with pytest.raises(DataError, match="not a shard of decdpo"):
        PreferenceShard.open(foreign)
    with pytest.raises(DataError, match="there is no shard"):
        PreferenceShard.open(tmp_path / "none.h5")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"weight": np.ones(3)}, "weight has 3 rows for 4 pairs"),
        ({"rejected_features": np.ones((4, 3))}, "features of shapes"),
        ({"colour": np.ones(4)}, "no column 'colour'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        example(**columns)


def make_index(folder, sharding="uuid-1", agents=2):
    folder.mkdir()
    entries = []
    for agent in range(agents):
        shard = PreferenceShard.from_pairs(PAIRS, 3, agent=agent, sharding=sharding)
        file = f"agent_{agent:04d}.h5"
        shard.save(folder / file)
        entries.append(ShardEntry(agent, "", file, shard.digest, 3, 1, 0))
    index = ShardIndex(folder, sharding, 0, 0.25, "iid", "plain", tuple(entries), {"rows_read": 4})
    index.save()
    return index


def test_an_index_comes_back_and_opens_its_shards(tmp_path):
    made = make_index(tmp_path / "s")
    index = ShardIndex.load(tmp_path / "s")
    assert index == made and index.digest == made.digest
    assert index.open(1).agent == 1
    with pytest.raises(DataError, match="none for agent 2"):
        index.open(2)


def test_swapped_and_missing_files_are_named(tmp_path):
    index = make_index(tmp_path / "s")
    make_index(tmp_path / "other", sharding="uuid-2")
    first, second = (tmp_path / "s" / f"agent_{i:04d}.h5" for i in range(2))
    shutil.copy(second, first)
    with pytest.raises(DataError, match="shard of agent 1, not of 0"):
        index.open(0)
    shutil.copy(tmp_path / "other" / first.name, first)
    with pytest.raises(DataError, match="belongs to sharding uuid-2, not to uuid-1"):
        index.open(0)
    PreferenceShard.from_pairs(PAIRS[::-1], 3, agent=0, sharding="uuid-1").save(first)
    with pytest.raises(DataError, match="edited or replaced"):
        index.open(0)
    first.unlink()
    with pytest.raises(DataError, match="there is no shard .*agent_0000.h5"):
        index.open(0)
    assert index.open(1).num_pairs == 4


def test_a_broken_index_is_refused(tmp_path):
    make_index(tmp_path / "s")
    path = tmp_path / "s" / "index.json"
    text = path.read_text()
    for content, message in [
        (text.replace('"seed": 0', '"seed": 1'), "was edited"),
        (text.replace('"version": 1', '"version": 7'), "version 7"),
        (text[: len(text) // 2], "cannot be read"),
        ("[]", "not an index"),
    ]:
        assert content != text
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            ShardIndex.load(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match="no index.json in"):
        ShardIndex.load(tmp_path / "s")
    with pytest.raises(DataError, match="there is no folder"):
        ShardIndex.load(tmp_path / "none")


def test_what_a_killed_process_left_is_removed_once_it_is_old(path):
    old, young, other = (path.with_name(f".{name}.tmp") for name in (
        "agent_0003.h5.11", "agent_0003.h5.12", "agent_0004.h5.11"
    ))  # fmt: skip
    for leftover in (old, young, other):
        leftover.write_text("half")
    for leftover in (old, other):
        os.utime(leftover, (0, 0))
    PreferenceShard.open(path).save(path)
    assert not old.exists() and young.exists() and other.exists()

"""The files beside the shards: found by key, appended, locked, and cut where they are torn."""

import os
import stat
import subprocess
import sys

import pytest
from limits import HANG

from decdpo import files
from decdpo.data import cache
from decdpo.data.cache import Cache
from decdpo.errors import DataError


def key(n):
    return n.to_bytes(32, "little")


def opened(path):
    return Cache(path, "test", "the values")


def filled(path, count=5):
    opened(path).add([(key(n), b"value %d" % n) for n in range(count)])
    return path


@pytest.fixture
def path(tmp_path):
    return filled(tmp_path / "file")


def found(path, count=20):
    return opened(path).find([key(n) for n in range(count)])


def test_values_are_found_by_their_key_alone(path):
    assert opened(path).find([key(3), key(99)]) == {key(3): [b"value 3"]}
    opened(path).add([(key(3), b"another"), (key(7), b"")])
    assert opened(path).find([key(3), key(7)]) == {key(3): [b"value 3", b"another"], key(7): [b""]}


def test_the_file_is_for_its_owner_alone(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_adding_appends_and_writes_nothing_again(path):
    before = path.read_bytes()
    opened(path).add([(key(9), b"new")])
    assert path.read_bytes()[: len(before)] == before and len(found(path)) == 6


def test_adding_nothing_makes_no_file(tmp_path):
    opened(tmp_path / "none").add([])
    assert opened(tmp_path / "none").find([key(1)]) == {} and not os.listdir(tmp_path)


@pytest.mark.parametrize("torn", [1, 10, 40, 46])
def test_a_torn_tail_is_not_read_and_is_cut_by_the_next_writer(path, torn):
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    assert sorted(found(path)) == [key(n) for n in range(4)]
    one = opened(path)
    one.add([(key(8), b"value 8")])
    assert "were cut" in one.notes[0] and str(path) in one.notes[0]
    assert sorted(found(path)) == [key(n) for n in (0, 1, 2, 3, 8)]


@pytest.mark.parametrize("size", [0, 5, 15])
def test_a_file_torn_within_its_head_begins_anew(path, size):
    path.write_bytes(path.read_bytes()[:size])
    assert found(path) == {}
    filled(path, 2)
    assert len(found(path)) == 2


@pytest.mark.parametrize("place", [16, 21, 30, 60, 70])
def test_a_flipped_bit_ends_what_is_read_there(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    read = found(path)
    assert len(read) < 5 and all(v == [b"value %d" % k[0]] for k, v in read.items())
    filled(path)
    assert len(found(path)) == 5


def test_a_forged_length_is_not_believed(path):
    record = cache._REST.pack(2**32 - 1, key(1))
    path.write_bytes(path.read_bytes() + b"\0\0\0\0" + record)
    assert len(found(path)) == 5


@pytest.mark.parametrize("content", [b"something else entirely", b"\x89decdpo\nother\0\0\0"])
def test_another_file_in_its_place_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    for act in (lambda c: c.find([key(1)]), lambda c: c.add([(key(1), b"")])):
        with pytest.raises(DataError, match="cannot be used to keep the values.*\n.*move it away"):
            act(opened(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == content


def test_a_named_pipe_or_folder_in_its_place_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match=name):
            opened(tmp_path / name).find([key(1)])
    with pytest.raises(DataError, match="pipe"):
        opened(tmp_path / "pipe").add([(key(1), b"")])


def test_where_nothing_can_be_written_it_is_said_once_and_kept_in_memory(path, monkeypatch):
    one = opened(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "pwrite", full)
    before = path.read_bytes()
    one.add([(key(10), b"ten")])
    one.add([(key(11), b"eleven")])
    assert path.read_bytes() == before and len(one.notes) == 1
    assert "not kept for the next run" in one.notes[0] and "No space left" in one.notes[0]
    assert one.find([key(1), key(10), key(11)]).keys() == {key(1), key(10), key(11)}
    monkeypatch.undo()
    assert key(10) not in found(path)


def test_without_a_file_everything_is_in_memory():
    one = opened(None)
    one.add([(key(1), b"one")])
    assert one.find([key(1)]) == {key(1): [b"one"]} and one.notes == ()


def test_a_lock_that_is_kept_is_not_waited_for_without_end(path, monkeypatch):
    monkeypatch.setattr(cache, "waited", lambda descriptor: files.waited(descriptor, 0.05))
    with open(path, "rb") as holder, files.waited(holder.fileno()):
        one = opened(path)
        one.add([(key(10), b"ten")])
    assert "kept it locked" in one.notes[0] and len(found(path)) == 5


def test_without_locks_it_is_said_and_a_damaged_end_is_left_alone(path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    one = opened(path)
    one.add([(key(10), b"ten")])
    assert "two jobs" in one.notes[0] and len(found(path)) == 6
    path.write_bytes(path.read_bytes()[:-1])
    other, size = opened(path), path.stat().st_size
    other.add([(key(11), b"eleven")])
    assert any("cannot be locked" in note for note in other.notes) and path.stat().st_size == size


def test_a_file_made_anew_meanwhile_is_not_cut(path):
    one = opened(path)
    one.find([key(1)])
    path.unlink()
    filled(path, 20)
    one.add([(key(30), b"more")])
    assert len(found(path)) == 20 and opened(path).find([key(30)]) and not one.notes


WRITER = """
import sys
from pathlib import Path
from decdpo.data.cache import Cache
for n in range(40):
    key, value = (n * 4 + int(sys.argv[2])).to_bytes(32, "little"), sys.argv[2].encode() * 1000
    Cache(Path(sys.argv[1]), "test", "x").add([(key, value)])
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_append_to_one_file_at_once(tmp_path, processes):
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "file"), str(number)])
               for number in range(processes)]  # fmt: skip
    assert [one.wait(HANG) for one in running] == [0] * processes
    read = found(tmp_path / "file", 160)
    assert len(read) == 40 * processes
    assert all(values == [b"%d" % (k[0] % 4) * 1000] for k, values in read.items())

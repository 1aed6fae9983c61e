"""Saving and resuming by one and several processes, in all weathers."""

import errno
import json
import os
import random
import re
import shutil
import threading
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from limits import HANG
from torch import Tensor

from decdpo.checkpoint import parts as parts_module
from decdpo.checkpoint import store as store_module
from decdpo.checkpoint import writer as writer_module
from decdpo.checkpoint.format import MANIFEST, Manifest, committed, round_name
from decdpo.checkpoint.inspect import digests
from decdpo.checkpoint.state import Snapshot
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.membership import Membership
from decdpo.errors import CheckpointError, ConfigError, EnvironmentFault

IDENTITY = {"layout": "abc", "topology": "ring", "data.0": "d0", "data.1": "d1", "lr": "0.1"}
ONE, TWO, THREE = [range(6)], [range(2), range(2, 6)], [range(1), range(1, 5), range(5, 6)]
MIXED = [[1, 3, 5], [0, 2], [4]]
SIX = [range(a, a + 1) for a in range(6)]


class Meeting:
    """Lets threads that stand for processes exchange a value."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=HANG)
        self._slots = [None] * size

    def all(self, index, value):
        self._slots[index] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values


class FakeWorld:
    """The part of a world that checkpoints use."""

    def __init__(self, placement, index, main, side):
        home = {agent: rank for rank, agents in enumerate(placement) for agent in agents}
        self.members = Membership.of(home)
        self.num_agents = sum(map(len, placement))
        self.local_agents = tuple(placement[index])
        self.is_root = index == 0
        self._index, self._main, self._side = index, main, side

    def collect(self, values):
        assert tuple(sorted(values)) == self.local_agents
        merged = {}
        for text in self._main.all(self._index, json.dumps(values)):
            merged.update({int(agent): value for agent, value in json.loads(text).items()})
        return merged

    def require(self, fault):
        faults = [f for f in self._main.all(self._index, fault) if f is not None]
        if faults:
            raise type(faults[0])(faults[0].what, faults[0].remedy)

    def require_same(self, what, value):
        assert len(set(self._main.all(self._index, value))) == 1

    def side_channel(self):
        return self if self._side else None

    def outcomes(self, text):
        assert len(text) < 1000 and threading.current_thread() is not threading.main_thread()
        return self._side.all(self._index, text)


def run(placement, body, *, background=True):
    """Call ``body(world)`` on one thread per process; return results, or exceptions, in order."""
    size = len(placement)
    main, side = Meeting(size), Meeting(size) if background else None
    results = [None] * size

    def one(index):
        try:
            results[index] = body(FakeWorld(placement, index, main, side))
        except Exception as fault:
            results[index] = fault

    threads = [threading.Thread(target=one, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a process hangs"
    return results


@dataclass
class State:
    x: Tensor
    moment: Tensor
    steps: int


def state(agent, round, size=300):
    rng = torch.Generator().manual_seed(1000 * round + agent)
    return State(
        torch.randn(size, generator=rng), torch.randn(size, generator=rng).bfloat16(), round
    )


def fresh(world, size=300):
    zeros = torch.zeros(size)
    return {a: State(zeros.clone(), zeros.bfloat16(), -1) for a in world.local_agents}


def same(states, round):
    for agent, found in states.items():
        want = state(agent, round)
        assert torch.equal(found.x, want.x) and torch.equal(found.moment, want.moment)
        assert found.steps == round
    return True


def make(folder, world, **options):
    return CheckpointStore(folder, world=world, **{"identity": IDENTITY, **options})


def save(folder, placement, rounds, *, background=True, **options):
    def body(world):
        store = make(folder, world, **options)
        for round in rounds:
            states = {agent: state(agent, round) for agent in world.local_agents}
            store.save(round, states, {"round": round})
        store.flush()
        return "saved"

    assert run(placement, body, background=background) == ["saved"] * len(placement)


def load(folder, placement, *, allow=(), required=False, **options):
    """Resume; return the round (or the exception) and the warnings."""
    warnings = []

    def body(world):
        states = fresh(world)
        store = make(folder, world, warn=warnings.append, **options)
        round = store.load(states, allow=allow, required=required)
        if round is not None:
            assert same(states, round) and store.extra == {"round": round}
        return round

    results = run(placement, body)
    assert len({repr(result) for result in results}) == 1, results
    return results[0], warnings


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("readers", [ONE, TWO, SIX])
def test_models_are_read_alone_whole_or_in_part(tmp_path, readers):
    save(tmp_path, TWO, [1, 2])

    def body(world):
        models = make(tmp_path, world, read_only=True).models(torch.zeros(300), round=1)
        assert models.round == 1
        x = torch.zeros(300)
        for agent in world.local_agents:
            before = x._version
            models.read(agent, x)
            want = state(agent, 1).x
            assert torch.equal(x, want) and x._version > before
            assert torch.equal(models.part(agent, x, slice(7, 19)), want[7:19])
            assert torch.equal(models.part(agent, x, slice(290, 300)), want[290:])
        models.close()
        return "read"

    assert run(readers, body) == ["read"] * len(readers)


@pytest.mark.parametrize("like, says", [
    (torch.zeros(299), "x: saved float32 \\(300,\\), now float32 \\(299,\\)"),
    (torch.zeros(300, dtype=torch.float64), "now float64"),
])  # fmt: skip
def test_models_of_another_form_are_refused_on_all(tmp_path, like, says):
    save(tmp_path, TWO, [1])
    for found in run(TWO, lambda world: make(tmp_path, world, read_only=True).models(like)):
        assert isinstance(found, CheckpointError) and re.search(says, str(found))
    for found in run(TWO, lambda world: make(tmp_path, world, read_only=True).models(
        torch.zeros(300), torch.zeros(1)
    )):  # fmt: skip
        assert "running: saved no tensor" in str(found)


def test_models_are_taken_of_the_newest_checkpoint_that_is_whole(tmp_path):
    save(tmp_path, TWO, [1, 2])
    part = tmp_path / "round_000002" / "part_0000.h5"
    part.write_bytes(part.read_bytes()[:-1])

    def body(world):
        return make(tmp_path, world, read_only=True).models(torch.zeros(300)).round

    assert run(TWO, body) == [1, 1]


def test_states_too_large_to_be_copied_are_on_disk_before_anybody_goes_on(tmp_path):
    def body(world):
        store = make(tmp_path, world)
        if 0 in world.local_agents:
            # On one process alone: it has more agents than the others.
            store._snapshot = Snapshot(in_place_above=0)
        states = {agent: state(agent, 1) for agent in world.local_agents}
        store.save(1, states, {"round": 1})
        for changed in states.values():
            changed.x.zero_()
        return names(tmp_path)

    assert run(TWO, body) == [["round_000001"]] * 2
    assert load(tmp_path, ONE) == (1, [])


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("writers", [ONE, TWO, THREE, MIXED])
@pytest.mark.parametrize("readers", [ONE, TWO, SIX, MIXED])
def test_any_number_of_processes_writes_and_reads(tmp_path, writers, readers, background):
    save(tmp_path, writers, [5, 10], background=background)
    assert load(tmp_path, readers) == (10, [])
    parts = [f"part_{index:04d}.h5" for index in range(len(writers))]
    assert names(tmp_path / "round_000010") == [MANIFEST, *parts]
    manifest = Manifest.read(tmp_path / "round_000010")
    in_order = sorted(tuple(agents) for agents in writers)
    assert [part.agents for part in manifest.parts] == in_order
    assert [agent for agent, _ in digests(tmp_path / "round_000010")] == list(range(6))
    assert manifest.identity == IDENTITY and manifest.serial == 2


def test_saving_returns_before_the_write_and_keeps_the_values_of_that_moment(tmp_path, monkeypatch):
    go, begun, write = threading.Event(), threading.Event(), writer_module.write_part

    def slow(*arguments):
        begun.set()
        assert go.wait(HANG)
        return write(*arguments)

    monkeypatch.setattr(writer_module, "write_part", slow)

    def body(world):
        store = make(tmp_path, world)
        states = {agent: state(agent, 1) for agent in world.local_agents}
        store.save(1, states, {"round": 1})
        assert begun.wait(HANG) and names(tmp_path) == [".writing-round_000001"]
        store.poll()
        for changed in states.values():
            changed.x.zero_()
            changed.steps = 99
        second = threading.Thread(target=store.save, args=(2, states, {"round": 2}))
        second.start()
        second.join(0.1)
        assert second.is_alive(), "a second write began while the first was in flight"
        go.set()
        second.join(20)
        store.flush()
        return names(tmp_path)

    assert run(ONE, body) == [["round_000001", "round_000002"]]
    shutil.rmtree(tmp_path / "round_000002")
    assert load(tmp_path, ONE) == (1, [])


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, None])
def test_one_failing_process_is_an_error_on_all(tmp_path, monkeypatch, background, code):
    save(tmp_path, THREE, [1])
    write, broken = writer_module.write_part, threading.Event()
    broken.set()

    def fail(path, records, header):
        if path.name == "part_0001.h5" and broken.is_set():
            path.write_bytes(b"half of it")
            raise OSError(code, os.strerror(code)) if code else RuntimeError("a bug")
        return write(path, records, header)

    monkeypatch.setattr(writer_module, "write_part", fail)

    def body(world):
        store = make(tmp_path, world)
        store.load(fresh(world))
        states = {agent: state(agent, 2) for agent in world.local_agents}
        with pytest.raises((EnvironmentFault, CheckpointError)) as caught:
            store.save(2, states)
            while background:
                store.poll()
                time.sleep(0.001)
        store.poll()
        # Raised by poll it may strike in different rounds, so nobody may wait for the others.
        assert caught.value.collective is not background
        assert caught.value.shared is background
        assert world.collect({a: None for a in world.local_agents}) and names(tmp_path) == [
            "round_000001"
        ]
        broken.clear()
        world.collect({a: None for a in world.local_agents})
        store.save(3, {agent: state(agent, 3) for agent in world.local_agents}, {"round": 3})
        store.flush()
        return caught.value

    faults = run(THREE, body, background=background)
    assert len({str(fault) for fault in faults}) == 1, faults
    assert "part_0001.h5" in faults[0].what and "intact" in faults[0].remedy
    assert (os.strerror(code) if code else "a bug") in faults[0].what
    assert faults[0].exit_code == (2 if code else 3)
    assert load(tmp_path, TWO) == (3, [])


def test_a_failing_commit_is_an_error_on_all(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(writer_module, "write_durably", fail)

    def body(world):
        store = make(tmp_path, world)
        store.save(1, {agent: state(agent, 1) for agent in world.local_agents})
        store.flush()

    faults = run(TWO, body)
    assert [type(fault) for fault in faults] == [EnvironmentFault] * 2
    assert "quota" in faults[1].remedy and names(tmp_path) == []


def test_a_disk_too_small_is_known_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage(10, 9, 2_000))

    def body(world):
        store = make(tmp_path, world)
        store.save(1, {agent: state(agent, 1) for agent in world.local_agents})

    faults = run(TWO, body)
    assert [type(fault) for fault in faults] == [EnvironmentFault] * 2
    assert "no room" in faults[0].what and str(tmp_path) in faults[0].what
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_error_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    faults = run(TWO, lambda world: make(tmp_path / "file", world))
    assert [type(fault) for fault in faults] == [EnvironmentFault] * 2
    assert str(tmp_path / "file") in faults[0].what

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", refuse)
    faults = run(TWO, lambda world: make(tmp_path, world))
    assert "Read-only file system" in faults[1].what and "writable" in faults[1].remedy


@pytest.mark.parametrize(
    "keep, keep_every, left",
    [(1, 0, [9]), (2, 0, [8, 9]), (3, 0, [7, 8, 9]), (1, 3, [3, 6, 9]), (2, 4, [4, 8, 9])],
)
def test_retention(tmp_path, keep, keep_every, left):
    save(tmp_path, TWO, range(1, 6), keep=keep, keep_every=keep_every)

    def body(world):  # the count goes on after a resume
        store = make(tmp_path, world, keep=keep, keep_every=keep_every)
        assert store.load(fresh(world)) == 5
        for round in range(6, 10):
            store.save(round, {agent: state(agent, round) for agent in world.local_agents})
        store.flush()

    assert run(THREE, body) == [None] * 3
    assert list(committed(tmp_path)) == left
    assert names(tmp_path) == [round_name(round) for round in left]


@pytest.mark.parametrize("damaged, left", [(None, [4, 5]), (5, [3, 4, 5])])
def test_what_a_killed_process_has_not_removed_goes_before_the_next_write(
    tmp_path, monkeypatch, damaged, left
):
    """Runs killed again and again right after a commit would otherwise fill the disk."""
    save(tmp_path, TWO, [1, 2, 3, 4, 5], keep=5)
    if damaged:
        flip(tmp_path / round_name(damaged) / "part_0001.h5", 5000)

    def full(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def body(world):
        store = make(tmp_path, world, keep=2, warn=lambda line: None)
        done = store.load(fresh(world))
        assert list(committed(tmp_path)) == [1, 2, 3, 4, 5], "who only looks removes nothing"
        world.require(None)
        store.save(6, {agent: state(agent, 6) for agent in world.local_agents})
        store.flush()
        return done

    monkeypatch.setattr(writer_module, "write_part", full)
    assert {type(fault) for fault in run(TWO, body)} == {EnvironmentFault}
    assert list(committed(tmp_path)) == left


def test_damaged_checkpoints_neither_count_nor_push_out_good_ones(tmp_path):
    save(tmp_path, TWO, [1, 2, 3, 4], keep=4)
    for round in (2, 4):
        (tmp_path / round_name(round) / MANIFEST).unlink()
    warnings = []

    def body(world):
        store = make(tmp_path, world, keep=2, warn=warnings.append)
        assert store.load(fresh(world)) == 3
        # Round 4 comes again in time; until then its damaged predecessor is not counted.
        store.save(3, {agent: state(agent, 3) for agent in world.local_agents})
        store.flush()
        between = list(committed(tmp_path))
        world.collect({agent: None for agent in world.local_agents})
        store.save(4, {agent: state(agent, 4) for agent in world.local_agents}, {"round": 4})
        store.flush()
        return between

    assert run(TWO, body)[0] == [1, 3, 4]
    assert len(warnings) == 1 and "round 4" in warnings[0] and MANIFEST in warnings[0]
    assert list(committed(tmp_path)) == [3, 4] and load(tmp_path, ONE) == (4, [])


def test_what_was_rejected_is_not_kept_in_place_of_a_good_one(tmp_path):
    save(tmp_path, TWO, [1, 2, 3, 4], keep=4)
    flip(tmp_path / "round_000004" / "part_0001.h5", 5000)

    def body(world):
        store = make(tmp_path, world, keep=2, warn=lambda line: None)
        assert store.load(fresh(world)) == 3
        store.save(5, {agent: state(agent, 5) for agent in world.local_agents})
        store.flush()

    assert run(TWO, body) == [None] * 2
    assert list(committed(tmp_path)) == [3, 5]


def flip(path, offset, bit=0):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def swap_parts(folder):
    (folder / "part_0000.h5").rename(folder / "other")
    (folder / "part_0001.h5").rename(folder / "part_0000.h5")
    (folder / "other").rename(folder / "part_0001.h5")


def manifest_of_elsewhere(folder):
    shutil.copy(folder.parent / "round_000001" / MANIFEST, folder)


def edited_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"topology": "ring"', '"topology": "star"'))


def manifest_is_a_folder(folder):
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


@pytest.mark.parametrize(
    "harm, says",
    [
        (lambda f: flip(f / "part_0001.h5", 5000), "part_0001.h5 is damaged: its CRC-32"),
        (lambda f: flip(f / "part_0000.h5", 0, 7), "part_0000.h5 is damaged: its CRC-32"),
        (lambda f: os.truncate(f / "part_0001.h5", 900), "900 bytes, the manifest says"),
        (lambda f: os.truncate(f / "part_0001.h5", 0), "0 bytes, the manifest says"),
        (lambda f: (f / "part_0000.h5").unlink(), "part_0000.h5 is missing"),
        (lambda f: (f / MANIFEST).unlink(), "not a whole checkpoint"),
        (lambda f: (f / MANIFEST).write_bytes(b""), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\x00" * 99), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"format": 1, "version": 2}'), "is damaged"),
        (lambda f: (f / MANIFEST).write_text("[" * 100_000), "is damaged"),
        (lambda f: flip(f / MANIFEST, 300), "manifest.json"),
        (swap_parts, "damaged"),
        (manifest_of_elsewhere, "damaged"),
        (edited_manifest, "its own checksum does not fit"),
        (manifest_is_a_folder, "cannot be read: Is a directory"),
    ],
)
@pytest.mark.parametrize("readers", [ONE, THREE])
def test_a_damaged_checkpoint_is_passed_over_with_one_line(tmp_path, harm, says, readers):
    save(tmp_path, TWO, [1, 2])
    harm(tmp_path / "round_000002")
    round, warnings = load(tmp_path, readers)
    assert round == 1
    assert len(warnings) == 1 and says in warnings[0] and "\n" not in warnings[0]
    assert "round 2" in warnings[0]


@pytest.mark.parametrize("readers", [ONE, THREE])
def test_a_checkpoint_under_the_name_of_another_round_is_not_that_round(tmp_path, readers):
    save(tmp_path, TWO, [1, 2])
    (tmp_path / "round_000002").rename(tmp_path / "round_000009")
    round, warnings = load(tmp_path, readers)
    assert round == 1 and len(warnings) == 1
    assert "round_000009 holds the checkpoint of round 2" in warnings[0]


def test_a_checkpoint_under_the_name_of_another_round_pushes_out_no_good_one(tmp_path):
    save(tmp_path, TWO, [1, 2, 3], keep=3)
    shutil.copytree(tmp_path / "round_000001", tmp_path / "round_000004")
    save(tmp_path, TWO, [5], keep=2)
    assert list(committed(tmp_path)) == [3, 5]


def test_damage_that_only_the_reader_of_the_values_meets_is_passed_over_too(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "FRAMED", 64)
    save(tmp_path, TWO, [1, 2])
    path = tmp_path / "round_000002/part_0001.h5"
    at = path.read_bytes().find(state(3, 2).x.numpy().tobytes())
    flip(path, at + 400)
    round, warnings = load(tmp_path, SIX)
    assert round == 1 and "agents/000003/x is damaged" in warnings[0] and len(warnings) == 1


@pytest.mark.parametrize("readers", [ONE, SIX])
def test_any_flipped_bit_is_found_by_whoever_reads_it(tmp_path, monkeypatch, readers):
    """Also where the tensors are read once, by their owner, and the rest by another process."""
    monkeypatch.setattr(parts_module, "FRAMED", 64)
    save(tmp_path, TWO, [1, 2])
    path = tmp_path / "round_000002/part_0001.h5"
    content = path.read_bytes()
    chance = random.Random(5)
    places = chance.sample(range(len(content)), 12)
    places += [content.find(state(a, 2).x.numpy().tobytes()) + 5 for a in range(2, 6)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        round, warnings = load(tmp_path, readers)
        assert round == 1 and len(warnings) == 1, place
    path.write_bytes(content)
    assert load(tmp_path, readers) == (2, [])


def bytes_read() -> int:
    """Return how many bytes this process has read by now, from anywhere."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_resuming_reads_each_byte_once_and_measuring_reads_the_models_alone(tmp_path):
    size = 250_000

    def body(world):
        states = fresh(world, size)
        store = make(tmp_path, world)
        store.save(1, states)
        store.flush()
        return sum(s.x.nbytes + s.moment.nbytes for s in states.values())

    (nbytes,) = run(ONE, body)

    def resume(world):
        states, store, before = fresh(world, size), make(tmp_path, world), bytes_read()
        assert store.load(states) == 1
        return bytes_read() - before

    def measure(world):
        store, before = make(tmp_path, world, read_only=True), bytes_read()
        models = store.models(torch.zeros(size))
        return bytes_read() - before, models.close()

    (read,) = run(ONE, resume)
    assert nbytes <= read <= 1.1 * nbytes
    ((looked_at, _),) = run(ONE, measure)
    assert looked_at <= 1.2 * size * 4 * 6


def test_if_none_is_whole_it_says_so(tmp_path):
    save(tmp_path, TWO, [1, 2])
    for round in (1, 2):
        flip(tmp_path / round_name(round) / MANIFEST, 50)
    fault, warnings = load(tmp_path, TWO)
    assert isinstance(fault, CheckpointError) and fault.exit_code == 3 and len(warnings) == 2
    assert "no checkpoint is whole" in fault.what and fault.remedy


def test_without_any_checkpoint(tmp_path):
    assert load(tmp_path / "new", TWO) == (None, [])
    fault, _ = load(tmp_path / "new", TWO, required=True)
    assert isinstance(fault, CheckpointError) and "there is no checkpoint" in fault.what


def test_reading_only_neither_makes_nor_removes_anything(tmp_path):
    assert load(tmp_path / "new", TWO, read_only=True) == (None, [])
    assert not (tmp_path / "new").exists()
    (tmp_path / ".writing-round_000001").mkdir()
    load(tmp_path, TWO, read_only=True)
    assert names(tmp_path) == [".writing-round_000001"]


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path):
    save(tmp_path, TWO, [1])
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("round_2", "round_0000003", "best", ".writing-mine", "round_000009.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "round_000007").write_text("a file with the name of a checkpoint")
    (tmp_path / "round_000001" / "README").write_text("an extra file does no harm")
    before = names(tmp_path)
    assert load(tmp_path, TWO) == (1, [])
    assert names(tmp_path) == before


def test_the_next_start_removes_what_a_kill_left(tmp_path):
    save(tmp_path, TWO, [1, 2, 3], keep=3)
    (tmp_path / ".writing-round_000004").mkdir()
    (tmp_path / ".writing-round_000004" / "part_0000.h5").write_bytes(b"half")
    (tmp_path / "round_000001").rename(tmp_path / ".removing-round_000001")
    shutil.copytree(tmp_path / "round_000002", tmp_path / ".old-round_000002")
    (tmp_path / "round_000003").rename(tmp_path / ".old-round_000003")
    shutil.copytree(tmp_path / "round_000002", tmp_path / ".writing-round_000003")
    assert load(tmp_path, TWO) == (3, [])
    assert names(tmp_path) == ["round_000002", "round_000003"]


def test_a_checkpoint_of_the_same_round_is_replaced(tmp_path):
    save(tmp_path, TWO, [1, 2])
    save(tmp_path, THREE, [2])
    assert names(tmp_path) == ["round_000001", "round_000002"]
    assert len(Manifest.read(tmp_path / "round_000002").parts) == 3
    assert load(tmp_path, TWO) == (2, [])


@pytest.mark.parametrize(
    "now, allow, lines",
    [
        ({"topology": "star"}, [], ["  topology: saved ring, now star"]),
        ({"lr": "0.2", "layout": "x"}, ["lr"], ["  layout: saved abc, now x"]),
        ({"data.1": "e1"}, ["lr"], ["  data.1: saved d1, now e1"]),
        ({"new": "7"}, [], ["  new: saved nothing, now 7"]),
        ({"lr": None}, [], ["  lr: saved 0.1, now nothing"]),
    ],
)
def test_another_run_is_refused_with_every_difference(tmp_path, now, allow, lines):
    save(tmp_path, TWO, [1])
    identity = {k: v for k, v in {**IDENTITY, **now}.items() if v is not None}
    fault, warnings = load(tmp_path, TWO, identity=identity, allow=allow)
    assert isinstance(fault, CheckpointError) and warnings == []
    assert fault.what.splitlines()[1:] == lines
    key = lines[0].split(":")[0].strip()
    assert f"--allow {key}" in fault.remedy and str(tmp_path) in fault.what


@pytest.mark.parametrize(
    "now, allow",
    [({"lr": "0.2"}, ["lr"]), ({"data.0": "e", "data.1": "f"}, ["data"]), ({"new": "1"}, ["new"])],
)
def test_what_is_allowed_may_change(tmp_path, now, allow):
    save(tmp_path, TWO, [1])
    assert load(tmp_path, TWO, identity={**IDENTITY, **now}, allow=allow) == (1, [])


@pytest.mark.parametrize(
    "now, allow, changed",
    [
        ({}, [], False),
        ({}, ["lr"], False),
        ({"lr": "0.2"}, ["lr"], True),
        ({"new": "1"}, ["new"], True),
    ],
)
def test_it_knows_whether_what_is_allowed_did_change(tmp_path, now, allow, changed):
    save(tmp_path, TWO, [1])

    def body(world):
        store = make(tmp_path, world, identity={**IDENTITY, **now})
        store.load(fresh(world), allow=allow)
        return store.changed

    assert run(TWO, body) == [changed] * 2


def test_a_reader_is_held_to_the_keys_it_gives(tmp_path):
    save(tmp_path, TWO, [1])
    reader = {"read_only": True, "identity": {"layout": "abc", "data.0": "d0"}}
    assert load(tmp_path, THREE, **reader) == (1, [])
    reader["identity"] = {"layout": "abc", "data.0": "d7"}
    fault, _ = load(tmp_path, TWO, **reader)
    assert isinstance(fault, CheckpointError) and "data.0: saved d0, now d7" in fault.what
    assert "--allow" not in fault.remedy and "--set data.shards=" in fault.remedy


def test_an_unknown_key_to_allow_is_an_error_that_names_the_nearest(tmp_path):
    save(tmp_path, TWO, [1])
    fault, _ = load(tmp_path, TWO, allow=["topolgy"])
    assert isinstance(fault, ConfigError) and "did you mean 'topology'" in fault.what


def test_another_number_of_agents_is_refused(tmp_path):
    save(tmp_path, TWO, [1])
    fault, _ = load(tmp_path, [range(3), range(3, 5)])
    assert isinstance(fault, CheckpointError) and "agents: saved 6, now 5" in fault.what


def test_another_shape_is_refused_on_all_and_not_taken_for_damage(tmp_path):
    save(tmp_path, TWO, [1, 2])
    warnings = []

    def body(world):
        size = 300 if world.is_root else 301
        make(tmp_path, world, warn=warnings.append).load(fresh(world, size))

    faults = run(TWO, body)
    assert [type(fault) for fault in faults] == [CheckpointError] * 2 and warnings == []
    assert "agent 2, x: saved float32 (300,), now float32 (301,)" in faults[0].what


def test_states_must_be_those_of_the_local_agents(tmp_path):
    def body(world):
        make(tmp_path, world).save(1, {0: state(0, 1)})

    assert isinstance(run(ONE, body)[0], ValueError)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep_every": -1}])
def test_retention_that_would_keep_nothing_is_refused(tmp_path, options):
    assert isinstance(run(ONE, lambda world: make(tmp_path, world, **options))[0], ValueError)


def test_one_round_can_be_asked_for(tmp_path):
    save(tmp_path, TWO, [1, 2, 3], keep=3)
    flip(tmp_path / "round_000001" / MANIFEST, 50)

    def body(world, round):
        states = fresh(world)
        found = make(tmp_path, world, warn=lambda line: None).load(states, round=round)
        return found if found is None else same(states, found) and found

    assert run(TWO, lambda world: body(world, 2)) == [2, 2]
    for round, says in ((7, "there is no checkpoint of round 7"), (1, "of round 1 is whole")):
        faults = run(TWO, lambda world: body(world, round))
        assert [type(fault) for fault in faults] == [CheckpointError] * 2
        assert says in faults[1].what


def test_keys_that_an_earlier_version_did_not_save_are_not_compared(tmp_path):
    earlier = {key: value for key, value in IDENTITY.items() if key != "lr"}
    save(tmp_path, ONE, [3], identity=earlier)
    found, warnings = load(tmp_path, ONE, required=True, lately=["lr"])
    assert found == 3
    assert any("saved before runs kept their lr, which is not compared" in w for w in warnings)
    found, _ = load(tmp_path, ONE, required=True)
    assert isinstance(found, CheckpointError) and "lr: saved nothing, now 0.1" in str(found)
    save(tmp_path / "new", ONE, [3], identity={**IDENTITY, "lr": "0.2"})
    found, _ = load(tmp_path / "new", ONE, required=True, lately=["lr"])
    assert isinstance(found, CheckpointError) and "lr: saved 0.2, now 0.1" in str(found)

"""States taken apart and filled again, and the HDF5 file of one process."""

import errno
import io
import os
import resource
import zlib
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from decdpo.checkpoint import parts
from decdpo.checkpoint.checksum import checksum_of, combine, file_crc
from decdpo.checkpoint.format import Damaged
from decdpo.checkpoint.parts import LARGE, open_part, write_part
from decdpo.checkpoint.state import Record, Snapshot, digest, leaves, parameter_digest, structure
from decdpo.errors import CheckpointError


@dataclass
class Inner:
    first: Tensor
    steps: int


@dataclass(frozen=True)
class Frozen:
    scale: float
    note: str


@dataclass
class State:
    x: Tensor
    inner: Inner
    frozen: Frozen
    window: tuple[Tensor, ...] = ()
    mixed: tuple[float, tuple[int, str]] = (0.0, (0, ""))
    flag: bool = False
    maybe: float | None = None
    structure: str = ""


def saved_state() -> State:
    return State(
        x=torch.randn(7, dtype=torch.float64),
        inner=Inner(torch.randn(3, 2).to(torch.bfloat16), steps=2**62 + 1),
        frozen=Frozen(scale=0.1 + 0.2, note="füße\n\t"),
        window=(torch.randn(5).half(), torch.tensor(3.25), torch.zeros(0)),
        mixed=(float("-inf"), (-5, "")),
        flag=True,
        maybe=None,
        structure="a field of this name is nothing special",
    )


def fresh_state() -> State:
    return State(
        x=torch.zeros(7, dtype=torch.float64),
        inner=Inner(torch.zeros(3, 2, dtype=torch.bfloat16), steps=0),
        frozen=Frozen(scale=0.0, note=""),
        window=(torch.zeros(5).half(), torch.tensor(0.0), torch.zeros(0)),
        maybe=4.0,
    )


def write(path, states, **header):
    return write_part(path, Snapshot().take(states), {"round": 3, **header})


def flat(state):
    return {
        path: leaf.reshape(-1).view(torch.uint8).tolist() if isinstance(leaf, Tensor) else leaf
        for path, leaf in leaves(state).items()
    }


def test_leaves_are_named_by_the_path_of_their_fields():
    paths = list(leaves(saved_state()))
    assert paths[:4] == ["x", "inner.first", "inner.steps", "frozen.scale"]
    assert paths[5:8] == ["window.0", "window.1", "window.2"]
    assert "mixed.1.0" in paths
    assert structure(saved_state()).startswith(
        "State(x, inner=Inner(first, steps), frozen=Frozen(scale, note), window=(_, _, _), "
        "mixed=(_, (_, _)), flag"
    )


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, b"raw", 1j, 2**63, object()])
def test_a_field_that_cannot_be_kept_is_refused_by_name(value):
    @dataclass
    class Odd:
        x: Tensor
        what: object

    with pytest.raises(TypeError, match="what"):
        leaves(Odd(torch.zeros(1), value))


def test_every_bit_comes_back_at_the_same_address(tmp_path):
    saved, fresh = saved_state(), fresh_state()
    write(tmp_path / "p.h5", {3: saved})
    tensors = [leaf for leaf in leaves(fresh).values() if isinstance(leaf, Tensor)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    inner, frozen = fresh.inner, fresh.frozen
    with open_part(tmp_path / "p.h5") as part:
        part.restore(3, fresh)
    assert flat(fresh) == flat(saved)
    assert [type(leaf) for leaf in leaves(fresh).values()] == [
        type(leaf) for leaf in leaves(saved).values()
    ]
    after = [leaf for leaf in leaves(fresh).values() if isinstance(leaf, Tensor)]
    assert all(a is b for a, b in zip(tensors, after))
    assert [tensor.data_ptr() for tensor in after] == addresses
    assert fresh.inner is inner and fresh.frozen is frozen


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.bool,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    values = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
    values = values.view(dtype).reshape(shape)
    write(tmp_path / "p.h5", {0: Inner(values, 1)})
    fresh = Inner(torch.zeros(shape, dtype=dtype), 0)
    with open_part(tmp_path / "p.h5") as part:
        part.restore(0, fresh)
        assert part.contents(0)[1] == {"first": f"{str(dtype)[6:]} {tuple(shape)}"}
        assert part.tensor(0, "second") is None
    assert flat(fresh)["first"] == flat(Inner(values, 1))["first"]


def test_strided_tensors_are_saved_and_filled_by_value(tmp_path):
    values = torch.arange(12.0).reshape(3, 4)
    write(tmp_path / "p.h5", {0: Inner(values.T, 1)})
    target = torch.zeros(3, 4).T
    with open_part(tmp_path / "p.h5") as part:
        part.restore(0, Inner(target, 0))
    assert torch.equal(target, values.T)


@pytest.mark.parametrize(
    "other, says",
    [
        (Inner(torch.zeros(4), 0), r"agent 0, first: saved float32 \(3,\), now float32 \(4,\)"),
        (Inner(torch.zeros(3).double(), 0), r"saved float32 \(3,\), now float64 \(3,\)"),
        (Inner(torch.zeros(3, 1), 0), r"saved float32 \(3,\), now float32 \(3, 1\)"),
        (Inner(torch.zeros(3), torch.zeros(3)), r"steps: saved no tensor, now float32 \(3,\)"),
        (Inner(7, 0), "saved state holds a tensor at first"),
        (Frozen(0.0, ""), r"saved Inner\(first, steps\), now Frozen\(scale, note\)"),
    ],
)
def test_a_state_of_another_make_is_refused(tmp_path, other, says):
    write(tmp_path / "p.h5", {0: Inner(torch.ones(3), 1)})
    with open_part(tmp_path / "p.h5") as part, pytest.raises(CheckpointError, match=says) as caught:
        part.restore(0, other)
    assert not isinstance(caught.value, Damaged) and caught.value.remedy


def test_a_snapshot_is_a_copy_in_a_buffer_that_is_used_again():
    state = Inner(torch.ones(1000), 1)
    snapshot = Snapshot()
    first = snapshot.take({4: state})[0]
    address = first.tensors["first"].data_ptr()
    state.first.fill_(2)
    state.steps = 2
    assert first.tensors["first"].eq(1).all() and first.scalars == {"steps": 1}
    second = snapshot.take({4: state})[0]
    assert second.tensors["first"].eq(2).all() and second.scalars == {"steps": 2}
    assert second.tensors["first"].data_ptr() == address
    state.first = torch.ones(2000)
    assert snapshot.take({4: state})[0].nbytes == 8000


def test_a_large_state_is_taken_as_it_lies():
    state = Inner(torch.ones(1000), 1)
    snapshot = Snapshot(in_place_above=3999)
    [record] = snapshot.take({4: state})
    assert not snapshot.copied
    assert record.tensors["first"].data_ptr() == state.first.data_ptr()
    snapshot = Snapshot(in_place_above=4000)
    [record] = snapshot.take({4: state})
    assert snapshot.copied and record.tensors["first"].data_ptr() != state.first.data_ptr()
    snapshot = Snapshot(in_place_above=0)
    snapshot.take({4: Inner(torch.ones(1000)[::2], 1)})
    assert snapshot.copied, "what is not contiguous cannot be written as it lies"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_tensors_are_copied_through_pinned_memory(tmp_path):
    values = torch.randn(1 << 20, device="cuda")
    snapshot = Snapshot()
    [record] = snapshot.take({0: Inner(values, 1)})
    assert record.tensors["first"].is_pinned()
    write_part(tmp_path / "p.h5", [record], {"round": 1})
    fresh = Inner(torch.zeros(1 << 20, device="cuda"), 0)
    with open_part(tmp_path / "p.h5") as part:
        part.restore(0, fresh)
    assert torch.equal(fresh.first, values)


def test_datasets_are_flat_contiguous_uncompressed_and_readable_by_others(tmp_path):
    x = torch.randn(LARGE // 4 + 5)
    write(tmp_path / "p.h5", {12: Inner(x, 9)}, config="[run]\nseed = 0\n")
    with h5py.File(tmp_path / "p.h5") as file:
        data = file["agents/000012/first"]
        assert data.chunks is None and data.compression is None and data.shape == x.shape
        assert data.id.get_offset() % LARGE == 0
        assert np.array_equal(data[:], x.numpy())
        assert data.attrs["crc32"] == zlib.crc32(x.numpy().tobytes())
        assert file["agents/000012"].attrs["steps"] == 9
        assert file.attrs["config"] == "[run]\nseed = 0\n" and file.attrs["round"] == 3


@pytest.mark.parametrize("sizes", [[3], [LARGE // 4], [LARGE, 10, LARGE // 2 + 1, 0, 7, LARGE]])
def test_the_checksum_returned_is_that_of_the_file(tmp_path, sizes):
    path = tmp_path / "p.h5"
    size, crc = write(path, {a: Inner(torch.randn(s), a) for a, s in enumerate(sizes)})
    content = path.read_bytes()
    assert (size, crc) == (len(content), zlib.crc32(content)) and file_crc(path) == crc


@pytest.mark.parametrize("begin, end", [(0, 0), (0, 1 << 20), (1 << 20, 3 << 20), (7, 9 << 20)])
def test_holes_of_a_file_count_as_the_zeros_that_they_are(tmp_path, begin, end):
    """Whole pages of data, at 1 and 5 MiB and a byte at 8 MiB, holes between and behind."""
    with open(tmp_path / "file", "wb") as file:
        for place, content in ((1 << 20, 70_000), (5 << 20, 300_000), (8 << 20, 1)):
            file.seek(place)
            file.write(os.urandom(content))
        file.truncate(9 << 20)
    content = (tmp_path / "file").read_bytes()
    with open(tmp_path / "file", "rb") as file:
        found = checksum_of(file.fileno(), begin, end - begin)
        assert found == zlib.crc32(content[begin:end])
        with pytest.raises(OSError, match="the file ends at byte 9437184"):
            checksum_of(file.fileno(), begin, (9 << 20) + 1)
    assert file_crc(tmp_path / "file") == zlib.crc32(content)


def test_a_part_is_written_where_the_system_takes_no_hints(tmp_path, monkeypatch):
    calls = []

    def refuse(*words):
        calls.append(words)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    x = torch.randn(9 * LARGE // 4)
    write(tmp_path / "p.h5", {0: Inner(x, 1), 1: Inner(x + 1, 2)})
    fresh = Inner(torch.zeros_like(x), 0)
    with open_part(tmp_path / "p.h5") as part:
        part.restore(1, fresh)
    assert torch.equal(fresh.first, x + 1) and fresh.steps == 2
    # Each goes on where the one before ended, within a tensor, too.
    assert len(calls) == 2 and all(words[2] < 9 * LARGE for words in calls)
    assert calls[1][1] == calls[0][1] + calls[0][2]


@pytest.mark.parametrize("first, second", [(0, 0), (0, 9), (9, 0), (1, 1), (1000, 123_457)])
def test_checksums_combine(first, second):
    a, b = os.urandom(first), os.urandom(second)
    assert combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


def test_a_changed_value_is_found_when_it_is_read(tmp_path):
    write(tmp_path / "p.h5", {0: Inner(torch.ones(30), 1)})
    with h5py.File(tmp_path / "p.h5", "r+") as file:
        file["agents/000000/first"][17] = 1.0000001
    with pytest.raises(Damaged, match="agents/000000/first is damaged"):
        with open_part(tmp_path / "p.h5") as part:
            part.restore(0, Inner(torch.zeros(30), 0))


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all" * 100])
def test_what_is_not_a_part_is_damaged(tmp_path, content):
    (tmp_path / "p.h5").write_bytes(content)
    with pytest.raises(Damaged, match="p.h5 cannot be read"):
        with open_part(tmp_path / "p.h5"):
            pass


def test_an_agent_that_is_not_there_is_damage_not_a_crash(tmp_path):
    write(tmp_path / "p.h5", {0: Inner(torch.ones(3), 1)})
    with pytest.raises(Damaged):
        with open_part(tmp_path / "p.h5") as part:
            part.restore(1, Inner(torch.zeros(3), 0))


@pytest.mark.parametrize("limit", [100, 5000, 3 * LARGE])
def test_a_file_that_cannot_grow_is_an_os_error(tmp_path, limit):
    """A real failure of the system call in the midst of HDF5, as on a full disk."""
    states = {a: Inner(torch.randn(LARGE // 4), 1) for a in range(4)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError):
            write(tmp_path / "p.h5", states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0, "a file stays open"
    write(tmp_path / "q.h5", states)
    with open_part(tmp_path / "q.h5") as part:
        assert part.agents == (0, 1, 2, 3) and part.round == 3


class ShortFile(io.FileIO):
    """Writes little at a time, as write(2) does above 2 GiB, and nothing beyond ``room``."""

    room = 1 << 40

    def write(self, content):
        left = self.room - self.tell()
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(content)[: min(left, 70_000)])


def test_a_tensor_that_is_written_in_several_pieces_is_whole(tmp_path, monkeypatch):
    states = {a: Inner(torch.randn(LARGE // 2 + a), a) for a in range(3)}
    with monkeypatch.context() as patch:
        patch.setattr(parts, "open", lambda *how, buffering: ShortFile(*how), raising=False)
        size, crc = write(tmp_path / "p.h5", states)
    assert (size, crc) == ((tmp_path / "p.h5").stat().st_size, file_crc(tmp_path / "p.h5"))
    with open_part(tmp_path / "p.h5") as part:
        for agent, state in states.items():
            found = Inner(torch.zeros_like(state.first), -1)
            part.restore(agent, found)
            assert torch.equal(found.first, state.first) and found.steps == agent


def test_a_disk_that_fills_up_within_a_tensor_is_an_os_error(tmp_path, monkeypatch):
    states = {0: Inner(torch.randn(LARGE // 2), 0)}
    size, _ = write(tmp_path / "whole.h5", states)
    monkeypatch.setattr(parts, "open", lambda *how, buffering: ShortFile(*how), raising=False)
    monkeypatch.setattr(ShortFile, "room", size - 100)
    with pytest.raises(OSError) as caught:
        write(tmp_path / "p.h5", states)
    assert caught.value.errno == errno.ENOSPC


def test_a_write_of_nothing_is_a_fault_and_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "open", lambda *how, buffering: ShortFile(*how), raising=False)
    monkeypatch.setattr(ShortFile, "write", lambda self, content: 0)
    with pytest.raises(OSError):
        write(tmp_path / "p.h5", {0: Inner(torch.randn(5), 0)})


def test_digests_see_every_part_of_a_state():
    base = Record(0, "S(x, k)", {"x": torch.tensor([1.0, 2.0])}, {"k": 1})
    others = [
        Record(0, "T(x, k)", base.tensors, base.scalars),
        Record(0, "S(x, k)", {"x": torch.tensor([1.0, 2.0000002])}, base.scalars),
        Record(0, "S(x, k)", {"x": torch.tensor([[1.0], [2.0]])}, base.scalars),
        Record(0, "S(x, k)", {"x": base.tensors["x"].view(torch.int32)}, base.scalars),
        Record(0, "S(x, k)", base.tensors, {"k": 1.0}),
    ]
    assert len({digest(record) for record in [base, *others]}) == 6
    assert digest(Record(9, "S(x, k)", {"x": torch.tensor([1.0, 2.0])}, {"k": 1})) == digest(base)
    assert parameter_digest(torch.tensor([0.0])) != parameter_digest(torch.tensor([-0.0]))

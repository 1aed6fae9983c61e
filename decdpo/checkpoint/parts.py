"""One part of a checkpoint: an HDF5 file with the agents of one writing process.

::

    /                               attributes: format, version, round, config, identity, versions
    /agents/000003                  attributes: "state structure", each number of the state by path
    /agents/000003/x                (P,) contiguous, uncompressed; attribute crc32 of its bytes
    /agents/000003/optim.first      further tensors by path; attribute ``shape`` unless flat,
                                    ``dtype`` where HDF5 has no such type (then the raw bytes)
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from h5py import h5d, h5g, h5s
from torch import Tensor
from torch.autograd.graph import increment_version

from decdpo import hdf5
from decdpo.checkpoint.checksum import checksum_around, checksum_of, crc32, file_crc
from decdpo.checkpoint.format import FORMAT, VERSION, Damaged, Part
from decdpo.checkpoint.forms import Forms
from decdpo.checkpoint.sink import LARGE, Sink
from decdpo.checkpoint.state import (
    Record,
    Scalar,
    describe,
    dtype_name,
    raw_bytes,
    restore,
)
from decdpo.errors import CheckpointError
from decdpo.files import open_regular, reason

FRAMED = 1 << 16
"""Bytes of a tensor above which it is read once on resuming, and not again for the checksum of the
file; smaller ones are read twice, which is faster than to look up where each of them lies."""
_STRUCTURE = "state structure"  # with a space: never the path of a field
_NATIVE: dict[torch.dtype, np.dtype] = {
    torch.float16: np.dtype("<f2"),
    torch.float32: np.dtype("<f4"),
    torch.float64: np.dtype("<f8"),
    torch.int8: np.dtype("i1"),
    torch.int16: np.dtype("<i2"),
    torch.int32: np.dtype("<i4"),
    torch.int64: np.dtype("<i8"),
    torch.uint8: np.dtype("u1"),
}
_TORCH = {stored: kind for kind, stored in _NATIVE.items()}
_BYTES = np.dtype("u1")


def write_part(
    path: Path, records: Sequence[Record], header: Mapping[str, str | int]
) -> tuple[int, int]:
    """Write the states of some agents to a new file and force it to disk.

    Returns its size in bytes and the CRC-32 of all of them. Raises ``OSError`` if it cannot.
    """
    with open(path, "wb+", buffering=0) as file:
        sink = Sink(file)
        try:
            large = _fill(sink, records, header)
        except hdf5.UNSOUND:
            if sink.fault is None:
                raise
        sink.finish()
        return os.fstat(file.fileno()).st_size, checksum_around(file.fileno(), sorted(large))


def _fill(
    sink: Sink, records: Sequence[Record], header: Mapping[str, str | int]
) -> list[tuple[int, int, int]]:
    """Write the HDF5 file; return place, bytes and CRC-32 of every large dataset."""
    large: list[tuple[int, int, int]] = []
    forms = Forms()
    with h5py.File(
        sink, "w", libver="latest", alignment_threshold=LARGE, alignment_interval=LARGE
    ) as file:
        for name, value in {"format": FORMAT, "version": VERSION, **header}.items():
            file.attrs[name] = value
        agents = file.create_group("agents")
        for record in records:
            place = h5g.create(agents.id, f"{record.agent:06d}".encode())
            group = h5py.Group(place)
            forms.note_text(place, _STRUCTURE, record.structure)
            for name, scalar in record.scalars.items():
                group.attrs[name] = h5py.Empty("f8") if scalar is None else scalar
            for name, tensor in record.tensors.items():
                extent = _write_tensor(sink, place, name, tensor, forms)
                if extent[1] >= FRAMED:
                    large.append(extent)
    return large


def _write_tensor(
    sink: Sink, group: h5g.GroupID, name: str, tensor: Tensor, forms: Forms
) -> tuple[int, int, int]:
    """Write one tensor; return its place in the file, its bytes and their CRC-32."""
    raw = raw_bytes(tensor)
    dtype: np.dtype = _NATIVE.get(tensor.dtype, _BYTES)
    # The low-level interface: a thousand agents have thousands of small tensors.
    kind, space = forms.kind(dtype), forms.space((raw.nbytes // dtype.itemsize,))
    dataset = h5d.create(group, name.encode(), kind, space, forms.creation)
    sink.checked = None
    if raw.nbytes:
        dataset.write(h5s.ALL, h5s.ALL, raw.view(dtype), mtype=kind)
    crc = sink.checksum(raw.data)
    forms.note(dataset, "crc32", np.array(crc, dtype="<u4"))
    if tensor.dim() != 1:
        forms.note(dataset, "shape", np.array(tensor.shape, dtype=np.int64))
    if tensor.dtype not in _NATIVE:
        forms.note_text(dataset, "dtype", dtype_name(tensor.dtype))
    return (dataset.get_offset() if raw.nbytes else 0), raw.nbytes, crc


class PartReader:
    """An open part. What cannot be read of it is ``Damaged``; a fault of the caller is not."""

    def __init__(self, path: Path, file: h5py.File, size: int) -> None:
        self.path = path
        self._file = file
        self._size = size

    @property
    def round(self) -> int:
        """The round that the part says it belongs to."""
        with _reading(self.path):
            return hdf5.whole(self._file, "round")

    @property
    def agents(self) -> tuple[int, ...]:
        """The agents in the part, ascending."""
        with _reading(self.path):
            return tuple(sorted(int(name) for name in hdf5.subgroup(self._file, "agents")))

    def restore(self, agent: int, state: object) -> None:
        """Fill ``state`` in place with what was saved of ``agent``.

        Raises ``Damaged`` if a checksum does not fit, ``CheckpointError`` if the saved state has
        other fields, shapes or types.
        """
        group = self._group(agent)
        fill = partial(self.fill, agent)
        restore(state, *self._attributes(group), fill)

    def fill(self, agent: int, name: str, target: Tensor) -> None:
        """Fill ``target`` with a tensor of an agent; raises as ``restore`` does."""
        group = self._group(agent)
        self.require_like(agent, name, target)
        if target.device.type == "cpu" and target.is_contiguous():
            self._read(group, name, target)
            # Written past torch, which would not know that the values have changed.
            increment_version(target)
        else:
            host = torch.empty(target.shape, dtype=target.dtype)
            self._read(group, name, host)
            target.copy_(host)

    def part(self, agent: int, name: str, like: Tensor, part: slice) -> Tensor:
        """Read a ``part`` of a vector of an agent that is saved like ``like``, (part,).

        The checksum is of the whole vector, and not looked at. Raises as ``restore`` does.
        """
        group = self._group(agent)
        self.require_like(agent, name, like)
        piece = torch.empty(part.stop - part.start, dtype=like.dtype)
        raw = raw_bytes(piece)
        with _reading(self.path):
            dataset = group[name]
            width = dataset.dtype.itemsize
            scale = like.dtype.itemsize // width
            space = dataset.id.get_space()
            space.select_hyperslab((part.start * scale,), (raw.nbytes // width,))
            target = h5s.create_simple((raw.nbytes // width,))
            dataset.id.read(target, space, raw.view(dataset.dtype))
        return piece

    def require_like(self, agent: int, name: str, target: Tensor) -> None:
        """Raise ``CheckpointError`` unless a tensor was saved with the form of ``target``."""
        where = f"agent {agent}, {name}"
        saved = self._blank(self._group(agent), name)
        if saved is None:
            raise CheckpointError(
                f"{where}: saved no tensor, now {describe(target)}",
                "resume with the algorithm and optimizer of the saved run",
            )
        if saved.dtype != target.dtype or saved.shape != target.shape:
            raise CheckpointError(
                f"{where}: saved {describe(saved)}, now {describe(target)}",
                "resume with the model and dtype of the saved run",
            )

    def record(self, agent: int) -> Record:
        """Read all of one agent, checking every checksum."""
        group = self._group(agent)
        tensors = {}
        for name in self._names(group):
            blank = self._blank(group, name)
            assert blank is not None
            tensors[name] = torch.empty(blank.shape, dtype=blank.dtype)
            self._read(group, name, tensors[name])
        return Record(agent, self._attributes(group)[0], tensors, self._attributes(group)[1])

    def tensor(self, agent: int, name: str) -> Tensor | None:
        """Read one tensor of an agent, None if it has none of that name."""
        group = self._group(agent)
        blank = self._blank(group, name)
        if blank is None:
            return None
        host = torch.empty(blank.shape, dtype=blank.dtype)
        self._read(group, name, host)
        return host

    def check(self, agent: int, name: str) -> None:
        """Raise ``Damaged`` unless a tensor of an agent is what its checksum says.

        It is read piece by piece, and takes no memory.
        """
        group = self._group(agent)
        with _reading(self.path), open_regular(self.path) as file:
            dataset = hdf5.dataset(group, name, self._size)
            if dataset is None:
                raise Damaged(f"{self.path}: agent {agent} has no {name}")
            length = dataset.id.get_storage_size()
            offset = dataset.id.get_offset() if length else 0
            found = checksum_of(file.fileno(), offset, length)
            if found != hdf5.whole(dataset, "crc32"):
                raise Damaged(f"{self.path}: {dataset.name} is damaged: its checksum does not fit")

    def extents(self, least: int) -> list[tuple[int, int, int]]:
        """Return place, bytes and checksum of every tensor of at least so many bytes, ascending.

        Raises ``Damaged`` if two of them overlap.
        """
        found = []
        with _reading(self.path):
            for agent in self.agents:
                group = self._group(agent)
                for name in group:
                    dataset = hdf5.dataset(group, name, self._size)
                    length = 0 if dataset is None else dataset.id.get_storage_size()
                    if dataset is not None and length >= least:
                        crc = hdf5.whole(dataset, "crc32")
                        found.append((dataset.id.get_offset(), length, crc))
        found.sort()
        if any(a[0] + a[1] > b[0] for a, b in zip(found, found[1:])):
            raise Damaged(f"{self.path}: tensors lie one over another")
        return found

    def contents(self, agent: int) -> tuple[str, dict[str, str], dict[str, Scalar]]:
        """Return the structure of an agent's state, its tensors in words, and its numbers."""
        group = self._group(agent)
        tensors = {name: self._blank(group, name) for name in self._names(group)}
        words = {name: describe(blank) for name, blank in tensors.items() if blank is not None}
        return (self._attributes(group)[0], words, self._attributes(group)[1])

    def _group(self, agent: int) -> h5py.Group:
        with _reading(self.path):
            return hdf5.subgroup(hdf5.subgroup(self._file, "agents"), f"{agent:06d}")

    def _names(self, group: h5py.Group) -> list[str]:
        with _reading(self.path):
            return list(group)

    def _attributes(self, group: h5py.Group) -> tuple[str, dict[str, Scalar]]:
        scalars: dict[str, Scalar] = {}
        with _reading(self.path):
            for name in hdf5.attributes(group):
                value = hdf5.attribute(group, name)
                scalars[name] = value.item() if isinstance(value, np.generic) else value
        structure = scalars.pop(_STRUCTURE, None)
        if not isinstance(structure, str) or any(
            isinstance(value, np.ndarray) for value in scalars.values()
        ):
            raise Damaged(f"{self.path}: {group.name} does not describe a state")
        return structure, scalars

    def _blank(self, group: h5py.Group, name: str) -> Tensor | None:
        """Return a tensor without memory that has the saved dtype and shape."""
        with _reading(self.path):
            dataset = hdf5.dataset(group, name, self._size)
            if dataset is None:
                return None
            nbytes = dataset.id.get_storage_size()
            dtype: Any = _TORCH.get(dataset.dtype)
            shape: Any = None
            for key in hdf5.attributes(dataset):
                if key == "dtype":
                    dtype = getattr(torch, hdf5.text(dataset, key), None)
                elif key == "shape":
                    shape = hdf5.attribute(dataset, key)
            if not isinstance(dtype, torch.dtype):
                raise Damaged(f"{self.path}: {dataset.name} is of an unknown type")
            sizes = [nbytes // dtype.itemsize] if shape is None else [int(size) for size in shape]
            if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != nbytes:
                raise Damaged(f"{self.path}: {dataset.name} has not the bytes that its shape says")
            return torch.empty(sizes, dtype=dtype, device="meta")

    def _read(self, group: h5py.Group, name: str, host: Tensor) -> None:
        """Read a dataset, whose size ``_blank`` has compared with that of ``host``."""
        raw = raw_bytes(host)
        with _reading(self.path):
            dataset = group[name]
            if raw.nbytes:
                dataset.id.read(h5s.ALL, h5s.ALL, raw.view(dataset.dtype))
            if crc32(raw.data) != hdf5.whole(dataset, "crc32"):
                raise Damaged(f"{self.path}: {dataset.name} is damaged: its checksum does not fit")


@contextmanager
def open_part(path: Path) -> Iterator[PartReader]:
    """Open a part for reading; raises ``Damaged`` if it is none.

    What the block raises is passed on as it is: lack of memory is no fault of the file.
    """
    with ExitStack() as stack:
        with _reading(path):
            file, size = stack.enter_context(hdf5.opened(path))
            found, version = hdf5.text(file, "format"), hdf5.whole(file, "version")
            if found != FORMAT or version != VERSION:
                raise Damaged(f"{path}: not a part of a {FORMAT} version {VERSION}")
        yield PartReader(path, file, size)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into ``Damaged``; nothing else may stand inside."""
    try:
        yield
    except hdf5.UNSOUND as fault:
        if isinstance(fault, OSError) and fault.errno in hdf5.OF_THE_SYSTEM:
            raise
        raise Damaged(f"{path} cannot be read: {fault}") from fault


def check_part(path: Path, size: int, crc32: str) -> None:
    """Raise ``Damaged`` unless the file has the size and the CRC-32 that the manifest says."""
    _compare(path, size, crc32, file_crc)


def check_frame(path: Path, part: Part) -> None:
    """Raise ``Damaged`` unless the file is that of the manifest, as far as it is no large tensor.

    Those are not read: their checksums, which the file holds beside them, are put together with the
    CRC-32 of all else. If the result is the manifest's, these checksums are what was written, and
    whoever reads a tensor compares it with its own.
    """
    small = part.bytes < FRAMED * len(part.agents)
    _compare(path, part.bytes, part.crc32, file_crc if small else _frame_crc)


def _frame_crc(path: Path) -> int:
    with open_part(path) as reader, open_regular(path) as file:
        return checksum_around(file.fileno(), reader.extents(FRAMED))


def _compare(path: Path, size: int, crc32: str, crc: Callable[[Path], int]) -> None:
    try:
        present = path.stat().st_size
        if present != size:
            raise Damaged(f"{path} is damaged: {present} bytes, the manifest says {size}")
        if f"{crc(path):08x}" != crc32:
            raise Damaged(f"{path} is damaged: its CRC-32 is not the manifest's")
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as fault:
        if fault.errno in hdf5.OF_THE_SYSTEM:
            raise
        raise Damaged(f"{path} cannot be read: {reason(fault)}") from None

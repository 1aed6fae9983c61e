"""Makes the HDF5 objects of a part: what they have in common is made once.

Agents have thousands of small tensors, and h5py spends more on a type, a space and a list of
properties for each of them than on the tensor.
"""

from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t


class Forms:
    """The types and spaces of datasets and attributes.

    creation : properties of a dataset.
    """

    def __init__(self) -> None:
        self.creation = h5p.create(h5p.DATASET_CREATE)
        self.creation.set_layout(h5d.CONTIGUOUS)
        self.creation.set_fill_time(h5d.FILL_TIME_NEVER)
        self._text = h5t.py_create(h5py.string_dtype(), logical=True)
        self._kinds: dict[np.dtype, h5t.TypeID] = {}
        self._spaces: dict[tuple[int, ...], h5s.SpaceID] = {}

    def kind(self, dtype: np.dtype) -> h5t.TypeID:
        """Return the type for ``dtype``."""
        if dtype not in self._kinds:
            self._kinds[dtype] = h5t.py_create(dtype)
        return self._kinds[dtype]

    def space(self, shape: tuple[int, ...]) -> h5s.SpaceID:
        """Return the space for an array of ``shape``."""
        if shape not in self._spaces:
            self._spaces[shape] = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
        return self._spaces[shape]

    def note(self, owner: Any, name: str, value: np.ndarray) -> None:
        """Give a group or a dataset an attribute ``name`` of numbers."""
        kind = self.kind(value.dtype)
        attribute = h5a.create(owner, name.encode(), kind, self.space(value.shape))
        if value.size:
            attribute.write(value, mtype=kind)

    def note_text(self, owner: Any, name: str, value: str) -> None:
        """Give a group or a dataset an attribute ``name`` that is text."""
        attribute = h5a.create(owner, name.encode(), self._text, self.space(()))
        attribute.write(np.array(value, dtype=h5py.string_dtype()))

"""Some rows of an array, read only when they are asked for; what the rows mean is left to others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK_BYTES = 16 * 2**20
"""Rows are read in pieces of about this size, so that mapped data need not fit into memory."""


class Rows:
    """Chosen rows of an array that stays where it is, in memory or mapped from a file.

    Indexing reads: `rows[3:9]`, `rows[index_N]` and `rows[5]` are plain arrays. The array itself is never written.

    Attributes:
        array: the whole array, [M, ...].
        rows: positions in it, int64 [N]; None for all, in order.
    """

    def __init__(self, array: np.ndarray[Any, Any], rows: np.ndarray[Any, Any] | None = None) -> None:
        self.array = array
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def mapped(self) -> bool:
        """Whether the array is mapped from a file, views of such arrays included."""
        base: Any = self.array
        while isinstance(base, np.ndarray):
            if isinstance(base, np.memmap):
                return True
            base = base.base
        return False

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self.array[index if self.rows is None else self.rows[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("rows of an array are read, so they cannot be had without a copy")
        return np.array(self[:], dtype=dtype)

    def select(self, rows: np.ndarray[Any, Any]) -> Rows:
        """Rows of these rows; nothing is read."""
        return Rows(self.array, rows if self.rows is None else self.rows[rows])

    def chunks(self) -> Iterator[np.ndarray[Any, Any]]:
        """All rows in order, as arrays of about `CHUNK_BYTES`."""
        step = max(1, CHUNK_BYTES * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), step):
            yield self[start : start + step]

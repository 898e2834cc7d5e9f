"""ModelSpec: a cell of NAS-Bench-101, pruned and checked, with the benchmark's own hash; networks are left to others.

The space and the hash are those of Ying et al., "NAS-Bench-101: Towards Reproducible Neural Architecture Search"
(2019): directed acyclic graphs of at most 7 vertices and 9 edges, each inner vertex one of three operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nord_hpc.errors import Infeasible

INPUT = "input"
OUTPUT = "output"
CONV3X3 = "conv3x3-bn-relu"
CONV1X1 = "conv1x1-bn-relu"
MAXPOOL3X3 = "maxpool3x3"
OPERATIONS = (CONV3X3, CONV1X1, MAXPOOL3X3)
"""What an inner vertex may be; the position is its number in the hash."""

MAX_VERTICES = 7
MAX_EDGES = 9

_NUMBERS = {INPUT: -1, OUTPUT: -2, **{label: number for number, label in enumerate(OPERATIONS)}}

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, init=False)
class ModelSpec:
    """A cell: what remains of a graph when vertices that lie on no path from input to output are taken away.

    Attributes:
        matrix: upper triangular; matrix[i][j] is 1 where vertex i feeds vertex j. Given as any rows of numbers that
            equal 0 or 1 (an array, lists, booleans); kept as integers.
        operations: of the vertices: "input", inner ones, "output".

    Raises:
        Infeasible: not such a graph, nothing leads from input to output, or more than 7 vertices or 9 edges remain.
    """

    matrix: Matrix
    operations: tuple[str, ...]

    def __init__(self, matrix: Any, operations: Iterable[str]) -> None:
        rows, labels = _rows_of(matrix), tuple(operations)
        _check(rows, labels)
        kept = kept_vertices(rows)
        if not kept:
            raise Infeasible("no path leads from the cell's input to its output")
        if len(kept) > MAX_VERTICES:
            raise Infeasible(f"the cell has {len(kept)} vertices, more than {MAX_VERTICES}")
        pruned = tuple(tuple(rows[i][j] for j in kept) for i in kept)
        object.__setattr__(self, "matrix", pruned)
        object.__setattr__(self, "operations", tuple(labels[i] for i in kept))
        if self.n_edges > MAX_EDGES:
            raise Infeasible(f"the cell has {self.n_edges} edges, more than {MAX_EDGES}")

    @classmethod
    def from_text(cls, adjacency: str, operations: str) -> ModelSpec:
        """A cell as record files write it: the matrix as one string of 0 and 1, row by row, and labels with commas."""
        labels = operations.split(",")
        n = len(labels)
        if len(adjacency) != n * n or not set(adjacency) <= {"0", "1"}:
            raise Infeasible(f"the adjacency {adjacency!r} is not {n}x{n} characters 0 or 1, as {n} operations need")
        return cls([[int(bit) for bit in adjacency[i * n : (i + 1) * n]] for i in range(n)], labels)

    @property
    def n_vertices(self) -> int:
        return len(self.operations)

    @property
    def n_edges(self) -> int:
        return sum(map(sum, self.matrix))

    @cached_property
    def module_hash(self) -> str:
        """The benchmark's hash, 32 hexadecimal digits: one for all drawings of a cell."""
        return module_hash(self.matrix, self.operations)


def kept_vertices(matrix: Sequence[Sequence[int]]) -> list[int]:
    """The vertices of an upper triangular matrix that lie on a path from the first to the last; none without a path."""
    n = len(matrix)
    reached = 1
    for i in range(n):
        if reached >> i & 1:
            for j in range(i + 1, n):
                if matrix[i][j]:
                    reached |= 1 << j
    if not reached >> (n - 1) & 1:
        return []
    leading = 1 << (n - 1)
    for i in range(n - 2, -1, -1):
        if any(matrix[i][j] and leading >> j & 1 for j in range(i + 1, n)):
            leading |= 1 << i
    return [i for i in range(n) if reached & leading & 1 << i]


def module_hash(matrix: Sequence[Sequence[int]], operations: Sequence[str]) -> str:
    """The benchmark's hash of a pruned cell, by iterated hashing of each vertex with its neighbours."""
    n = len(operations)
    sources = [[i for i in range(n) if matrix[i][j]] for j in range(n)]
    targets = [[j for j in range(n) if matrix[i][j]] for i in range(n)]
    hashes = [_md5(str((len(targets[i]), len(sources[i]), _NUMBERS[operations[i]]))) for i in range(n)]
    for _ in range(n):
        hashes = [
            _md5(
                "".join(sorted([hashes[k] for k in sources[i]]))
                + "|"
                + "".join(sorted([hashes[k] for k in targets[i]]))
                + "|"
                + hashes[i]
            )
            for i in range(n)
        ]
    return _md5(str(sorted(hashes)))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _rows_of(matrix: Any) -> list[list[int]]:
    """The matrix as rows of the integers 0 and 1."""
    if hasattr(matrix, "tolist"):
        matrix = matrix.tolist()
    rows = []
    for row in matrix:
        values = row.tolist() if hasattr(row, "tolist") else list(row)
        for value in values:
            if value != 0 and value != 1:
                raise Infeasible(f"the cell's matrix holds {value!r}; set 0 or 1")
        rows.append([int(value) for value in values])
    return rows


def _check(rows: list[list[int]], labels: tuple[str, ...]) -> None:
    n = len(rows)
    if n < 2 or any(len(row) != n for row in rows):
        raise Infeasible(
            f"the cell's matrix has rows of {[len(row) for row in rows]} values; set a square one, 2x2 or more"
        )
    if len(labels) != n:
        raise Infeasible(f"the cell has {n} vertices and {len(labels)} operations; set one for each")
    for i in range(n):
        for j in range(i + 1):
            if rows[i][j]:
                raise Infeasible(f"the cell has an edge from vertex {i} to {j}; set an upper triangular matrix")
    if labels[0] != INPUT or labels[-1] != OUTPUT:
        raise Infeasible(f"the cell goes from {labels[0]!r} to {labels[-1]!r}; set {INPUT!r} and {OUTPUT!r}")
    for label in labels[1:-1]:
        if label not in OPERATIONS:
            raise Infeasible(
                f"the cell's operation {label!r} is not in NAS-Bench-101; set one of {', '.join(OPERATIONS)}"
            )

"""Specs: pruning, checks, one hash for every way to write and draw a cell."""

from __future__ import annotations

import csv
import gzip
from itertools import islice, permutations
from typing import Any

import numpy as np
import pytest
from nasbench101_example import DOCUMENTED, DOCUMENTED_HASH, FIRST_HASH, SAMPLE, matrix_of, needs_files

from nord_hpc.errors import Infeasible
from nord_hpc.nasbench101 import CONV1X1, CONV3X3, INPUT, MAXPOOL3X3, OPERATIONS, OUTPUT, ModelSpec

PARTLY_DEAD = matrix_of(7, "0-1 0-3 0-5 0-6 1-4 1-5 1-6 2-3 2-5 2-6 3-5 3-6 5-6")
PARTLY_DEAD_LABELS = [INPUT, MAXPOOL3X3, CONV1X1, CONV3X3, CONV3X3, CONV3X3, OUTPUT]


def test_hashes_that_are_known() -> None:
    first = ModelSpec.from_text("0110001100010000", f"{INPUT},{CONV1X1},{CONV3X3},{OUTPUT}")
    assert first.module_hash == FIRST_HASH
    assert DOCUMENTED.module_hash == DOCUMENTED_HASH
    assert (DOCUMENTED.n_vertices, DOCUMENTED.n_edges) == (7, 9)


@pytest.mark.parametrize(
    "written",
    [
        PARTLY_DEAD,
        tuple(map(tuple, PARTLY_DEAD)),
        np.array(PARTLY_DEAD),
        np.array(PARTLY_DEAD, dtype=bool),
        np.array(PARTLY_DEAD, dtype=np.float32),
        [np.array(row, dtype=np.uint8) for row in PARTLY_DEAD],
        [[bool(bit) for bit in row] for row in PARTLY_DEAD],
        [[float(bit) for bit in row] for row in PARTLY_DEAD],
    ],
    ids=["list", "tuple", "int", "bool", "float", "rows", "bools", "floats"],
)
def test_one_spec_whatever_the_numbers(written: Any) -> None:
    spec = ModelSpec(written, PARTLY_DEAD_LABELS)
    # Vertex 2 is fed by nothing and 4 feeds nothing.
    assert spec.operations == (INPUT, MAXPOOL3X3, CONV3X3, CONV3X3, OUTPUT)
    assert [list(row) for row in spec.matrix] == matrix_of(5, "0-1 0-2 0-3 0-4 1-3 1-4 2-3 2-4 3-4")
    assert all(type(bit) is int for row in spec.matrix for bit in row)
    assert spec == ModelSpec(PARTLY_DEAD, PARTLY_DEAD_LABELS)
    assert spec.module_hash == ModelSpec(spec.matrix, spec.operations).module_hash


def test_what_leads_nowhere_is_pruned_to_nothing_but_input_and_output() -> None:
    spec = ModelSpec(matrix_of(7, "0-1 0-2 0-3 0-4 0-5 0-6 1-2 1-3 1-4"), PARTLY_DEAD_LABELS)
    assert spec.matrix == ((0, 1), (0, 0)) and spec.operations == (INPUT, OUTPUT)


def test_one_hash_for_all_drawings() -> None:
    hashes = set()
    for order in permutations(range(1, 6)):
        places = [0, *order, 6]
        matrix = [[DOCUMENTED.matrix[i][j] for j in places] for i in places]
        if not any(matrix[i][j] for i in range(7) for j in range(i)):
            hashes.add(ModelSpec(matrix, [DOCUMENTED.operations[i] for i in places]).module_hash)
    assert hashes == {DOCUMENTED_HASH}


def test_other_operations_or_edges_have_other_hashes() -> None:
    diamond = matrix_of(4, "0-1 0-2 1-3 2-3")
    hashes = {ModelSpec(diamond, [INPUT, a, b, OUTPUT]).module_hash for a in OPERATIONS for b in OPERATIONS}
    assert len(hashes) == 6
    crossed = ModelSpec(matrix_of(4, "0-1 0-2 1-2 1-3 2-3"), [INPUT, CONV3X3, CONV3X3, OUTPUT])
    assert crossed.module_hash not in hashes


@pytest.mark.parametrize(
    ("matrix", "labels", "message"),
    [
        (matrix_of(3, "0-1"), (INPUT, CONV3X3, OUTPUT), "no path leads from the cell's input to its output"),
        ([[0, 1], [1, 0]], (INPUT, OUTPUT), "the cell has an edge from vertex 1 to 0; set an upper triangular matrix"),
        ([[1, 1], [0, 0]], (INPUT, OUTPUT), "the cell has an edge from vertex 0 to 0; set an upper triangular matrix"),
        ([[0, 1]], (INPUT, OUTPUT), r"the cell's matrix has rows of \[2\] values; set a square one, 2x2 or more"),
        ([[0, 2], [0, 0]], (INPUT, OUTPUT), "the cell's matrix holds 2; set 0 or 1"),
        ([[0, 0.5], [0, 0]], (INPUT, OUTPUT), "the cell's matrix holds 0.5; set 0 or 1"),
        ([[0, float("nan")], [0, 0]], (INPUT, OUTPUT), "the cell's matrix holds nan; set 0 or 1"),
        (matrix_of(3, "0-2"), (INPUT, OUTPUT), "the cell has 3 vertices and 2 operations; set one for each"),
        (matrix_of(2, "0-1"), (OUTPUT, INPUT), "the cell goes from 'output' to 'input'; set 'input' and 'output'"),
        (matrix_of(3, "0-1 1-2"), (INPUT, "conv5x5", OUTPUT), "the cell's operation 'conv5x5' is not in NAS-Bench-101"),
        (
            matrix_of(8, "0-1 1-2 2-3 3-4 4-5 5-6 6-7"),
            (INPUT, *[CONV3X3] * 6, OUTPUT),
            "the cell has 8 vertices, more than 7",
        ),
        (
            matrix_of(5, "0-1 0-2 0-3 0-4 1-2 1-3 1-4 2-3 2-4 3-4"),
            (INPUT, *[CONV3X3] * 3, OUTPUT),
            "the cell has 10 edges, more than 9",
        ),
    ],
)
def test_what_is_outside_the_space_is_infeasible(matrix: Any, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(Infeasible, match=f"^{message}"):
        ModelSpec(matrix, labels)


def test_text_must_fit() -> None:
    with pytest.raises(Infeasible, match="the adjacency '0100' is not 3x3 characters 0 or 1, as 3 operations need"):
        ModelSpec.from_text("0100", f"{INPUT},{CONV3X3},{OUTPUT}")


@needs_files
def test_hashes_of_the_benchmarks_own_cells() -> None:
    with gzip.open(SAMPLE, "rt", newline="") as file:
        rows = list(islice(csv.DictReader(file), 0, None, 100))
    assert len(rows) == 301
    specs = [ModelSpec.from_text(row["adjacency"], row["operations"]) for row in rows]
    assert [spec.module_hash for spec in specs] == [row["module_hash"] for row in rows]

"""The table of a record file: an index made once, mapped into memory by all processes, answering in microseconds."""

from __future__ import annotations

import logging
import os
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nord_hpc.datasets import prepared
from nord_hpc.datasets.prepared import ArrayToWrite, Prepared
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.nasbench101.records import Row, read_rows
from nord_hpc.nasbench101.spec import INPUT, MAX_VERTICES, OPERATIONS, OUTPUT, ModelSpec

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the index; part of its key."""

BUILD_SECONDS = 3600.0
"""How long a process waits for the one that makes the same index: millions of rows take minutes."""

PATH_VARIABLE = "NORD_HPC_NASBENCH101"

_LABELS = (INPUT, *OPERATIONS, OUTPUT)
_PROGRESS_ROWS = 500_000


class Run(NamedTuple):
    """The end of one training; accuracies from 0 to 1."""

    training_seconds: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float


class Table:
    """The cells of a record file and their trainings, in the order of their hashes.

    Attributes:
        path: of the record file.
        budgets: epochs that its trainings had, ascending.
        n_rows: records of the file.
    """

    def __init__(self, path: Path, index: Prepared) -> None:
        self.path = path
        self.budgets: tuple[int, ...] = tuple(index.facts["budgets"])
        self.n_rows: int = index.facts["rows"]
        arrays = index.arrays
        self._places = {epochs: place for place, epochs in enumerate(self.budgets)}
        # Bisection over plain integers takes less time than a call of numpy.
        self._high, self._low = arrays["high"].data, arrays["low"].data
        self._runs_CBRV, self._n_runs_CB = arrays["runs"], arrays["n_runs"]
        self._n_parameters_C = arrays["n_parameters"]
        self._matrices_CVV, self._operations_CV = arrays["matrices"], arrays["operations"]

    def __len__(self) -> int:
        return len(self._high)

    def find(self, module_hash: str) -> int | None:
        """The number of a cell, or None where the table does not have it."""
        value = int(module_hash, 16)
        high, low = value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF
        cell = bisect_left(self._high, high)
        while cell < len(self._high) and self._high[cell] == high:
            if self._low[cell] == low:
                return cell
            cell += 1
        return None

    def runs(self, cell: int, epochs: int) -> tuple[Run, ...]:
        """The trainings of a cell with one budget, in the order of the file; none where the budget has none."""
        place = self._places.get(epochs)
        if place is None:
            return ()
        n_runs = int(self._n_runs_CB[cell, place])
        return tuple([Run(*values) for values in self._runs_CBRV[cell, place, :n_runs].tolist()])

    def query(self, module_hash: str, epochs: int) -> tuple[Run, ...]:
        """The trainings of the cell with this hash; none where the table has none."""
        cell = self.find(module_hash)
        return () if cell is None else self.runs(cell, epochs)

    def n_parameters(self, cell: int) -> int:
        """Trainable parameters of a cell's network."""
        return int(self._n_parameters_C[cell])

    def module_hash(self, cell: int) -> str:
        return f"{self._high[cell]:016x}{self._low[cell]:016x}"

    def spec(self, cell: int) -> ModelSpec:
        """A cell as the file draws it."""
        labels = [_LABELS[code] for code in self._operations_CV[cell].tolist() if code < len(_LABELS)]
        n = len(labels)
        return ModelSpec(self._matrices_CVV[cell, :n, :n], labels)


def open_table(path: Path | str | None = None, *, cache: Path | None = None) -> Table:
    """The table of a record file; the first call for a file makes its index, in minutes for the whole benchmark.

    Args:
        path: of the record file, plain or gzipped; None for the environment variable NORD_HPC_NASBENCH101.
        cache: where indices are kept; None for NORD_HPC_CACHE or the user's cache folder.

    Raises:
        BadInput: there is no such file, it is damaged, or it holds something else.
    """
    named = path if path is not None else os.environ.get(PATH_VARIABLE)
    if not named:
        raise BadInput(
            f"NAS-Bench-101 needs its record file: set path (evaluator.path in a job) or {PATH_VARIABLE} to "
            "nasbench_full.tfrecord, nasbench_only108.tfrecord, or a file in their format"
        )
    records = Path(named).resolve()
    try:
        status = records.stat()
    except OSError as error:
        raise BadInput(
            f"{records}: cannot be read: {error.strerror}; set path to a record file of NAS-Bench-101"
        ) from error
    identity = ["nasbench101", FORMAT, str(records), status.st_size, status.st_mtime_ns]
    key, folder = prepared.key_of(identity), cache or prepared.cache_folder()
    index = prepared.find(folder, key)
    if index is None:
        with prepared.preparing(folder, key, wait_seconds=BUILD_SECONDS) as made:
            index = made or _make_index(records, folder, key)
    return Table(records, index)


def _make_index(path: Path, cache: Path, key: str) -> Prepared:
    """Read all records and write the index.

    Raises:
        BadInput: a record is damaged, is no row of this benchmark, or its hash is not that of its cell.
    """
    log.info("making the index of %s; this happens once", path)
    columns = _Columns()
    for number, row in enumerate(read_rows(path)):
        try:
            columns.add(row)
        except (Infeasible, ValueError, OverflowError, TypeError) as error:
            raise BadInput(f"{path}: record {number}: {error}") from error
        if number and number % _PROGRESS_ROWS == 0:
            log.info("%d rows of %s read", number, path)
    if not columns.numbers:
        raise BadInput(f"{path}: holds no records; set path to a record file of NAS-Bench-101")
    arrays = columns.arrays()
    facts = {"budgets": columns.budgets(), "rows": len(columns.cells), "file": str(path)}
    to_write = {name: ArrayToWrite(values.shape, values.dtype, [values]) for name, values in arrays.items()}
    return prepared.write(cache, key, to_write, facts)


class _Columns:
    """The rows read so far, in columns: small, as there can be millions."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        """Hash to number of the cell, in the order of appearance."""

        self.cells, self._epochs, self._values = array("L"), array("L"), array("d")
        self._n_parameters = array("q")
        self._matrices, self._operations = bytearray(), bytearray()

    def add(self, row: Row) -> None:
        value = int(row.module_hash, 16)
        cell = self.numbers.get(value)
        if cell is None:
            self._add_cell(row)
            cell = self.numbers[value] = len(self.numbers)
        self.cells.append(cell)
        self._epochs.append(row.epochs)
        self._values.extend(row.evaluations[-1][1:])

    def _add_cell(self, row: Row) -> None:
        spec = ModelSpec.from_text(row.adjacency, row.operations)
        if spec.module_hash != row.module_hash:
            raise ValueError(f"the hash {row.module_hash} is not that of its cell, {spec.module_hash}")
        n = spec.n_vertices
        for bits in spec.matrix:
            self._matrices += bytes(bits).ljust(MAX_VERTICES, b"\0")
        self._matrices += bytes(MAX_VERTICES * (MAX_VERTICES - n))
        codes = bytes(_LABELS.index(label) for label in spec.operations)
        self._operations += codes.ljust(MAX_VERTICES, b"\xff")
        self._n_parameters.append(row.n_parameters)

    def budgets(self) -> list[int]:
        return sorted(set(self._epochs))

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of the index, cells sorted by their hashes."""
        hashes = np.array([(value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF) for value in self.numbers], dtype=np.uint64)
        order_C = np.lexsort((hashes[:, 1], hashes[:, 0]))
        rank_C = np.empty_like(order_C)
        rank_C[order_C] = np.arange(len(order_C))
        cell_N = rank_C[np.array(self.cells)]
        budgets = np.array(self.budgets())
        place_N = np.searchsorted(budgets, np.array(self._epochs))
        group_N = cell_N * len(budgets) + place_N
        repeat_N, n_runs_G = _count_within(group_N, len(order_C) * len(budgets))
        runs_GRV = np.full((len(n_runs_G), int(n_runs_G.max()), len(Run._fields)), np.nan)
        runs_GRV[group_N, repeat_N] = np.array(self._values).reshape(-1, len(Run._fields))
        n_cells = len(order_C)
        operations_CV = np.frombuffer(self._operations, dtype=np.uint8).reshape(n_cells, MAX_VERTICES)
        matrices_CVV = np.frombuffer(self._matrices, dtype=np.uint8).reshape(n_cells, MAX_VERTICES, MAX_VERTICES)
        return {
            "high": hashes[order_C, 0],
            "low": hashes[order_C, 1],
            "runs": runs_GRV.reshape(n_cells, len(budgets), *runs_GRV.shape[1:]),
            "n_runs": n_runs_G.reshape(n_cells, len(budgets)).astype(np.uint8),
            "n_parameters": np.array(self._n_parameters)[order_C],
            "matrices": matrices_CVV[order_C],
            "operations": operations_CV[order_C],
        }


def _count_within(group_N: np.ndarray[Any, Any], n_groups: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For each row how many of its group came before it, and how many rows each group has."""
    order_N = np.argsort(group_N, kind="stable")
    n_rows_G = np.bincount(group_N, minlength=n_groups)
    first_G = np.cumsum(n_rows_G) - n_rows_G
    place_N = np.empty(len(group_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(group_N)) - first_G[group_N[order_N]]
    return place_N, n_rows_G

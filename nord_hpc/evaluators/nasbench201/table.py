"""What is known of the cells of NAS-Bench-201 after 12 and 200 epochs, from a table in one CSV file.

The official files hold the same; `nord_hpc.evaluators.nasbench201.official` reads them.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from nord_hpc.errors import BadInput
from nord_hpc.nasbench201.cell import N_CELLS, architecture_of, cell_of_index

DatasetName = Literal["cifar10", "cifar100", "imagenet16"]

PATH_VARIABLE = "NORD_HPC_NASBENCH201"
BUDGETS = (12, 200)
"""Epochs that all cells were trained for."""

N_OUTPUTS = {"cifar10": 10, "cifar100": 100, "imagenet16": 120}
IMAGE_SIZE = {"cifar10": 32, "cifar100": 32, "imagenet16": 16}

VALIDATION_IMAGES = {"cifar10": 25_000, "cifar100": 5_000, "imagenet16": 3_000}
PASS_SECONDS = 1.1
PASS_EPOCHS = 0.245
"""A pass over 25,000 validation images takes so many seconds and so much of an epoch over as many training images: a
fit to what the official files measured. The benchmark counts every validation image of a cell alike."""

_PREFIXES = {"cifar10": "c10", "cifar100": "c100", "imagenet16": "in16"}
_TIMES = {"cifar10": "time200_c10v", "cifar100": "time200_c100", "imagenet16": "time200_in16"}
_SEEDS = (777, 888, 999)


class Result(NamedTuple):
    """What one cell's trainings on one data set with one budget gave; accuracies from 0 to 1.

    Attributes:
        validation_accuracies: of the single trainings, where they are known.
        validation_accuracy, test_accuracy: means over the trainings.
        training_seconds: of all epochs.
        pass_seconds: of one pass over the validation images.
    """

    validation_accuracies: tuple[float, ...]
    validation_accuracy: float
    test_accuracy: float
    training_seconds: float
    pass_seconds: float


class Table(Protocol):
    """Results of the cells by number.

    Attributes:
        path: where they come from.
    """

    path: Path

    def result(self, index: int, dataset: DatasetName, epochs: int) -> Result:
        """The result of cell `index`.

        Args:
            epochs: 12 or 200.

        Raises:
            BadInput: the files do not have this cell.
        """


class CsvTable:
    """A table with one row for each cell in the benchmark's order.

    Raises:
        BadInput: the file cannot be read, or is no such table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns = _read(path)
        self._results: dict[tuple[int, str, int], Result] = {}

    def result(self, index: int, dataset: DatasetName, epochs: int) -> Result:
        key = (index, dataset, epochs)
        known = self._results.get(key)
        if known is None:
            known = self._results[key] = self._made(*key)
        return known

    def _made(self, index: int, dataset: str, epochs: int) -> Result:
        prefix = _PREFIXES[dataset]
        single = []
        # Of the other data sets the single trainings are known on validation and test images together alone.
        if (dataset, epochs) == ("cifar10", BUDGETS[1]):
            values = [self._value(f"{prefix}_val_{epochs}_s{seed}", index) for seed in _SEEDS]
            single = [value / 100 for value in values if not math.isnan(value)]
        epoch_seconds = self._value(_TIMES["cifar10"], index) / BUDGETS[1]
        return Result(
            tuple(single),
            self._value(f"{prefix}_val_{epochs}", index) / 100,
            self._value(f"{prefix}_test_{epochs}", index) / 100,
            self._value(_TIMES[dataset], index) * epochs / BUDGETS[1],
            (PASS_SECONDS + PASS_EPOCHS * epoch_seconds) * VALIDATION_IMAGES[dataset] / VALIDATION_IMAGES["cifar10"],
        )

    def _value(self, column: str, index: int) -> float:
        return float(self._columns[column][index])


def open_table(path: Path | str | None = None) -> Table:
    """The table of a CSV file, plain or gzipped, or of the folder of the official files.

    Args:
        path: None for the environment variable NORD_HPC_NASBENCH201.

    Raises:
        BadInput: there is no such file, or it holds something else.
    """
    named = path if path is not None else os.environ.get(PATH_VARIABLE)
    if not named:
        raise BadInput(
            f"NAS-Bench-201 needs its results: set path (evaluator.path in a job) or {PATH_VARIABLE} to "
            "nasbench201.csv.gz, or to the official folder NATS-tss-v1_0-3ffb9-simple"
        )
    resolved = Path(named).resolve()
    if resolved.is_dir():
        from nord_hpc.evaluators.nasbench201.official import OfficialTable

        return OfficialTable(resolved)
    return CsvTable(resolved)


def _needed() -> list[str]:
    """The columns that are read as numbers."""
    columns = list(_TIMES.values())
    for prefix in _PREFIXES.values():
        columns += [f"{prefix}_{part}_{epochs}" for part in ("val", "test") for epochs in BUDGETS]
    return columns + [f"c10_val_{BUDGETS[1]}_s{seed}" for seed in _SEEDS]


def _read(path: Path) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """The numbers of the table, [N_CELLS] by column; NaN where a cell has none."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
        header = next(rows, [])
        body = list(rows)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"{path}: cannot be read: {reason}; set path to a table of NAS-Bench-201") from error
    except (UnicodeDecodeError, zlib.error, EOFError, csv.Error) as error:
        raise BadInput(f"{path}: is no CSV file: {error}") from error
    missing = [name for name in ("arch", *_needed()) if name not in header]
    if missing:
        raise BadInput(f"{path}: has no column {', '.join(missing)}; set path to a table of NAS-Bench-201")
    if len(body) != N_CELLS:
        raise BadInput(f"{path}: has {len(body)} rows; a table of NAS-Bench-201 has {N_CELLS}")
    place = header.index("arch")
    for index, row in enumerate(body):
        if len(row) != len(header) or row[place] != architecture_of(cell_of_index(index)):
            raise BadInput(f"{path}: row {index} is not cell {architecture_of(cell_of_index(index))}")
    columns = {}
    for name in _needed():
        place = header.index(name)
        try:
            columns[name] = np.array([float(row[place] or "nan") for row in body])
        except ValueError as error:
            raise BadInput(f"{path}: column {name}: {error}") from error
    return columns

"""The results of NAS-Bench-201 from the official files, by the package `nats-bench`, cell by cell on demand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from nord_hpc.errors import BadInput
from nord_hpc.evaluators.nasbench201.table import DatasetName, Result
from nord_hpc.nasbench201.cell import N_CELLS, architecture_of, cell_of_index

_NAMES = {"cifar10": "cifar10-valid", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}


class OfficialTable:
    """Results out of the folder NATS-tss-v1_0-3ffb9-simple.

    The files are pickles, which run code when they are read: take them from the benchmark's authors alone.

    Raises:
        BadInput: the package is not installed, or this is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            nats_bench = importlib.import_module("nats_bench")
        except ImportError as error:
            raise BadInput(
                f"{path}: the official files are read by the package nats-bench; install nord_hpc[nasbench201], or set "
                f"path to a table in a CSV file"
            ) from error
        if not (path / "meta.pickle.pbz2").exists():
            raise BadInput(f"{path}: has no meta.pickle.pbz2; set path to the folder NATS-tss-v1_0-3ffb9-simple")
        self._api: Any = nats_bench.create(str(path), "tss", fast_mode=True, verbose=False)
        if self._api.meta_archs[:] != [architecture_of(cell_of_index(index)) for index in range(N_CELLS)]:
            raise BadInput(f"{path}: its cells are not those of NAS-Bench-201; set path to NATS-tss-v1_0-3ffb9-simple")
        self._results: dict[tuple[int, str, int], Result] = {}

    def result(self, index: int, dataset: DatasetName, epochs: int) -> Result:
        key = (index, dataset, epochs)
        known = self._results.get(key)
        if known is None:
            known = self._results[key] = self._made(*key)
        return known

    def _made(self, index: int, dataset: str, epochs: int) -> Result:
        if not (self.path / f"{index:06d}.pickle.pbz2").exists():
            raise BadInput(f"{self.path}: has no file of cell {index}; complete the folder")
        budget = f"{epochs:02d}"
        runs = self._api.query_by_index(index, _NAMES[dataset], hp=budget)
        single = tuple([run.get_eval("x-valid")["accuracy"] / 100 for _, run in sorted(runs.items())])
        mean = self._api.get_more_info(index, _NAMES[dataset], hp=budget, is_random=False)
        tested = mean
        if dataset == "cifar10":
            # The benchmark tests what was trained on training and validation images together.
            tested = self._api.get_more_info(index, "cifar10", hp=budget, is_random=False)
        return Result(
            single,
            float(mean["valid-accuracy"]) / 100,
            float(tested["test-accuracy"]) / 100,
            float(mean["train-all-time"]),
            float(mean["valid-per-time"]),
        )

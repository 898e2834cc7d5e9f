"""Cells of NAS-Bench-201 with their accuracy and their latency on four devices, as a search space with its results."""

from __future__ import annotations

import csv
import gzip
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from conformance.strategy_suite import finish

from nord_hpc.strategies.dominance import hypervolume
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ACCURACY = DATA / "nasbench201" / "nasbench201.csv.gz"
LATENCY = DATA / "nasbench201_latency" / "latency_ms.npz"
DEVICES = ("titan_rtx_256", "pixel2", "fpga", "eyeriss")
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
N_EDGES = 6


def data_is_missing() -> bool:
    return not (ACCURACY.exists() and LATENCY.exists())


class LatencyTable:
    """The space of all cells, six edges with one of five operations each, and what is known of them.

    Attributes:
        accuracy: validation, in percent, after 200 epochs on CIFAR-10, by row of the table.
    """

    def __init__(self) -> None:
        with gzip.open(ACCURACY, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        named = [re.findall(r"(\w+)~", row["arch"]) for row in rows]
        self.row_of = {tuple(map(OPERATIONS.index, names)): row for row, names in enumerate(named)}
        self.accuracy = np.array([float(row["c10_val_200"]) for row in rows])
        with np.load(LATENCY) as arrays:
            devices = arrays["devices"].tolist()
            self.latency_ms = {device: arrays["latency_ms"][:, devices.index(device)] for device in DEVICES}

    def sample(self, rng: np.random.Generator) -> Any:
        return [int(len(OPERATIONS) * u) for u in rng.random(N_EDGES).tolist()]

    def mutate(self, genotype: Any, rng: np.random.Generator) -> Any:
        u_edge, u_step = rng.random(2).tolist()
        edge, step = int(N_EDGES * u_edge), 1 + int((len(OPERATIONS) - 1) * u_step)
        return [*genotype[:edge], (genotype[edge] + step) % len(OPERATIONS), *genotype[edge + 1 :]]

    def crossover(self, first: Any, second: Any, rng: np.random.Generator) -> Any:
        draws = rng.random(N_EDGES).tolist()
        return [one if u < 0.5 else other for one, other, u in zip(first, second, draws, strict=True)]

    def contains(self, genotype: Any) -> bool:
        return tuple(genotype) in self.row_of

    def to_descriptor(self, genotype: Any) -> Any:
        raise NotImplementedError("results come from the table")

    def result(self, proposal: Proposal, number: int, device: str) -> FinishedTrial:
        row = self.row_of[tuple(proposal.genotype)]
        finished = finish(proposal, number, TrialState.COMPLETED, float(self.accuracy[row]))
        metrics = {"latency_ms": float(self.latency_ms[device][row])}
        return replace(finished, outcome=replace(finished.outcome, metrics=metrics))

    def searched(self, strategy: Any, device: str, *, n_cells: int) -> float:
        """Hypervolume of the first `n_cells` distinct cells of a search, as a share of that of all cells.

        The reference is 80 percent and the 99th percentile of the device's latency.
        """
        values_N2 = np.stack([-self.accuracy, self.latency_ms[device]], axis=1)
        reference = (-80.0, float(np.percentile(self.latency_ms[device], 99)))
        rows: dict[int, None] = {}
        number = 0
        while len(rows) < n_cells:
            proposal = strategy.ask(number)
            rows[self.row_of[tuple(proposal.genotype)]] = None
            strategy.tell(self.result(proposal, number, device))
            number += 1
        return hypervolume(values_N2[list(rows)], reference) / hypervolume(values_N2, reference)

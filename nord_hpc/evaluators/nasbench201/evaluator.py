"""The evaluator that looks a candidate up in a table of NAS-Bench-201; nothing is trained, and time is the table's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.nasbench201.latencies import Latencies
from nord_hpc.evaluators.nasbench201.table import (
    BUDGETS,
    IMAGE_SIZE,
    N_OUTPUTS,
    DatasetName,
    Result,
    open_table,
)
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.nasbench201.cell import EDGES, architecture_of, cell_of_index, index_of
from nord_hpc.nasbench201.descriptors import EDGE_NAMES, from_descriptor
from nord_hpc.nasbench201.network import count_multiply_adds, count_parameters
from nord_hpc.seeding import derived_seed
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable

Repeat = Literal["sampled", "mean"]

OBJECTIVE = "accuracy"
MEASURED = ("training_seconds", "n_parameters", "multiply_adds")

_EDGE_PLACES = {name: place for place, name in enumerate(EDGE_NAMES)}


class LatencySettings(Settings):
    """A table of latencies.

    Attributes:
        path: of the .npz file, relative to the job file.
        devices: whose latencies are metrics; none for all. The first one's is latency_ms as well.
    """

    path: Path
    devices: tuple[str, ...] = ()


class NasBench201Evaluator:
    """Fitness is the validation accuracy that the table gives for a cell at the trial's epochs, 12 or 200.

    The descriptor is the cell, as `nord_hpc.nasbench201.to_descriptor` makes it; the six edges in it tell the row, so
    that cells which compute the same keep results of their own. A trial costs the time of its epochs and of one pass
    over the validation images, as in the benchmark's own simulation.

    Raises:
        BadInput: no table, an objective that it does not have, or epochs that it has no trainings of.
    """

    class Options(Settings):
        """Which table, and which of a cell's trainings.

        Attributes:
            path: of the CSV file or the official folder, relative to the job file; None for the variable
                NORD_HPC_NASBENCH201.
            dataset: that the cells were trained on.
            repeat: `sampled` takes one training by the trial's seed where single ones are known, as they are in the CSV
                file for CIFAR-10 after 200 epochs; `mean` averages over all.
            latency: adds latencies to the metrics.
        """

        path: Path | None = None
        dataset: DatasetName = "cifar10"
        repeat: Repeat = "sampled"
        latency: LatencySettings | None = None

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        del weights_folder
        self._dataset: DatasetName = options.dataset
        self._repeat: Repeat = options.repeat
        self._table = open_table(None if options.path is None else folder / options.path)
        latency = options.latency
        self._latencies = None if latency is None else Latencies(folder / latency.path, latency.devices)
        self._indices: dict[tuple[str, ...], int] = {}
        self._known: dict[tuple[int, int], tuple[Result, Examination, dict[str, Json]]] = {}
        self._check(job)

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        layers = descriptor.layers
        index = self._index(
            (descriptor.canonical_hash(), *[layers[name].kind for name in EDGE_NAMES if name in layers]), descriptor
        )
        return self._entry(index, fidelity)[1]

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        control.check()
        result, _, fixed = self._entry(self._index_of(trial), trial.fidelity)
        accuracy = self._accuracy(result, trial.seed)
        return Outcome(
            TrialState.COMPLETED,
            fitness=accuracy if self._objective == OBJECTIVE else fixed[self._objective],
            metrics={OBJECTIVE: accuracy, **fixed},
            seconds=time.perf_counter() - began,
            provenance={"table": self._table.path.name, "dataset": self._dataset, "repeat": self._repeat},
        )

    def describe(self) -> str:
        return f"NAS-Bench-201, {self._dataset}: {self._table.path}"

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """Mean accuracies of the cell after 200 epochs, whatever the trial's: test, and validation."""
        control.check()
        result = self._table.result(self._index_of(trial), self._dataset, BUDGETS[-1])
        return {OBJECTIVE: result.test_accuracy, "validation_accuracy": result.validation_accuracy}

    def _check(self, job: Job) -> None:
        latencies = () if self._latencies is None else tuple(self._latencies.metrics(0))
        self._objective = job.objective.metric
        known = (OBJECTIVE, *MEASURED, *latencies)
        if self._objective not in known:
            raise BadInput(f"objective: {self._objective} is not in the table; set metric to one of {_listed(known)}")
        if self._objective == OBJECTIVE and job.objective.direction != "maximize":
            raise BadInput(f"objective: {OBJECTIVE} is to be maximized; set direction maximize")
        if job.training.epochs not in BUDGETS:
            raise BadInput(
                f"training.epochs: {job.training.epochs} is no budget of NAS-Bench-201; set one of {_listed(BUDGETS)}"
            )

    def _accuracy(self, result: Result, seed: int) -> float:
        single = result.validation_accuracies
        if self._repeat == "mean" or not single:
            return result.validation_accuracy
        return single[derived_seed(seed, "repeat") % len(single)]

    def _index_of(self, trial: Trial) -> int:
        kinds = [""] * len(EDGES)
        for layer in trial.descriptor["layers"]:
            place = _EDGE_PLACES.get(layer["name"])
            if place is not None:
                kinds[place] = layer["kind"]
        key = (trial.descriptor_hash, *[kind for kind in kinds if kind])
        known = self._indices.get(key)
        return self._index(key, NeuralDescriptor.from_json(trial.descriptor)) if known is None else known

    def _index(self, key: tuple[str, ...], descriptor: NeuralDescriptor) -> int:
        """The number of a descriptor's cell; remembered by its hash and the kinds of its edges."""
        known = self._indices.get(key)
        if known is None:
            known = index_of(architecture_of(from_descriptor(descriptor)))
            self._indices[key] = known
        return known

    def _entry(self, index: int, fidelity: Fidelity) -> tuple[Result, Examination, dict[str, Json]]:
        """Result, examination and the metrics that do not depend on the seed."""
        entry = self._known.get((index, fidelity.epochs)) if fidelity.fraction == 1 else None
        if entry is None:
            entry = self._known[index, fidelity.epochs] = self._made(index, fidelity)
        return entry

    def _made(self, index: int, fidelity: Fidelity) -> tuple[Result, Examination, dict[str, Json]]:
        if fidelity.fraction != 1:
            raise Infeasible(f"the table knows trainings on all data, none on a share of {fidelity.fraction:g}")
        if fidelity.epochs not in BUDGETS:
            raise Infeasible(f"the table has no trainings of {fidelity.epochs} epochs, only of {_listed(BUDGETS)}")
        result = self._table.result(index, self._dataset, fidelity.epochs)
        cell, n_outputs = cell_of_index(index), N_OUTPUTS[self._dataset]
        n_parameters = count_parameters(cell, n_outputs=n_outputs)
        multiply_adds = count_multiply_adds(cell, image_size=IMAGE_SIZE[self._dataset], n_outputs=n_outputs)
        cost = round(1e6 * (result.training_seconds + result.pass_seconds))
        metrics: dict[str, Json] = {
            "training_seconds": result.training_seconds,
            "index": index,
            "n_parameters": n_parameters,
            "multiply_adds": multiply_adds,
        }
        if self._latencies is not None:
            metrics.update(self._latencies.metrics(index))
        return result, Examination(cost, n_parameters=n_parameters, multiply_adds=multiply_adds), metrics


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))

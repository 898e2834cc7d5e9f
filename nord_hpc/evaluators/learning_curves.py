"""The evaluator that reads recorded learning curves: what a training had reached after any number of its epochs."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.nasbench201.descriptors import EDGE_NAMES
from nord_hpc.spaces.spike_cells import N_CELLS, OPERATIONS, SpikeCells
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    import numpy.typing as npt

PATH_VARIABLE = "NORD_HPC_LEARNING_CURVES"
OBJECTIVE = "accuracy"

STEPS = 25_000
"""Accuracies of the file are whole numbers of the right ones among so many images."""

FILE_EDGES = ("0-1", "0-2", "0-3", "1-2", "1-3", "2-3")
"""In the order of the file, which is not that of the space."""


_PLACES = {name: len(OPERATIONS) ** k for k, name in enumerate(FILE_EDGES)}
_NUMBERS = {operation: number for number, operation in enumerate(OPERATIONS)}


class LearningCurvesEvaluator:
    """Fitness is the validation accuracy that a cell's one training had reached after the trial's epochs.

    For the space "spike_cells", with curves over 100 epochs of all its 15,625 cells (SpikeNAS-Bench). A trial that goes
    on from another one reads the same curve further to the right, and costs the epochs between alone.

    Raises:
        BadInput: no such file, an objective that it does not have, or more epochs than it has.
    """

    class Options(Settings):
        """Where the curves are, and what an epoch costs.

        Attributes:
            path: of the .npz file, relative to the job file; None for the variable NORD_HPC_LEARNING_CURVES.
            cost: `seconds`: an epoch costs what it took when the curves were recorded; `epochs`: one second each, so
                that budget.simulated_seconds counts epochs.
        """

        path: Path | None = None
        cost: Literal["seconds", "epochs"] = "seconds"

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        del weights_folder
        named = os.environ.get(PATH_VARIABLE) if options.path is None else folder / options.path
        if not named:
            raise BadInput(
                f"learning_curves needs its file: set evaluator.path or {PATH_VARIABLE} to spikenas_cifar10.npz"
            )
        self._curves = _Curves(Path(named).resolve())
        self._space = SpikeCells(SpikeCells.Options())
        self._in_epochs = options.cost == "epochs"
        if (job.objective.metric, job.objective.direction) != (OBJECTIVE, "maximize"):
            raise BadInput(
                f"objective: {job.objective.direction} {job.objective.metric} is not in the curves; set metric "
                f"{OBJECTIVE} and direction maximize"
            )
        if not 1 <= job.training.epochs <= self._curves.n_epochs:
            raise BadInput(
                f"training.epochs: {job.training.epochs} is not on the curves of {self._curves.path}; "
                f"set 1 to {self._curves.n_epochs}"
            )

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        genotype = self._space.from_descriptor(descriptor)
        row = _row(zip(EDGE_NAMES, genotype, strict=True))
        self._require(fidelity)
        seconds = 1.0 if self._in_epochs else float(self._curves.epoch_seconds_C[row])
        return Examination(
            cost=round(1e6 * seconds * fidelity.epochs), n_parameters=int(self._curves.n_parameters_C[row])
        )

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        control.check()
        row = _row_of(trial)
        self._require(trial.fidelity)
        accuracy = int(self._curves.right_EC[trial.fidelity.epochs - 1, row]) / STEPS
        return Outcome(
            TrialState.COMPLETED,
            fitness=accuracy,
            metrics={
                OBJECTIVE: accuracy,
                "training_seconds": float(self._curves.epoch_seconds_C[row]) * trial.fidelity.epochs,
                "n_parameters": int(self._curves.n_parameters_C[row]),
                "index": row,
            },
            seconds=time.perf_counter() - began,
            provenance={"curves": self._curves.path.name},
        )

    def describe(self) -> str:
        return f"recorded learning curves: {self._curves.path}"

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """The test accuracy at the end of the whole training, whatever the trial's epochs."""
        control.check()
        return {OBJECTIVE: round(float(self._curves.test_percent_C[_row_of(trial)]), 4) / 100}

    def _require(self, fidelity: Fidelity) -> None:
        if fidelity.fraction != 1:
            raise Infeasible(f"the curves are of trainings on all data, not on a share of {fidelity.fraction:g}")
        if not 1 <= fidelity.epochs <= self._curves.n_epochs:
            raise Infeasible(f"{fidelity.epochs} epochs are not on the curves, which have 1 to {self._curves.n_epochs}")


class _Curves:
    """The arrays of the file.

    Attributes:
        right_EC: right answers on validation images after each epoch, by cell.
        epoch_seconds_C: mean time of an epoch.
        test_percent_C: test accuracy at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                self.right_EC: npt.NDArray[np.uint16] = arrays["val_acc_x250"]
                self.test_percent_C: npt.NDArray[np.float32] = arrays["test_acc"]
                self.n_parameters_C: npt.NDArray[np.uint32] = arrays["params"]
                self.epoch_seconds_C: npt.NDArray[np.float64] = arrays["elapsed_s"] / arrays["epochs_run"].astype(
                    np.float64
                )
                ops_CE: npt.NDArray[Any] = arrays["ops"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadInput(f"{path}: cannot be read as learning curves: {reason}") from error
        numbers_C = ops_CE.astype(np.int64) @ (len(OPERATIONS) ** np.arange(ops_CE.shape[-1]))
        if self.right_EC.shape[1:] != (N_CELLS,) or not np.array_equal(numbers_C, np.arange(N_CELLS)):
            raise BadInput(f"{path}: its cells are not the {N_CELLS} of SpikeNAS-Bench in their order")

    @property
    def n_epochs(self) -> int:
        return len(self.right_EC)


def _row_of(trial: Trial) -> int:
    """The row of a trial that has been examined."""
    return _row((layer["name"], layer["kind"]) for layer in trial.descriptor["layers"])


def _row(layers: Iterable[tuple[str, str]]) -> int:
    """The row of the cell with these layers, by the names and kinds of its edges; others do not matter."""
    return sum(_PLACES[name] * _NUMBERS[kind] for name, kind in layers if name in _PLACES)

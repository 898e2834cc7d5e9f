"""The evaluator that looks a candidate up in a table of NAS-Bench-101; nothing is trained, and time is the table's."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.nasbench101.table import Run, Table, open_table
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.nasbench101.descriptors import spec_of
from nord_hpc.seeding import derived_seed
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable

Repeat = Literal["sampled", "mean"]

OBJECTIVE = "accuracy"

CELLS_KEPT = 100_000
"""Networks whose place in the table is remembered: finding it anew takes a tenth of a millisecond."""

EPOCH_MICROSECONDS = 3_000_000.0
MICROSECONDS_PER_PARAMETER = 0.9
"""Predicted cost of an epoch where the table knows no time."""


class NasBench101Evaluator:
    """Fitness is the validation accuracy that the table gives for a cell at the trial's epochs.

    The descriptor is the cell, as `nord_hpc.nasbench101.to_descriptor` makes it. The budget of a trial of full fidelity
    is training.epochs. In the metrics, `training_seconds` is the time that the training took when the table was made.

    Raises:
        BadInput: no table, an objective that it does not have, or epochs that it has no trainings of.
    """

    class Options(Settings):
        """Which table, and which of a cell's trainings.

        Attributes:
            path: of the record file, relative to the job file; None for the variable NORD_HPC_NASBENCH101.
            repeat: `sampled` takes one training by the trial's seed, `mean` averages over all.
        """

        path: Path | None = None
        repeat: Repeat = "sampled"

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        del weights_folder
        self._repeat: Repeat = options.repeat
        self._table = open_table(None if options.path is None else folder / options.path)
        self._cells: dict[str, int] = {}
        if (job.objective.metric, job.objective.direction) != (OBJECTIVE, "maximize"):
            raise BadInput(
                f"objective: {job.objective.direction} {job.objective.metric} is not in the table; set metric "
                f"{OBJECTIVE} and direction maximize"
            )
        if job.training.epochs not in self._table.budgets:
            raise BadInput(
                f"training.epochs: {job.training.epochs} is no budget of {self._table.path}; "
                f"set one of {_listed(self._table.budgets)}"
            )

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        cell = self._cell(descriptor.canonical_hash(), descriptor)
        runs = self._runs(cell, fidelity)
        n_parameters = self._table.n_parameters(cell)
        seconds = fmean(run.training_seconds for run in runs)
        cost = seconds * 1e6
        if not math.isfinite(seconds) or seconds <= 0:
            cost = fidelity.epochs * (EPOCH_MICROSECONDS + n_parameters * MICROSECONDS_PER_PARAMETER)
        return Examination(cost=max(1, round(cost)), n_parameters=n_parameters)

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        control.check()
        cell, run = self._run(trial)
        return Outcome(
            TrialState.COMPLETED,
            fitness=run.validation_accuracy,
            metrics={
                OBJECTIVE: run.validation_accuracy,
                "train_accuracy": run.train_accuracy,
                "training_seconds": run.training_seconds,
                "n_parameters": self._table.n_parameters(cell),
                "module_hash": self._table.module_hash(cell),
            },
            seconds=time.perf_counter() - began,
            provenance={"table": self._table.path.name, "repeat": self._repeat},
        )

    def describe(self) -> str:
        return f"NAS-Bench-101: {self._table.path}"

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """The test accuracy of the training that gave the fitness."""
        control.check()
        return {OBJECTIVE: self._run(trial)[1].test_accuracy}

    def _run(self, trial: Trial) -> tuple[int, Run]:
        cell = self._cells.get(trial.descriptor_hash)
        if cell is None:
            cell = self._cell(trial.descriptor_hash, NeuralDescriptor.from_json(trial.descriptor))
        return cell, chosen_run(self._runs(cell, trial.fidelity), repeat=self._repeat, seed=trial.seed)

    def _cell(self, descriptor_hash: str, descriptor: NeuralDescriptor) -> int:
        cell = self._cells.get(descriptor_hash)
        if cell is None:
            cell = cell_of(descriptor, self._table)
            if len(self._cells) >= CELLS_KEPT:
                self._cells.clear()
            self._cells[descriptor_hash] = cell
        return cell

    def _runs(self, cell: int, fidelity: Fidelity) -> tuple[Run, ...]:
        if fidelity.fraction != 1:
            raise Infeasible(f"the table knows trainings on all data, none on a share of {fidelity.fraction:g}")
        runs = self._table.runs(cell, fidelity.epochs)
        if not runs:
            raise Infeasible(
                f"cell {self._table.module_hash(cell)} has no training of {fidelity.epochs} epochs in the table, "
                f"whose budgets are {_listed(self._table.budgets)}"
            )
        return runs


def cell_of(descriptor: NeuralDescriptor, table: Table) -> int:
    """The number of a descriptor's cell.

    Raises:
        Infeasible: it is no cell of the space, or the table does not have it.
    """
    module_hash = spec_of(descriptor).module_hash
    cell = table.find(module_hash)
    if cell is None:
        raise Infeasible(f"cell {module_hash} is not among the {len(table)} cells of the table")
    return cell


def chosen_run(runs: tuple[Run, ...], *, repeat: Repeat, seed: int) -> Run:
    """One of a cell's trainings, by a seed, or their mean."""
    if repeat == "mean":
        return Run(*(fmean(values) for values in zip(*runs, strict=True)))
    return runs[derived_seed(seed, "repeat") % len(runs)]


def _listed(budgets: Iterable[int]) -> str:
    return ", ".join(map(str, budgets))

"""The evaluator that looks a candidate up among the trainings of finished runs, and predicts what is not there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.recorded_table.file import Recording, read_table
from nord_hpc.evaluators.recorded_table.surrogate import FEWEST_NETWORKS, Surrogate, describe_all, features
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.seeding import derived_seed
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    from nord_hpc.descriptor import NeuralDescriptor

Key = tuple[str, str, Fidelity]
"""A network's hash, its settings as JSON, and the fidelity."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table says of a candidate at one fidelity.

    Attributes:
        fitness: of each training; one prediction where there is none.
        seconds: rank-seconds of a training, their mean.
    """

    fitness: tuple[float, ...]
    seconds: float
    predicted: bool


class RecordedTableEvaluator:
    """Fitness and time are those that were recorded for the candidate's network, settings and fidelity.

    Where a network was trained for more epochs, and its learning rate was constant, the recorded curve tells fewer
    epochs, too. All else is predicted by a regression fitted to the table (see `surrogate`), whose error on unseen
    networks `describe` states; predictions are marked in metrics and provenance.

    Raises:
        BadInput: no such table, or another objective than its own.
    """

    class Options(Settings):
        """Which table, and what becomes of candidates that are not in it.

        Attributes:
            path: of the file that `nord-hpc table` wrote, relative to the job file.
            repeat: of several trainings, `sampled` takes one by the trial's seed, `mean` averages over all.
            unknown: candidates that are not in the table get a prediction (`predict`), or are `infeasible`.
        """

        path: Path
        repeat: Literal["sampled", "mean"] = "sampled"
        unknown: Literal["predict", "infeasible"] = "predict"

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        del weights_folder
        self._options = options
        self._path = folder / options.path
        self._table = read_table(self._path)
        facts = self._table.facts
        if (job.objective.metric, job.objective.direction) != (facts.metric, facts.direction):
            raise BadInput(
                f"objective: {job.objective.direction} {job.objective.metric} is not in {self._path}; set metric "
                f"{facts.metric} and direction {facts.direction}"
            )
        if options.unknown == "predict" and facts.error is None:
            raise BadInput(
                f"evaluator.unknown: {self._path} has fewer than {FEWEST_NETWORKS} networks, from which nothing can be "
                f"predicted; set infeasible, or make a table of more runs"
            )
        self._recorded: dict[tuple[str, str], list[Recording]] = {}
        for recording in self._table.recordings:
            key = (recording.descriptor_hash, _text(recording.settings))
            self._recorded.setdefault(key, []).append(recording)
        self._entries: dict[Key, Entry] = {}
        self._surrogate: Surrogate | None = None

    def describe(self) -> str:
        facts, error = self._table.facts, self._table.facts.error
        line = f"{len(self._table.networks)} recorded networks of {self._path} ({facts.evaluated_on})"
        if self._options.unknown == "infeasible" or error is None:
            return f"{line}; others are infeasible"
        return (
            f"{line}; others are predicted, {facts.metric} with a mean absolute error of {error['mean_absolute']:.4f} "
            f"and Kendall's tau {error['kendall_tau']:.2f} on unseen networks"
        )

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        name = descriptor.canonical_hash()
        entry = self._entry(name, descriptor.to_json(), settings, fidelity)
        n_parameters, multiply_adds = self._table.sizes.get(name, (0, 0))
        return Examination(max(1, round(entry.seconds * 1e6)), n_parameters, multiply_adds)

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        control.check()
        entry = self._entry(trial.descriptor_hash, trial.descriptor, trial.settings, trial.fidelity)
        repeat = self._options.repeat
        place = derived_seed(trial.seed, "repeat") % len(entry.fitness)
        fitness = fmean(entry.fitness) if repeat == "mean" else entry.fitness[place]
        return Outcome(
            TrialState.COMPLETED,
            fitness=fitness,
            metrics={
                self._table.facts.metric: fitness,
                "training_seconds": entry.seconds,
                "n_trainings": 0 if entry.predicted else len(entry.fitness),
            },
            seconds=time.perf_counter() - began,
            provenance={"table": self._path.name, "repeat": repeat, "predicted": entry.predicted},
        )

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """Metrics on the test part, where they were recorded; each run has those of its best network alone."""
        control.check()
        recorded = self._recorded.get((trial.descriptor_hash, _text(trial.settings)), [])
        return next((dict(one.test) for one in recorded if one.test is not None), {})

    def _entry(self, name: str, descriptor: Json, settings: Mapping[str, Json], fidelity: Fidelity) -> Entry:
        key = (name, _text(settings), fidelity)
        if key not in self._entries:
            self._entries[key] = self._looked_up(key) or self._predicted(name, descriptor, settings, fidelity)
        return self._entries[key]

    def _looked_up(self, key: Key) -> Entry | None:
        name, settings, fidelity = key
        same_data = [one for one in self._recorded.get((name, settings), []) if one.fraction == fidelity.fraction]
        whole = [one for one in same_data if one.epochs == fidelity.epochs]
        if whole:
            return Entry(tuple(one.fitness for one in whole), fmean(one.seconds for one in whole), predicted=False)
        if not self._table.facts.curves_hold:
            return None
        parts = [
            (fitness, one.seconds * fidelity.epochs / one.epochs)
            for one in same_data
            for epochs, fitness in one.curve
            if epochs == fidelity.epochs
        ]
        if not parts:
            return None
        return Entry(tuple(fitness for fitness, _ in parts), fmean(seconds for _, seconds in parts), predicted=False)

    def _predicted(self, name: str, descriptor: Json, settings: Mapping[str, Json], fidelity: Fidelity) -> Entry:
        if self._options.unknown == "infeasible":
            raise Infeasible(
                f"network {name[:12]} with {fidelity.epochs} epochs is not among the {len(self._table.recordings)} "
                f"trainings of {self._path.name}"
            )
        if self._surrogate is None:
            recordings = self._table.recordings
            self._surrogate = Surrogate(describe_all(recordings, self._table.networks), recordings)
        fitness_1, seconds_1 = self._surrogate.predict([features(descriptor, settings, fidelity)])
        return Entry((float(fitness_1[0]),), float(seconds_1[0]), predicted=True)


def _text(settings: Mapping[str, Json]) -> str:
    return json.dumps(dict(settings), sort_keys=True)

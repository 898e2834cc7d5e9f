"""Finished runs as a table of trainings, which the evaluator `table` looks candidates up in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nord_hpc import __version__
from nord_hpc.errors import BadInput
from nord_hpc.evaluators.recorded_table import Facts, Recording, Table, cross_validated, write_table
from nord_hpc.job import Job
from nord_hpc.store.history import Entry, History
from nord_hpc.store.run_folder import RunFolder, changed_fields
from nord_hpc.trial import Json

IN_COMMON = ("dataset", "evaluator", "training", "objective", "resources.shards")
"""Parts of the job that a training's result depends on; all runs of a table have them in common, but the epochs."""

FREE = ("training.epochs",)


def record(folders: Sequence[Path], out: Path) -> Table:
    """Write the table of all completed trials of these runs, and say how well unseen networks can be predicted.

    Returns:
        The table.

    Raises:
        BadInput: a folder is no run, the runs differ in more than space, strategy, budget and epochs, or nothing has
            completed.
    """
    opened = [RunFolder.open(folder) for folder in folders]
    made = [folder.job() for folder in opened]
    for folder, job in zip(opened, made, strict=True):
        _check_equal(opened[0], made[0], folder, job)
    networks: dict[str, Json] = {}
    sizes: dict[str, tuple[int, int]] = {}
    recordings: list[Recording] = []
    evaluated_on = ""
    for folder in opened:
        history = folder.history()
        evaluated_on = history.lives[0].evaluated_on if history.lives else evaluated_on
        tested = {} if history.test is None else {history.test["number"]: history.test["metrics"]}
        for _, entry in sorted(history.entries.items()):
            if entry.outcome is None or entry.outcome.fitness is None or not entry.trial.runs:
                continue
            trial = entry.trial
            networks.setdefault(trial.descriptor_hash, trial.descriptor)
            sizes.setdefault(trial.descriptor_hash, (trial.n_parameters, trial.multiply_adds))
            seconds = _rank_seconds(history, entry)
            recordings.append(_recording(entry, made[0].objective.metric, seconds, tested.get(trial.number)))
    if not recordings:
        raise BadInput(f"{folders[0]}: no trial has completed, so there is nothing to record")
    error = cross_validated(recordings, networks)
    facts = Facts(
        metric=made[0].objective.metric,
        direction=made[0].objective.direction,
        curves_hold=made[0].training.schedule == "constant",
        evaluated_on=evaluated_on,
        sources=tuple(str(folder.resolve()) for folder in folders),
        job=_shared(made[0]),
        error=None if error is None else asdict(error),
        version=__version__,
    )
    table = Table(facts, networks, sizes, recordings)
    write_table(out, table)
    return table


def _rank_seconds(history: History, entry: Entry) -> float:
    """Of the whole training: a trial that goes on from another one took the time of its own epochs alone."""
    assert entry.outcome is not None
    own = entry.outcome.seconds * (len(entry.attempts[-1].ranks) if entry.attempts else 1)
    base = entry.trial.continues
    return own if base is None else own + _rank_seconds(history, history.entries[base])


def _recording(entry: Entry, metric: str, seconds: float, test: dict[str, Json] | None) -> Recording:
    trial, outcome = entry.trial, entry.outcome
    assert outcome is not None and outcome.fitness is not None
    points = outcome.metrics.get("curve", [])
    return Recording(
        descriptor_hash=trial.descriptor_hash,
        epochs=trial.fidelity.epochs,
        fraction=trial.fidelity.fraction,
        seed=trial.seed,
        settings=dict(trial.settings),
        fitness=outcome.fitness,
        seconds=seconds,
        curve=tuple((point["epoch"], point[metric]) for point in points if metric in point),
        test=test,
    )


def _shared(job: Job) -> dict[str, Any]:
    data = job.to_json()
    shared = {name: data[name] for name in ("dataset", "evaluator", "training", "objective")}
    return {**shared, "resources": {"shards": data["resources"]["shards"]}}


def _check_equal(first: RunFolder, first_job: Job, other: RunFolder, job: Job) -> None:
    differing = [
        name
        for name in changed_fields(first_job.to_json(), job.to_json())
        if name.startswith(IN_COMMON) and name not in FREE
    ]
    if differing:
        raise BadInput(
            f"{other.path}: its trainings are not those of {first.path}: {', '.join(differing)} differ; make a table "
            f"of each"
        )

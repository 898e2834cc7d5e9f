"""A run in numbers and in rows, computed from its history: what status, trials and report show."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

from nord_hpc.job import Job
from nord_hpc.store.history import Entry, History
from nord_hpc.trial import Json, TrialState, gang_size


def summarize(history: History, job: Job) -> dict[str, Json]:
    """The summary of a run, as JSON values. Utilization is a share of the workers' time, 0 to 1."""
    states = Counter(entry.state for entry in history.entries.values())
    last = history.lives[-1] if history.lives else None
    workers = _workers(last.ranks) if last else 0
    best = history.best(maximize=job.objective.direction == "maximize", fidelity=job.full_fidelity)
    machines = history.machines
    return {
        "name": job.name,
        "state": history.state,
        "reason": last.reason if last else None,
        "trials": {
            "completed": states[TrialState.COMPLETED.value],
            "infeasible": states[TrialState.INFEASIBLE.value],
            "failed": states[TrialState.FAILED.value],
            "running": states[TrialState.RUNNING.value] if history.state == "running" else 0,
            "budget": job.budget.trials,
        },
        "best": _best(best, history),
        "metric": job.objective.metric,
        "direction": job.objective.direction,
        "utilization": _utilization(history),
        "wall_seconds": sum(life.last_at - life.began_at for life in history.lives),
        "master_seconds_per_trial": _master_seconds_per_trial(history),
        "fsyncs": sum(life.fsyncs for life in history.lives),
        "stall_seconds": sum(life.stall_seconds for life in history.lives),
        "stalled_most_by": last.stalled_most_by if last else None,
        "prediction_residual": _prediction_residual(history),
        "history_sha256": history.history_sha256,
        "mixed_machines": len(machines) > 1,
        "not_repeatable": history.not_repeatable,
        "ranks": last.ranks if last else 0,
        "gangs": workers // gang_size(wanted=job.resources.largest_gang, shards=job.resources.shards, n_workers=workers)
        if workers
        else 0,
        "lives": len(history.lives),
        "committed": len(history.commit_order),
    }


def rows(history: History) -> list[dict[str, Json]]:
    """One row for each trial by number, flat enough for a table. Times are in seconds since the search began."""
    began = history.lives[0].began_at if history.lives else 0.0
    return [_row(entry, began) for _, entry in sorted(history.entries.items())]


def _row(entry: Entry, began: float) -> dict[str, Json]:
    trial, outcome = entry.trial, entry.outcome
    last = entry.attempts[-1] if entry.attempts else None
    return {
        "number": trial.number,
        "state": entry.state,
        "fitness": outcome.fitness if outcome else None,
        "parents": list(trial.parents),
        "descriptor_hash": trial.descriptor_hash,
        "fidelity": trial.fidelity.to_json(),
        "seed": trial.seed,
        "commit": entry.commit,
        "attempts": len(entry.attempts),
        "ranks": list(last.ranks) if last else [],
        "seconds": outcome.seconds if outcome else None,
        "started_seconds": last.started_at - began if last else None,
        "finished_seconds": last.finished_at - began if last and last.finished_at is not None else None,
        "n_parameters": trial.n_parameters,
        "multiply_adds": trial.multiply_adds,
        "cost": trial.cost,
        "virtual_start": trial.virtual_start,
        "virtual_finish": trial.virtual_finish,
        "failure": outcome.failure.value if outcome and outcome.failure else None,
        "reason": outcome.reason if outcome else None,
        "traceback": outcome.traceback if outcome else None,
        "host": outcome.host if outcome else None,
        "metrics": dict(outcome.metrics) if outcome else {},
        "provenance": dict(outcome.provenance) if outcome else {},
        "settings": dict(trial.settings),
        "continues": trial.continues,
        "reuses": trial.reuses,
        "imported": trial.imported,
        "genotype": trial.genotype,
        "descriptor": trial.descriptor,
    }


def _workers(ranks: int) -> int:
    """Ranks that evaluate: all but the master, or the one process of an inline run."""
    return max(1, ranks - 1)


def _best(best: Entry | None, history: History) -> dict[str, Any] | None:
    if best is None or best.outcome is None:
        return None
    test = history.test
    return {
        "trial": best.trial.number,
        "fitness": best.outcome.fitness,
        "test": test["metrics"] if test is not None and test["number"] == best.trial.number else None,
    }


def _utilization(history: History) -> float | None:
    """Rank-seconds in evaluations whose result came in, over those from the first start to the last result."""
    busy = 0.0
    spans: dict[int, list[float]] = {}
    for entry in history.entries.values():
        for attempt in entry.attempts:
            if attempt.finished_at is None or entry.outcome is None:
                continue
            busy += entry.outcome.seconds * len(attempt.ranks)
            span = spans.setdefault(attempt.life, [attempt.started_at, attempt.finished_at])
            span[0], span[1] = min(span[0], attempt.started_at), max(span[1], attempt.finished_at)
    available = sum((end - start) * _workers(history.lives[life].ranks) for life, (start, end) in spans.items())
    return busy / available if available > 0 else None


def _prediction_residual(history: History) -> float | None:
    """Standard deviation of the logarithm of true over predicted time; virtual order wants it below 0.3."""
    ratios = [
        math.log(entry.outcome.seconds * len(entry.attempts[-1].ranks) * 1e6 / entry.trial.cost)
        for entry in history.entries.values()
        if entry.outcome is not None
        and entry.outcome.fitness is not None
        and entry.outcome.seconds > 0
        and entry.attempts
    ]
    return statistics.pstdev(ratios) if len(ratios) > 1 else None


def _master_seconds_per_trial(history: History) -> float | None:
    seconds = sum(life.master_seconds for life in history.lives)
    finished = sum(entry.outcome is not None and bool(entry.attempts) for entry in history.entries.values())
    return seconds / finished if finished and seconds else None

"""Random schedules: from a number, a job, what the search meets, and the history that it must come to nevertheless."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

from cluster.light_parts import FILE
from cluster.simulation import Circumstances, Simulation, make_job, search

from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.transport_simulated import Faults
from nord_hpc.job import Job
from nord_hpc.trial import Outcome, TrialState

SPACE: dict[str, Any] = {"name": f"{FILE}:LightSpace"}
MIXED = {**SPACE, "gangs": [1, 1, 1, 2, 2, 4]}
EVOLUTION = {"name": "regularized_evolution", "population": 6, "sample": 3}
RUNGS = {"name": f"{FILE}:Rungs"}
CLIMBER = {"name": f"{FILE}:Climber"}
VIRTUAL = {"mode": "virtual", "virtual_gangs": 6, "run_ahead": 3}
ARRIVAL = {"mode": "arrival"}
ONE_EACH = {"shards": 1, "gang": 1}
SHORT = {"name": f"{FILE}:LightEvaluator", "seconds": 0.002}

JOBS: dict[str, dict[str, Any]] = {
    "evolution": {},
    "evolution, mixed gangs": {"space": MIXED, "resources": ONE_EACH},
    "evolution, mixed gangs, arrival order": {"space": MIXED, "resources": ONE_EACH, "order": ARRIVAL},
    "random search, reuse": {
        "strategy": {"name": "random_search"},
        "space": {**MIXED, "points": 6},
        "resources": ONE_EACH,
        "candidates": {"duplicates": "reuse"},
    },
    "evolution, reuse, arrival order": {
        "space": {**SPACE, "points": 12},
        "candidates": {"duplicates": "reuse"},
        "order": ARRIVAL,
    },
    "rungs": {"strategy": RUNGS, "training": {"epochs": 3}, "order": {**VIRTUAL, "virtual_gangs": 9}},
    "rungs that are done, mixed gangs": {
        "strategy": {**RUNGS, "rungs": 3},
        "space": MIXED,
        "resources": ONE_EACH,
        "training": {"epochs": 3},
        "budget": {"trials": 100},
    },
    "rungs that are done, arrival order": {
        "strategy": {**RUNGS, "rungs": 3},
        "training": {"epochs": 3},
        "budget": {"trials": 100},
        "order": ARRIVAL,
    },
    "first candidates": {"strategy": CLIMBER},
    "first candidates, arrival order": {"strategy": CLIMBER, "order": ARRIVAL},
    "short trials": {
        "strategy": {"name": "random_search"},
        "evaluator": SHORT,
        "resources": ONE_EACH,
        "order": {**VIRTUAL, "virtual_gangs": 24},
    },
    "few attempts": {"limits": {"attempts": 2, "trial_seconds": 20000.0}},
    "hours": {"budget": {"hours": 0.15}},
    "simulated seconds": {"budget": {"simulated_seconds": 400.0}},
}
"""Sections that differ from the light job of all of them."""


@dataclass(frozen=True)
class Schedule:
    """A search and what it meets; a function of its number."""

    number: int
    kind: str
    circumstances: Circumstances

    def __str__(self) -> str:
        return f"schedule {self.number}: {self.kind}, {self.circumstances}"


def schedule(number: int) -> Schedule:
    """The schedule of that number: calm ones, those with one kind of fault, and those with all."""
    rng = random.Random(f"schedule {number}")
    strength = rng.choice((0.0, 0.3, 1.0, 1.0, 2.0))

    def some(most: float) -> float:
        return rng.choice((0.0, 1.0)) * rng.random() * most * strength

    faults = Faults(
        rank_lost=some(0.06),
        gang_lost=some(0.03),
        gang_broken=some(0.08),
        hang=some(0.03),
        mortal=some(0.2),
        late=some(0.3),
        resent=some(0.3),
        crash=some(0.06),
        slowdown_sigma=rng.choice((0.0, 0.15, 0.8)),
    )
    n_workers = rng.randint(1, 10)
    circumstances = Circumstances(
        n_workers,
        n_spares=rng.randrange(min(3, n_workers)),
        faults=faults,
        take_over=rng.choice((0.0, 0.5, 1.0)),
        stop=some(0.5),
        nap_seconds=rng.choice((20.0, 200.0, 400.0, 400.0, 400.0)),
    )
    return Schedule(number, rng.choice(list(JOBS)), circumstances)


@functools.cache
def job_of(kind: str) -> Job:
    base: dict[str, Any] = {
        "space": SPACE,
        "strategy": EVOLUTION,
        "evaluator": {"name": f"{FILE}:LightEvaluator"},
        "order": VIRTUAL,
        "limits": {"attempts": 1000, "trial_seconds": 20000.0},
    }
    return make_job(**{**base, **JOBS[kind]})


def first_of(kind: str) -> list[FirstCandidate]:
    if not kind.startswith("first candidates"):
        return []
    told = Outcome(TrialState.COMPLETED, fitness=0.7, seconds=0.0, provenance={"imported_from": "elsewhere, trial 3"})
    return [FirstCandidate([3, 0], "elsewhere, trial 3", told), FirstCandidate([5, 0], "mine.json")]


@functools.cache
def undisturbed(kind: str) -> tuple[str, ...] | None:
    """History lines of the search without faults; None where the history may depend on them."""
    job = job_of(kind)
    if job.order.mode == "arrival" or job.limits.attempts < 1000:
        return None
    if job.budget.hours is not None:
        longer = job.budget.model_copy(update={"hours": None, "trials": 200})
        job = job.model_copy(update={"budget": longer})
    lines = search(job, Circumstances(3), seed=0, first=first_of(kind)).lines
    return tuple(lines)


def run(number: int) -> Simulation:
    """Run one schedule.

    Raises:
        AssertionError: an invariant does not hold; the text names the schedule.
    """
    chosen = schedule(number)
    try:
        reference = undisturbed(chosen.kind)
        return search(
            job_of(chosen.kind),
            chosen.circumstances,
            seed=number,
            first=first_of(chosen.kind),
            reference=None if reference is None else list(reference),
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{chosen}") from error

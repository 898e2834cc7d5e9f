"""Run under mpirun on two ranks: evaluates candidates in a gang of two; each rank writes the outcomes it saw."""

from __future__ import annotations

import json
import math
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import candidates
from mpi4py import MPI

from nord_hpc.data_parallel import GangPlace, choose
from nord_hpc.errors import GangBroken
from nord_hpc.interfaces import DataParallel
from nord_hpc.trial import Outcome

WORLD = MPI.COMM_WORLD


class World:
    """All ranks as one gang; each connection is a new life."""

    rank, size = WORLD.rank, WORLD.size

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.lives = 0

    def connect(self) -> AbstractContextManager[DataParallel]:
        self.lives += 1
        place = GangPlace(self.rank, self.size, f"life-{self.lives}", WORLD)
        return choose(self.backend, size=self.size).open(place)


class Failing:
    """A control that fails on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def check(self) -> None:
        if self.rank == WORLD.rank:
            raise ZeroDivisionError("this member fails")


def shown(outcome: Outcome) -> dict[str, Any]:
    return {
        "fitness": outcome.fitness,
        "metrics": dict(outcome.metrics),
        "provenance": dict(outcome.provenance),
    }


def main(folder: str, backend: str) -> None:
    weights = Path(folder, "weights")
    job = candidates.make_job(evaluator={"digests": True})
    evaluator = candidates.make_evaluator(job, weights)
    gang, free = World(backend), candidates.Free()
    found: dict[str, Any] = {}
    for number, dead_branch in enumerate((True, False)):
        trial = candidates.make_trial(job, candidates.descriptor(dead_branch=dead_branch), number=number)
        outcome = evaluator.evaluate(trial, gang=gang, control=free, keep_above=None)
        found[f"dead branch {dead_branch}"] = shown(outcome)
    trial = candidates.make_trial(job, candidates.descriptor())
    try:
        evaluator.evaluate(trial, gang=gang, control=Failing(1), keep_above=math.inf)
    except (GangBroken, ZeroDivisionError) as error:
        found["failing"] = type(error).__name__
    found["after"] = shown(evaluator.evaluate(trial, gang=gang, control=free, keep_above=math.inf))
    found["alone"] = shown(evaluator.evaluate(trial, gang=candidates.Alone(), control=free, keep_above=math.inf))
    WORLD.Barrier()
    found["weights"] = sorted(path.name for path in weights.iterdir())
    Path(folder, f"rank-{WORLD.rank}.json").write_text(json.dumps(found))


main(*sys.argv[1:])

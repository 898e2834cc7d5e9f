"""Run under mpirun on two ranks: trains cells on a text in gangs of 2 and 1; each rank writes what it saw."""

from __future__ import annotations

import json
import math
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import candidates
import text_candidates
from mpi4py import MPI

from nord_hpc.data_parallel import GangPlace, choose
from nord_hpc.interfaces import DataParallel

WORLD = MPI.COMM_WORLD


class Gang:
    """One of the equal gangs into which the world is split."""

    def __init__(self, backend: str, size: int) -> None:
        self.communicator = WORLD.Split(WORLD.rank // size)
        self.rank, self.size = self.communicator.rank, size
        self.place = GangPlace(self.rank, size, f"text-{size}-{WORLD.rank // size}", self.communicator)
        self.backend = backend

    def connect(self) -> AbstractContextManager[DataParallel]:
        return choose(self.backend, size=self.size).open(self.place)


def main(folder: str, backend: str) -> None:
    own = Path(folder, f"text-of-{WORLD.rank}")
    own.mkdir()
    job = text_candidates.make_text_job(own, resources={"shards": 4, "gang": 2})
    evaluator = candidates.make_evaluator(job, own / "weights")
    trial = candidates.make_trial(job, text_candidates.cells())
    found: dict[str, Any] = {}
    for size in (2, 1):
        gang = Gang(backend, size)
        outcome = evaluator.evaluate(trial, gang=gang, control=candidates.Free(), keep_above=math.inf)
        found[str(size)] = {"fitness": outcome.fitness, "metrics": dict(outcome.metrics)}
        gang.communicator.Free()
    Path(folder, f"rank-{WORLD.rank}.json").write_text(json.dumps(found))


main(*sys.argv[1:])

"""Run under mpirun: opens gangs by one backend in several ways; each rank writes what it saw. Three ranks."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from nord_hpc import registry
from nord_hpc.data_parallel import GangPlace, OpenGang
from nord_hpc.errors import GangBroken

WORLD = MPI.COMM_WORLD
LIVES = 50


class Gangs:
    """Forms gangs of ranks of the world, each life with a new key."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._life = 0

    def form(self, members: list[int], use: Any) -> Any:
        """Call `use` with the open gang on its members; None on the others."""
        self._life += 1
        if WORLD.rank not in members:
            return None
        group = WORLD.group.Incl(members)
        communicator = WORLD.Create_group(group, self._life)
        try:
            place = GangPlace(communicator.rank, len(members), f"life-{self._life}", communicator)
            with self.backend.open(place) as gang:
                return use(gang)
        finally:
            communicator.Free()
            group.Free()


def collectives(gang: OpenGang) -> dict[str, Any]:
    mine = torch.tensor([1.5, -2.0, 1e-3]) * (gang.rank + 1)
    gathered = gang.all_gather(mine)
    summed = mine.clone()
    gang.all_reduce_sum_(summed)
    counts = torch.tensor([gang.rank, 7], dtype=torch.int64)
    gang.broadcast_(counts, root=gang.size - 1)
    wide = gang.all_gather(torch.full((4,), 1 / 3, dtype=torch.float64))
    nothing = torch.empty(0)
    gang.broadcast_(nothing, root=0)
    return {
        "name": gang.name,
        "place": [gang.rank, gang.size],
        "gathered": gathered.tolist(),
        "summed": summed.tolist(),
        "counts": counts.tolist(),
        "wide": [str(wide.dtype), list(wide.shape), wide.sum().item()],
    }


def total(gang: OpenGang) -> float:
    value = torch.tensor([float(WORLD.rank)])
    gang.all_reduce_sum_(value)
    return value.item()


def failing(gang: OpenGang) -> str:
    total(gang)
    if gang.rank == 1:
        raise ZeroDivisionError("this member fails")
    began = time.perf_counter()
    try:
        gang.all_gather(torch.zeros(3))
    except GangBroken as error:
        return f"{time.perf_counter() - began:.3f} {error}"
    return "nothing happened"


def late(gang: OpenGang) -> str:
    total(gang)
    began = time.perf_counter()
    if gang.rank == 1:
        time.sleep(6)
    try:
        total(gang)
    except GangBroken:
        return f"{time.perf_counter() - began:.3f}"
    return "nothing happened"


def open_things() -> list[int]:
    return [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]


def main(folder: str, name: str) -> None:
    backend = registry.resolve("backend", name, folder=Path())
    gangs = Gangs(backend())
    found: dict[str, Any] = {"collectives": gangs.form([0, 1, 2], collectives)}

    lives, things = [], []
    for life in range(LIVES):
        lead = life % WORLD.size
        members = [lead, (lead + 1) % WORLD.size]
        lives.append(gangs.form(members, total))
        things.append(open_things())
    found["lives"], found["things"] = lives, [things[9], things[-1]]

    try:
        found["failing"] = gangs.form([0, 1], failing)
    except ZeroDivisionError as error:
        found["failing"] = str(error)
    found["after"] = gangs.form([1, 0], total)

    WORLD.Barrier()
    os.environ.pop("HOROVOD_STALL_CHECK_TIME_SECONDS", None)
    os.environ.pop("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", None)
    impatient = Gangs(backend(timeout_seconds=2))
    found["late"] = impatient.form([0, 1], late)
    found["after_late"] = gangs.form([0, 1], total)
    Path(folder, f"rank-{WORLD.rank}.json").write_text(json.dumps(found))


main(*sys.argv[1:])

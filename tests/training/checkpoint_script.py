"""Run under mpirun on two ranks: trainings broken after two of four epochs and resumed; each writes what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import stopping
import torch
from mpi4py import MPI

from nord_hpc.data_parallel import GangPlace, OpenGang, choose
from nord_hpc.errors import StoreError

WORLD = MPI.COMM_WORLD
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "adam": {"name": "adam", "lr": 0.005},
    "momentum": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
}


def on_gang(name: str, size: int, life: str, use: Any) -> Any:
    communicator = WORLD.Split(WORLD.rank // size)
    place = GangPlace(communicator.rank, size, f"{life}-{size}-{WORLD.rank // size}", communicator)
    try:
        with choose(name, size=size).open(place) as gang:
            return use(gang)
    finally:
        communicator.Free()


def broken_and_resumed(name: str, folder: Path, case: str, *, then: int = 2) -> dict[str, Any]:
    """A training of two ranks without a break, and one that is stopped and goes on with `then` ranks."""
    path = folder / f"{case}-{then}.safetensors"
    optimizer = OPTIMIZERS[case]

    def unbroken(gang: OpenGang) -> Any:
        return stopping.run(gang, optimizer=optimizer, halving=stopping.Halving())

    def first(gang: OpenGang) -> Any:
        return stopping.run(gang, path, optimizer=optimizer, halving=stopping.Halving(), stop_after=2)

    def second(gang: OpenGang) -> Any:
        own = path if then == 2 else path.with_name(f"{WORLD.rank}-{path.name}")
        if then == 1:
            own.write_bytes(path.read_bytes())
        return stopping.run(gang, own, optimizer=optimizer, halving=stopping.Halving())

    whole, shown = on_gang(name, 2, f"whole-{case}-{then}", unbroken)
    stopped, begun = on_gang(name, 2, f"first-{case}-{then}", first)
    WORLD.Barrier()
    resumed, ended = on_gang(name, then, f"second-{case}-{then}", second)
    return {
        "unbroken": shown,
        "stopped": stopped is None,
        "resumed": [*begun, *ended],
        "metrics": [dict(whole.metrics), dict(resumed.metrics)],
        "epochs": [report.epoch for report in resumed.curve],
        "equal curves": whole.curve == resumed.curve,
    }


def damaged(name: str, folder: Path) -> list[str]:
    """What the members say of files that only the first one reads."""
    said = []
    for case, content in (("text", b"hello"), ("folder", None)):
        path = folder / f"damaged-{case}"
        if WORLD.rank == 0:
            path.mkdir() if content is None else path.write_bytes(content)

        def use(gang: OpenGang, path: Path = path) -> str:
            try:
                stopping.run(gang, path, optimizer=OPTIMIZERS["sgd"])
            except StoreError as error:
                return str(error)
            return "no error"

        said.append(on_gang(name, 2, f"damaged-{case}", use))
    return said


def main(folder: str, name: str) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    found: dict[str, Any] = {case: broken_and_resumed(name, place, case) for case in OPTIMIZERS}
    found["adam on fewer ranks"] = broken_and_resumed(name, place, "adam", then=1)
    found["damaged"] = damaged(name, place)
    (place / f"rank-{WORLD.rank}.json").write_text(json.dumps(found))


main(*sys.argv[1:])

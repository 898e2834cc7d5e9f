"""Run under mpirun on four ranks: trains on gangs of 1, 2 and 4 by one backend; each rank writes what it saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example
import numpy as np
import torch
from mpi4py import MPI

from nord_hpc.data_parallel import GangPlace, OpenGang, choose
from nord_hpc.training.data import Part
from nord_hpc.training.metrics import metrics_of
from nord_hpc.training.scoring import gather_sums, score
from nord_hpc.training.trainer import autocast_of

WORLD = MPI.COMM_WORLD


def on_gangs(name: str, size: int, life: str, use: Callable[[OpenGang], Any]) -> Any:
    """Split the world into gangs of `size` and call `use` in each."""
    communicator = WORLD.Split(WORLD.rank // size)
    place = GangPlace(communicator.rank, size, f"{life}-{size}-{WORLD.rank // size}", communicator)
    try:
        with choose(name, size=size).open(place) as gang:
            return use(gang)
    finally:
        communicator.Free()


def exact(gang: OpenGang) -> dict[str, Any]:
    data = example.data()
    adam = example.run(example.Example(), data, gang=gang, shards=4, batch_size=12, epochs=3)
    sgd = {"name": "sgd", "lr": 0.05}
    spare = example.run(example.Example(spare=True), data, gang=gang, shards=4, batch_size=12, optimizer=sgd)
    untrained = example.run(example.Example(), data, gang=gang, shards=4, batch_size=12, epochs=0)
    part = example.run(example.Example(), data, gang=gang, shards=4, batch_size=12, epochs=1, fraction=0.5)
    summaries = {"adam": adam, "spare": spare, "untrained": untrained, "part": part}
    found: dict[str, Any] = {name: example.summary(result) for name, result in summaries.items()}
    optimizer = {"name": "sgd", "lr": 1e30}
    found["diverged"] = example.failure(
        example.run, example.Example(), data, gang=gang, shards=4, batch_size=12, optimizer=optimizer
    )
    return found


def scores(gang: OpenGang) -> Any:
    network = example.Example()
    return score(
        network,
        Part(example.images(101, seed=4), example.Info(), device=example.CPU),
        metrics=metrics_of("classification", n_outputs=3),
        batch_size=7,
        autocast=autocast_of(example.CPU, "fp32"),
        data_parallel=gang,
        control=example.Free(),
        when="now",
    )


class Echo(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def five_samples(gang: OpenGang) -> Any:
    """Five samples in batches of three, of which the first three are right."""
    outputs = np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 0]]
    split = example.Split(outputs, np.array([0, 1, 0, 1, 1]))
    return gather_sums(
        Echo(),
        Part(split, example.Info(n_outputs=2), device=example.CPU),
        metrics=metrics_of("classification", n_outputs=2)[:1],
        batch_size=3,
        autocast=autocast_of(example.CPU, "fp32"),
        data_parallel=gang,
        control=example.Free(),
    )


def uneven(gang: OpenGang) -> dict[str, Any]:
    return {
        "101 in batches of 10": example.summary(example.run(example.Example(), example.data(), gang=gang, shards=2)),
        "22 in batches of 6": example.summary(
            example.run(
                example.Example(),
                example.data(n_train=22),
                gang=gang,
                shards=2,
                batch_size=6,
                validation_batch_size=1,
            )
        ),
    }


def too_few(gang: OpenGang) -> str:
    return example.failure(example.run, example.Example(), example.data(n_train=3), gang=gang, shards=4, batch_size=8)


def fast(gang: OpenGang, **settings: Any) -> dict[str, Any]:
    network = example.Example(dropout=0.0)
    result = example.run(
        network,
        example.data(),
        gang=gang,
        shards=2,
        batch_size=20,
        reduction="fast",
        optimizer={"name": "sgd", "lr": 0.05},
        **settings,
    )
    weights = {key: value.double().sum().item() for key, value in network.state_dict().items()}
    return {**example.summary(result), "weights": weights}


def main(folder: str, name: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for size in (1, 2, 4):
        found[f"exact {size}"] = on_gangs(name, size, "exact", exact)
        found[f"scores {size}"] = on_gangs(name, size, "scores", scores)
        found[f"five {size}"] = on_gangs(name, size, "five", five_samples)
    for size in (1, 2):
        found[f"uneven {size}"] = on_gangs(name, size, "uneven", uneven)
        found[f"fast {size}"] = on_gangs(name, size, "fast", fast)
        found[f"synchronized {size}"] = on_gangs(
            name, size, "synchronized", lambda gang: fast(gang, sync_batch_norm=True)
        )
    found["too few"] = on_gangs(name, 4, "too few", too_few)
    Path(folder, f"rank-{WORLD.rank}.json").write_text(json.dumps(found))


main(*sys.argv[1:])

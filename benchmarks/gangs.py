"""Gangs: how long it takes to form one, and what the fixed order of additions costs.

`python benchmarks/gangs.py` starts itself under mpirun with three ranks. All is measured in one run, so that
ratios mean something.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

LIVES = 3000


def main() -> int:
    if len(sys.argv) == 3:
        _rank(sys.argv[1], Path(sys.argv[2]))
        return 0
    from nord_hpc.cluster import launch

    for backend in ("horovod", "torch_ddp"):
        with tempfile.TemporaryDirectory() as folder:
            program = [sys.executable, __file__, backend, folder]
            command = launch.mpirun_command(3, program)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, timeout=500, env=environment)
            print("\n".join(_lines(backend, json.loads((Path(folder) / "found.json").read_text()))))
    return 0


def _lines(backend: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{backend}: to form a gang, {LIVES} times among three ranks in turn: median {found['form'][0]:.2f} ms in the "
        f"first 300, {found['form'][1]:.2f} ms in the last 300"
    ]
    for shards, (exact, fast) in found["reduction"].items():
        lines.append(
            f"{backend}: a step of 2 ranks with {shards} shards: exact {exact:.2f} ms, fast {fast:.2f} ms, "
            f"ratio {exact / fast:.2f}"
        )
    return lines


def _rank(backend_name: str, folder: Path) -> None:
    import torch
    from mpi4py import MPI

    from nord_hpc import registry
    from nord_hpc.data_parallel import GangPlace

    world = MPI.COMM_WORLD
    backend = registry.resolve("backend", backend_name, folder=Path())()
    seconds: list[float] = []
    for life in range(LIVES):
        members = [(0, 1), (1, 2), (0, 2), (0, 1, 2)][life % 4]
        if world.rank not in members:
            continue
        began = time.perf_counter()
        communicator = world.Create_group(world.group.Incl(members), life % 16384)
        place = GangPlace(communicator.rank, len(members), f"life-{life}", communicator)
        with backend.open(place) as gang:
            seconds.append(time.perf_counter() - began)
            gang.all_reduce_sum_(torch.ones(1))  # as every training does, so that none closes while another opens
        communicator.Free()
    world.Barrier()
    reduction = _reduction_costs(world, backend)
    if world.rank == 0:
        form = [1e3 * statistics.median(part) for part in (seconds[:225], seconds[-225:])]
        (folder / "found.json").write_text(json.dumps({"form": form, "reduction": reduction}))


def _reduction_costs(world: Any, backend: Any) -> dict[int, tuple[float, float]]:
    """Milliseconds of a training step on ranks 0 and 1, by number of shards: exact and fast, alternating."""
    from nord_hpc.data_parallel import GangPlace

    costs: dict[int, tuple[float, float]] = {}
    group = world.group.Incl([0, 1])
    for shards in (2, 4, 8):
        times: dict[str, list[float]] = {"exact": [], "fast": []}
        for repeat in range(3):
            for reduction in ("exact", "fast"):
                if world.rank < 2:
                    communicator = world.Create_group(group, 100 * shards + 10 * repeat + (reduction == "fast"))
                    place = GangPlace(communicator.rank, 2, f"{shards}-{repeat}-{reduction}", communicator)
                    with backend.open(place) as gang:
                        times[reduction].append(_step_seconds(gang, shards=shards, reduction=reduction))
                    communicator.Free()
                world.Barrier()
        if world.rank == 0:
            costs[shards] = (1e3 * statistics.median(times["exact"]), 1e3 * statistics.median(times["fast"]))
    return costs


def _step_seconds(gang: Any, *, shards: int, reduction: Any) -> float:
    """Of one step, the median over the epochs after the first, on the digits."""
    import torch

    from nord_hpc.builder.network import build
    from nord_hpc.builder.plan import plan
    from nord_hpc.datasets import open_dataset
    from nord_hpc.descriptor import NeuralDescriptor
    from nord_hpc.job import DatasetSettings, TrainingSettings
    from nord_hpc.training.data import Part
    from nord_hpc.training.trainer import TrainingData, train
    from nord_hpc.trial import Fidelity

    class Free:
        def check(self) -> None:
            pass

    dataset = open_dataset(DatasetSettings(), folder=Path())
    net = NeuralDescriptor()
    for width in (32, 64):
        net.add_layer_sequential("Conv2d", {"out_channels": width, "kernel_size": 3, "padding": 1})
        net.add_layer_sequential("BatchNorm2d", {})
        net.add_layer_sequential("ReLU", {})
    network = build(plan(net, input_shape=dataset.info.input_shape, n_outputs=10), seed=1)
    cpu = torch.device("cpu")
    data = TrainingData(
        dataset.info,
        train=Part(dataset.train, dataset.info, device=cpu),
        validation=Part(dataset.validation, dataset.info, device=cpu),
    )
    ends: list[float] = [time.perf_counter()]
    result = train(
        network,
        data,
        settings=TrainingSettings(batch_size=64),
        fidelity=Fidelity(4),
        shards=shards,
        seed=1,
        reduction=reduction,
        precision="fp32",
        data_parallel=gang,
        control=Free(),
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )
    epochs = [later - earlier for earlier, later in pairwise(ends)][1:]
    return statistics.median(epochs) / result.batches.steps


if __name__ == "__main__":
    sys.exit(main())

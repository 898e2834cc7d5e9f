"""Evaluates a network data-parallel on all ranks: mpirun -n 3 python nord_environment.py, or without mpirun on one.

CIFAR-10 is taken from cifar10/ in the folder that NORD_HPC_DATA names, or downloaded; --dataset digits needs no files.
"""

from __future__ import annotations

import argparse
import sys

from torch import nn, optim

from nord_hpc.configurations.all import Configs
from nord_hpc.errors import NordError
from nord_hpc.neural_nets import Environment, NeuralDescriptor


def main(*, dataset: str, epochs: int, data_percentage: float, shards: int | None, seed: int) -> None:
    conf = Configs()
    d = NeuralDescriptor()
    d.add_layer(nn.Conv2d, {"in_channels": conf.CHANNELS[dataset], "out_channels": 5, "kernel_size": 5}, "conv")
    d.add_layer(nn.MaxPool2d, {"kernel_size": 2, "stride": 2}, "pool")
    d.connect_layers("conv", "pool")
    # All ranks come here. The master goes on inside; the others serve it, and end when it leaves.
    with Environment(optim.Adam, {}, verbose=True, shards=shards) as environment:
        loss, metrics, total_time = environment.descriptor_evaluate(
            d, epochs, data_percentage=data_percentage, dataset=dataset, seed=seed
        )
        environment.print(f"{environment.world_size} ranks: loss {loss!r}, {metrics}, {total_time:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data-percentage", type=float, default=1.0, help="share of the training data, 0 to 1")
    parser.add_argument(
        "--shards", type=int, help="a multiple of the ranks: equal shards give equal results on any ranks"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except NordError as error:
        sys.exit(str(error))

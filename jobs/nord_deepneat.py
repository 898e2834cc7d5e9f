"""A small genetic algorithm over DeepNEAT's genomes on CIFAR-10, on this process.

After R. Miikkulainen et al. 2017, "Evolving Deep Neural Networks" (arXiv 1703.00548). CIFAR-10 is taken from cifar10/
in the folder that NORD_HPC_DATA names, or downloaded; --dataset digits needs no files. deep_neat_cifar10.yaml searches
the same space on many ranks.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np
from torch import optim

from nord_hpc.errors import NordError, TrialFailed
from nord_hpc.neural_nets import LocalEvaluator
from nord_hpc.spaces.genome import Genome, Innovation
from nord_hpc.utils import assure_reproducibility

ADD_NODE_RATE, ADD_CONNECTION_RATE, MUTATION_RATE = 0.5, 0.2, 0.5
TOURNAMENT = 2

# Channels, dropout, scale of the weights, kernel size, pooling: kinds, then lowest and highest values.
LAYER_BOUNDS_TYPES = [int, float, float, int, bool]


def main(
    *, dataset: str, generations: int, population: int, epochs: int, data_percentage: float, channels: tuple[int, int]
) -> None:
    assure_reproducibility()
    layer_bounds = [[channels[0], 0.0, 0.5, 1, 0], [channels[1], 0.7, 2.0, 3, 1]]
    evaluator = LocalEvaluator(optimizer_class=optim.Adam, optimizer_params={})
    rng = np.random.default_rng(0)
    innovation = Innovation()
    genomes = [
        Genome(LAYER_BOUNDS_TYPES, layer_bounds, ADD_NODE_RATE, ADD_CONNECTION_RATE, MUTATION_RATE, innovation, rng=rng)
        for _ in range(population)
    ]
    known: dict[Genome, float] = {}
    for generation in range(generations):
        for number, genome in enumerate(genomes):
            genome.mutate()
            if genome not in known:
                known[genome] = fitness_of(genome, evaluator, epochs, data_percentage, dataset)
            genome.nodes.fitness = genome.connections.fitness = known[genome]
            print(f"generation {generation} genome {number}: {len(genome.nodes.genes)} nodes, {known[genome]:.4f}")
        innovation.new_generation()
        genomes = [tournament(genomes, rng).crossover(tournament(genomes, rng)) for _ in range(population)]
    best = max(known, key=lambda genome: known[genome])
    print(f"best validation accuracy: {known[best]:.4f}")
    print(best.to_descriptor(dimensions=2))


def fitness_of(genome: Genome, evaluator: LocalEvaluator, epochs: int, data_percentage: float, dataset: str) -> float:
    """Accuracy on the validation part; minus infinity for a network that could not be trained."""
    try:
        _, metrics, _ = evaluator.descriptor_evaluate(
            genome.to_descriptor(dimensions=2), epochs, data_percentage=data_percentage, dataset=dataset
        )
    except TrialFailed as failure:
        print(f"failed: {failure}")
        return -math.inf
    return float(metrics["accuracy"])


def tournament(genomes: list[Genome], rng: np.random.Generator) -> Genome:
    """The fittest of a few."""
    chosen = rng.choice(len(genomes), size=min(TOURNAMENT, len(genomes)), replace=False)
    return max((genomes[k] for k in chosen), key=lambda genome: genome.nodes.fitness or 0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--population", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--data-percentage", type=float, default=1.0, help="share of the training data, 0 to 1")
    parser.add_argument("--channels", type=int, nargs=2, default=(32, 256), help="fewest and most of a convolution")
    arguments = vars(parser.parse_args())
    try:
        main(**{**arguments, "channels": tuple(arguments["channels"])})
    except NordError as error:
        sys.exit(str(error))

"""The cells of SpikeNAS-Bench as a search space: four nodes, and on each edge a spiking convolution or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201.cell import EDGES, NONE, SKIP
from nord_hpc.nasbench201.descriptors import EDGE_NAMES, to_descriptor
from nord_hpc.trial import Json

OPERATIONS = (NONE, SKIP, "spike_low", "spike_middle", "spike_high")
"""What an edge may be; the last three are 3x3 convolutions of neurons with that threshold."""

N_EDGES = len(EDGES)
N_CELLS: int = len(OPERATIONS) ** N_EDGES


class SpikeCells:
    """Cells of four nodes whose six edges each have one of five operations, with the edges of NAS-Bench-201.

    A genotype is the list of the operations of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. The network is the cell itself,
    for the evaluator "learning_curves".
    """

    class Options(BaseModel):
        """There is nothing to choose."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, options: Options) -> None:
        del options

    def sample(self, rng: np.random.Generator) -> Json:
        """Uniform over all cells."""
        return [OPERATIONS[int(len(OPERATIONS) * u)] for u in rng.random(N_EDGES).tolist()]

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """Another operation on one edge."""
        u_edge, u_step = rng.random(2).tolist()
        edge = int(N_EDGES * u_edge)
        others = [operation for operation in OPERATIONS if operation != genotype[edge]]
        return [*genotype[:edge], others[int(len(others) * u_step)], *genotype[edge + 1 :]]

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each edge's operation from one of both."""
        draws = rng.random(N_EDGES).tolist()
        return [one if u < 0.5 else other for one, other, u in zip(first, second, draws, strict=True)]

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """The 24 cells that differ in one operation."""
        for edge, operation in enumerate(genotype):
            for other in OPERATIONS:
                if other != operation:
                    yield [*genotype[:edge], other, *genotype[edge + 1 :]]

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, list) or len(genotype) != N_EDGES:
            return False
        return all(isinstance(operation, str) and operation in OPERATIONS for operation in genotype)

    def size(self) -> int:
        """15,625 genotypes; fewer networks, as some compute the same."""
        return N_CELLS

    def encode(self, genotype: Json) -> list[float]:
        """For each edge and operation 1 where it has it, else 0: 30 numbers."""
        return [float(operation == other) for operation in genotype for other in OPERATIONS]

    def decisions(self) -> tuple[int, ...]:
        """The operation of each edge."""
        return (len(OPERATIONS),) * N_EDGES

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The cell of these numbers of operations."""
        return [OPERATIONS[choice] for choice in choices]

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The cell; see `nord_hpc.nasbench201.to_descriptor`."""
        return to_descriptor(tuple(genotype))

    def from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The cell whose descriptor this is.

        Raises:
            Infeasible: there is none.
        """
        layers = descriptor.layers
        genotype = [layers[name].kind for name in EDGE_NAMES if name in layers]
        if not self.contains(genotype) or self.to_descriptor(genotype) != descriptor:
            raise Infeasible(f"this is no cell of six edges with operations of {', '.join(OPERATIONS)}")
        return genotype

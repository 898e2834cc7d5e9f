"""Genome and Innovation as scripts written for NORD use them; the genes and the operators on them are in `genes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.spaces import genes as ops
from nord_hpc.spaces.genes import FIELDS, Bounds, ConnectionGene, Genes, Innovation, NodeGene

__all__ = ["Chromosome", "Genome", "Innovation"]

NO_LIMIT = 1 << 30


class Chromosome:
    """The genes of one kind, by innovation number.

    Attributes:
        genes: number to gene.
        fitness: of the genome, as the caller sets it; None before.
    """

    def __init__(self, genes: Mapping[int, NodeGene | ConnectionGene], fitness: float | None) -> None:
        self.genes = dict(genes)
        self.fitness = fitness

    def __repr__(self) -> str:
        return repr(self.genes)


class Genome:
    """A network that mutates in place and can be crossed; always free of cycles, with a way from input to output.

    It begins as input and output, connected. Genomes are equal, and hashed alike, where their genes are.

    Args:
        layer_bounds_types: of `FIELDS`: int, float, float, int, bool.
        layer_bounds: their lowest and highest values, inclusive.
        add_node_rate: chance of a mutation to add a node.
        add_connection_rate: chance to add a connection, where it adds no node.
        mutation_rate: chance to enable or disable a connection, and to change a value of a node, each.
        innovation: the numbering, shared by the genomes of a population; None for one of its own.
        rng: all randomness; None for a generator seeded by numpy's global state, which `assure_reproducibility` sets.
    """

    def __init__(
        self,
        layer_bounds_types: Sequence[type],
        layer_bounds: Sequence[Sequence[float]],
        add_node_rate: float,
        add_connection_rate: float,
        mutation_rate: float,
        innovation: Innovation | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._bounds = _bounds(layer_bounds_types, layer_bounds)
        self.add_node_rate = add_node_rate
        self.add_connection_rate = add_connection_rate
        self.mutation_rate = mutation_rate
        self.innovation = innovation or Innovation()
        self._rng = rng or np.random.default_rng(int(np.random.randint(1 << 31)))
        self._take(ops.initial(self.innovation), fitness=None)

    def mutate(self) -> None:
        """Change this genome by the rates."""
        genes = self._genes
        drawn, toggled, changed = self._rng.random(3).tolist()
        if drawn < self.add_node_rate:
            genes = ops.add_node(genes, self._bounds, self.innovation, self._rng)
        elif drawn < self.add_node_rate + self.add_connection_rate:
            genes = ops.add_connection(genes, self.innovation, self._rng) or genes
        if toggled < self.mutation_rate:
            genes = ops.toggle(genes, self._rng) or genes
        if changed < self.mutation_rate:
            genes = ops.change_values(genes, self._bounds, self._rng) or genes
        if genes != self._genes:
            self._take(genes, fitness=None)

    def crossover(self, other: Genome) -> Genome:
        """A child: the genes of the fitter one, those that both have from either; without a fitness, of this one."""
        first, second = self, other
        mine, theirs = self.nodes.fitness, other.nodes.fitness
        if mine is not None and theirs is not None and theirs > mine:
            first, second = other, self
        child = self._copy()
        genes = ops.crossover(first._genes, second._genes, self._rng, extra_share=0.0, max_nodes=NO_LIMIT)
        child._take(genes, fitness=None)
        return child

    def distance(self, other: Genome) -> float:
        """The compatibility distance of NEAT; see `genes.distance`."""
        return ops.distance(self._genes, other._genes, self._bounds)

    def to_descriptor(self, dimensions: int = 2) -> NeuralDescriptor:
        """The network on data of 1, 2 or 3 dimensions beside the channels."""
        if dimensions not in (1, 2, 3):
            raise ValueError(f"{dimensions!r} dimensions: give 1, 2 or 3")
        return ops.to_descriptor(self._genes, dimensions=dimensions)

    def to_networkx(self, active_only: bool = True) -> Any:
        """The graph of numbers, `INPUT` and `OUTPUT` among them; with disabled connections too on demand."""
        import networkx  # type: ignore[import-untyped]

        graph = networkx.DiGraph()
        for gene in self._genes.connections:
            if gene.enabled or not active_only:
                graph.add_edge(gene.source, gene.target)
        return graph

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self._genes == other._genes

    def __hash__(self) -> int:
        return hash(self._genes)

    def __repr__(self) -> str:
        return f"Genome(nodes={self.nodes!r}, connections={self.connections!r})"

    def _take(self, genes: Genes, *, fitness: float | None) -> None:
        self._genes = genes
        self.nodes = Chromosome({gene.innovation: gene for gene in genes.nodes}, fitness)
        self.connections = Chromosome({gene.innovation: gene for gene in genes.connections}, fitness)

    def _copy(self) -> Genome:
        """One of the same kind, that shares numbering and random state with this one."""
        other = object.__new__(Genome)
        other.__dict__.update(self.__dict__)
        return other


def _bounds(kinds: Sequence[type], bounds: Sequence[Sequence[float]]) -> Bounds:
    if tuple(kinds) != (int, float, float, int, bool):
        named = [getattr(kind, "__name__", str(kind)) for kind in kinds]
        raise BadInput(f"layer_bounds_types: {named} do not fit {', '.join(FIELDS)}; set int, float, float, int, bool")
    if len(bounds) != 2 or any(len(row) != len(FIELDS) for row in bounds):
        raise BadInput(f"layer_bounds: give two rows, lowest and highest, of {', '.join(FIELDS)}")
    low, high = (tuple(kind(value) for kind, value in zip(kinds, row, strict=True)) for row in bounds)
    for field, (lowest, highest) in zip(FIELDS, zip(low, high, strict=True), strict=True):
        if lowest > highest:
            raise BadInput(f"layer_bounds: {field} has the lowest value {lowest} above the highest one {highest}")
    if low[0] < 1 or low[3] < 1 or low[1] < 0 or high[1] >= 1:
        raise BadInput("layer_bounds: set channels and kernels of 1 or more, and dropout from 0 to below 1")
    return Bounds(tuple(kinds), low, high)

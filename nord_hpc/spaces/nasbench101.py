"""The cells of NAS-Bench-101 as a search space, with its paper's operators; tables and training are left to others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.nasbench101.descriptors import spec_of, to_descriptor
from nord_hpc.nasbench101.network import BATCH_NORM_MOMENTUM, CELLS, STACKS, STEM_CHANNELS, network_descriptor
from nord_hpc.nasbench101.spec import INPUT, MAX_EDGES, MAX_VERTICES, OPERATIONS, OUTPUT, ModelSpec, kept_vertices
from nord_hpc.trial import Json

EDGE_SHARE = 0.5
CROSSOVER_ATTEMPTS = 20

_KEYS = frozenset({"matrix", "ops"})


class NasBench101:
    """Directed acyclic cells whose inner vertices are convolutions or poolings.

    A genotype is {"matrix": rows of 0 and 1, upper triangular, "ops": labels, "input" first and "output" last}. It may
    have vertices that lead nowhere, and more edges than allowed as long as what is pruned of them has not: so do the
    genotypes of the paper. Pruned and isomorphic cells are one network, with one canonical hash.

    With `network` false the network is the cell itself, for the evaluator "nasbench101". With `network` true it is the
    whole one, for training: cells in their canonical order, so that where channels do not divide evenly it can differ
    from the benchmark's own drawing of the cell in a few channels.
    """

    class Options(BaseModel):
        """How large cells may be, how they change, and what becomes of them.

        Attributes:
            vertices: of a genotype, input and output included; pruned cells have fewer.
            max_edges: of a pruned cell.
            mutation_rate: expected number of changes of operations, and about that of edges: each operation is changed
                with a chance of mutation_rate / inner vertices, each edge with mutation_rate / vertices, 1/2 at most.
            network: whether descriptors are whole networks for training, and not cells for the table.
            stem_channels: of the whole network's stem and first stack.
            stacks: of the whole network; channels double and maps are halved between them.
            cells: of each stack.
            batch_norm_momentum: weight of the newest batch; the benchmark's is small and wants many steps.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        vertices: int = Field(MAX_VERTICES, ge=3, le=MAX_VERTICES)
        max_edges: int = Field(MAX_EDGES, ge=3, le=MAX_EDGES)
        mutation_rate: float = Field(1.0, ge=0.1, le=3)
        network: bool = False
        stem_channels: int = Field(STEM_CHANNELS, ge=8)
        stacks: int = Field(STACKS, ge=1, le=5)
        cells: int = Field(CELLS, ge=1)
        batch_norm_momentum: float = Field(BATCH_NORM_MOMENTUM, gt=0, le=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        n = options.vertices
        self._n = n
        self._pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        self._n_paths = _n_shorter(n - 1)

    def sample(self, rng: np.random.Generator) -> Json:
        """Uniform over the valid genotypes: each edge with a chance of one half, each operation alike, until valid."""
        n_pairs = len(self._pairs)
        while True:
            draws = rng.random(n_pairs + self._n - 2).tolist()
            matrix = self._no_edges()
            for (i, j), u in zip(self._pairs, draws, strict=False):
                matrix[i][j] = int(u < EDGE_SHARE)
            if self._is_valid(matrix):
                inner = [OPERATIONS[int(u * len(OPERATIONS))] for u in draws[n_pairs:]]
                return {"matrix": matrix, "ops": [INPUT, *inner, OUTPUT]}

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """Flip each edge and change each operation with a small chance, until the result is valid and different."""
        # Above one half a matrix would turn into its opposite, which may never be valid.
        edge_chance = min(0.5, self._options.mutation_rate / self._n)
        operation_chance = self._options.mutation_rate / (self._n - 2)
        n_pairs = len(self._pairs)
        while True:
            draws = rng.random(n_pairs + 2 * (self._n - 2)).tolist()
            child = _copy(genotype)
            changed = False
            for (i, j), u in zip(self._pairs, draws, strict=False):
                if u < edge_chance:
                    child["matrix"][i][j] ^= 1
                    changed = True
            for vertex in range(1, self._n - 1):
                u_change, u_label = draws[n_pairs + 2 * (vertex - 1) :][:2]
                if u_change < operation_chance:
                    others = _others(child["ops"][vertex])
                    child["ops"][vertex] = others[int(u_label * len(others))]
                    changed = True
            if changed and self._is_valid(child["matrix"]):
                return child

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each vertex, with its operation and the edges into it, from one of both; `first` where no try is valid."""
        for _ in range(CROSSOVER_ATTEMPTS):
            child = _copy(first)
            for vertex, u in enumerate(rng.random(self._n - 1).tolist(), 1):
                if u < 0.5:
                    child["ops"][vertex] = second["ops"][vertex]
                    for i in range(vertex):
                        child["matrix"][i][vertex] = second["matrix"][i][vertex]
            if self._is_valid(child["matrix"]):
                return child
        return _copy(first)

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every genotype with one edge flipped or one operation changed, once each.

        Mutations go further with some chance; those with a single change are among these.
        """
        for i, j in self._pairs:
            child = _copy(genotype)
            child["matrix"][i][j] ^= 1
            if self._is_valid(child["matrix"]):
                yield child
        for vertex in range(1, self._n - 1):
            for label in _others(genotype["ops"][vertex]):
                child = _copy(genotype)
                child["ops"][vertex] = label
                yield child

    def distance(self, first: Json, second: Json) -> float:
        """The share of edges and operations that differ, for strategies with species; 0 for equal genotypes."""
        edges: int = sum(
            one != other
            for row, other_row in zip(first["matrix"], second["matrix"], strict=True)
            for one, other in zip(row, other_row, strict=True)
        )
        labels: int = sum(one != other for one, other in zip(first["ops"], second["ops"], strict=True))
        return (edges + labels) / (len(self._pairs) + self._n - 2)

    def encode(self, genotype: Json) -> list[float]:
        """The upper triangle of the matrix, then each inner vertex's operation as one of three."""
        edges = [float(genotype["matrix"][i][j]) for i, j in self._pairs]
        return edges + [float(label == known) for label in genotype["ops"][1:-1] for known in OPERATIONS]

    def encode_paths(self, genotype: Json) -> list[float]:
        """See `nord_hpc.interfaces.HasPathEncoding`; the shorter paths come first."""
        code = [0.0] * self._n_paths
        self._mark_paths(code, genotype, vertex=0, length=0, place=0)
        return code

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or genotype.keys() != _KEYS:
            return False
        matrix, labels = genotype["matrix"], genotype["ops"]
        if not _is_list(matrix, self._n) or not _is_list(labels, self._n):
            return False
        for i, row in enumerate(matrix):
            # By type too: True and 1.0 are equal to 1.
            if not _is_list(row, self._n) or any(type(bit) is not int or bit not in (0, 1) for bit in row):
                return False
            if any(row[: i + 1]):
                return False
        if labels[0] != INPUT or labels[-1] != OUTPUT or any(label not in OPERATIONS for label in labels[1:-1]):
            return False
        return self._is_valid(matrix)

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The pruned cell, or its whole network."""
        cell = to_descriptor(ModelSpec(genotype["matrix"], genotype["ops"]))
        options = self._options
        if not options.network:
            return cell
        return network_descriptor(
            spec_of(cell),
            stem_channels=options.stem_channels,
            stacks=options.stacks,
            cells=options.cells,
            batch_norm_momentum=options.batch_norm_momentum,
        )

    def _mark_paths(self, code: list[float], genotype: Json, *, vertex: int, length: int, place: int) -> None:
        """Mark the paths that begin with this one: `length` inner vertices, whose labels make it number `place`."""
        for following in range(vertex + 1, self._n):
            if not genotype["matrix"][vertex][following]:
                continue
            if following == self._n - 1:
                code[_n_shorter(length) + place] = 1.0
            else:
                label = OPERATIONS.index(genotype["ops"][following])
                further = place * len(OPERATIONS) + label
                self._mark_paths(code, genotype, vertex=following, length=length + 1, place=further)

    def _no_edges(self) -> list[list[int]]:
        return [[0] * self._n for _ in range(self._n)]

    def _is_valid(self, matrix: list[list[int]]) -> bool:
        """Whether a path leads from input to output, and few enough edges lie on such paths."""
        kept = kept_vertices(matrix)
        return bool(kept) and sum(matrix[i][j] for i in kept for j in kept) <= self._options.max_edges


def _is_list(value: Json, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _n_shorter(length: int) -> int:
    """Paths of fewer inner vertices than this, by their labels."""
    return sum(len(OPERATIONS) ** n for n in range(length))


def _others(label: str) -> list[str]:
    return [other for other in OPERATIONS if other != label]


def _copy(genotype: Json) -> Json:
    return {"matrix": [row[:] for row in genotype["matrix"]], "ops": genotype["ops"][:]}

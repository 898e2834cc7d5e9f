"""The cells of NAS-Bench-201 as a search space, with its paper's operators; tables and training are left to others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.nasbench201.cell import (
    EDGES,
    N_CELLS,
    N_NODES,
    NONE,
    OPERATIONS,
    Cell,
    architecture_of,
    cell_of,
    is_architecture,
)
from nord_hpc.nasbench201.descriptors import from_descriptor, to_descriptor
from nord_hpc.nasbench201.network import CELLS, STAGES, STEM_CHANNELS, from_network, network_descriptor
from nord_hpc.trial import Json

NETWORKS_KEPT = 64
"""Whole networks, of hundreds of layers, that are remembered; of cells all are."""

_NUMBERS = {operation: number for number, operation in enumerate(OPERATIONS)}
_PASSING = tuple(operation for operation in OPERATIONS if operation != NONE)
_LABELS = [labels for length in range(1, N_NODES) for labels in product(_PASSING, repeat=length)]
_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""The ways from input to output, as positions in `EDGES`."""

_EDGES_INTO = {node: [place for place, (_, end) in enumerate(EDGES) if end == node] for node in range(1, N_NODES)}


class NasBench201:
    """Cells of four nodes whose six edges each have one of five operations.

    A genotype is the text of the cell in the benchmark: "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|".

    With `network` false the network is the cell itself, for the evaluator "nasbench201". With `network` true it is the
    whole one, for training.
    """

    class Options(BaseModel):
        """What becomes of cells.

        Attributes:
            network: whether descriptors are whole networks for training, and not cells for the table.
            stem_channels: of the whole network's stem and first stage.
            stages: of the whole network; channels double and maps are halved between them.
            cells: of each stage.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        network: bool = False
        stem_channels: int = Field(STEM_CHANNELS, ge=1)
        stages: int = Field(STAGES, ge=1, le=5)
        cells: int = Field(CELLS, ge=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sizes = {"stem_channels": options.stem_channels, "stages": options.stages, "cells": options.cells}
        self._kept: dict[str, NeuralDescriptor] = {}

    def sample(self, rng: np.random.Generator) -> Json:
        """Uniform over all cells."""
        return architecture_of(tuple([OPERATIONS[int(len(OPERATIONS) * u)] for u in rng.random(len(EDGES)).tolist()]))

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """The benchmark's: one of nodes 1 to 3, one of the edges into it, and another operation there, all alike.

        The single edge into node 1 changes three times as often as one of those into node 3.
        """
        u_node, u_edge, u_step = rng.random(3).tolist()
        places = _EDGES_INTO[1 + int(u_node * (N_NODES - 1))]
        place = places[int(u_edge * len(places))]
        cell = cell_of(genotype)
        number = _NUMBERS[cell[place]] + 1 + int(u_step * (len(OPERATIONS) - 1))
        return architecture_of((*cell[:place], OPERATIONS[number % len(OPERATIONS)], *cell[place + 1 :]))

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each edge's operation from one of both."""
        pairs = zip(cell_of(first), cell_of(second), rng.random(len(EDGES)).tolist(), strict=True)
        return architecture_of(tuple([one if u < 0.5 else other for one, other, u in pairs]))

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """The 24 cells that differ in one operation."""
        cell = cell_of(genotype)
        for place, operation in enumerate(cell):
            for other in OPERATIONS:
                if other != operation:
                    yield architecture_of((*cell[:place], other, *cell[place + 1 :]))

    def size(self) -> int:
        """15,625 genotypes; fewer networks, as some compute the same."""
        return N_CELLS

    def encode(self, genotype: Json) -> list[float]:
        """For each edge and operation 1 where it has it, else 0: 30 numbers."""
        return [float(operation == other) for operation in cell_of(genotype) for other in OPERATIONS]

    def encode_paths(self, genotype: Json) -> list[float]:
        """For each sequence of one to three operations other than "none", whether a path has it: 84 numbers."""
        cell = cell_of(genotype)
        found = {tuple(cell[place] for place in path) for path in _PATHS}
        return [float(labels in found) for labels in _LABELS]

    def decisions(self) -> tuple[int, ...]:
        """The operation of each edge."""
        return (len(OPERATIONS),) * len(EDGES)

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The cell of these numbers of operations."""
        return architecture_of(tuple([OPERATIONS[choice] for choice in choices]))

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        return is_architecture(genotype)

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The cell, or its whole network; equal calls may give the same object."""
        known = self._kept.get(genotype)
        if known is None:
            if self._options.network and len(self._kept) >= NETWORKS_KEPT:
                self._kept.clear()
            known = self._kept[genotype] = self._made(cell_of(genotype))
        return known

    def from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The cell whose descriptor this is; see `nord_hpc.nasbench201.from_descriptor`.

        Raises:
            Infeasible: there is none.
        """
        made = from_network(descriptor, **self._sizes) if self._options.network else from_descriptor(descriptor)
        return architecture_of(made)

    def _made(self, cell: Cell) -> NeuralDescriptor:
        return network_descriptor(cell, **self._sizes) if self._options.network else to_descriptor(cell)

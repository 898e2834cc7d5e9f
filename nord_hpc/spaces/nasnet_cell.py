"""The cells of NASNet as a search space: two cells of blocks, stacked. Their layers are left to `nasnet_layers`.

The genotype is the cells alone, so that a cell that was found in a small network is a point of the same space with more
repeats, filters or stages: transfer is a change of options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.spaces.nasnet_layers import DEFAULT_OPERATIONS, OPERATIONS, CellWriter, Stack
from nord_hpc.trial import Json

CELLS = ("normal", "reduction")
JOINS = ("add", "concat")
DECISIONS_A_BLOCK = 5
PATH_LENGTH = 3
"""Operations of the longest paths in a path encoding; White et al. cut it off, as long paths are rare and many."""

_KEYS = frozenset(CELLS)
_NAME = re.compile(r"cell\d+_(normal|reduction)\.block(\d+)\.(first|second)=([a-z0-9_]+)@(\d+)")
_JOIN_NAME = re.compile(r"cell\d+_(normal|reduction)\.block(\d+)\.(add|concat)")


class NasNetCell:
    """Normal and reduction cells of blocks; see Zoph et al., "Learning Transferable Architectures", arXiv 1707.07012.

    A genotype is {"normal": blocks, "reduction": blocks}. A block is [first input, second input, first operation,
    second operation, join]: inputs are 0 for the output of the cell before the last, 1 for that of the last one, and
    2 + k for block k of this cell. What no block of a cell reads is concatenated to its output.

    In a reduction cell the operations that read the cell's inputs have stride 2, and there are twice as many filters.
    The network: a stem, `repeats` normal cells, and for each further stage a reduction cell and `repeats` normal cells.
    Each normal cell shares its genotype, not its weights. The paper's auxiliary head and drop path are no part of it.
    """

    class Options(BaseModel):
        """What cells are made of, and the network around them; only the former decides what a genotype is.

        Attributes:
            blocks: of a cell.
            operations: to choose from.
            joins: of the two results of a block, to choose from.
            filters: of each block of the first stage.
            repeats: normal cells of a stage.
            stages: of the network, with a reduction cell between two of them.
            stem_multiplier: filters of the stem over those of the first stage.
            batch_norm_momentum: weight of the newest batch in the running statistics.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        blocks: int = Field(5, ge=1, le=12)
        operations: tuple[str, ...] = Field(DEFAULT_OPERATIONS, min_length=1)
        joins: tuple[str, ...] = Field(JOINS, min_length=1)
        filters: int = Field(32, ge=1)
        repeats: int = Field(2, ge=1)
        stages: int = Field(3, ge=1, le=6)
        stem_multiplier: int = Field(3, ge=1)
        batch_norm_momentum: float = Field(0.1, gt=0, le=1)

        @field_validator("operations")
        @classmethod
        def _operations_are_known(cls, operations: tuple[str, ...]) -> tuple[str, ...]:
            return _known(operations, tuple(OPERATIONS), "operation")

        @field_validator("joins")
        @classmethod
        def _joins_are_known(cls, joins: tuple[str, ...]) -> tuple[str, ...]:
            return _known(joins, JOINS, "join")

    def __init__(self, options: Options) -> None:
        self._options = options
        of_block = [(b + 2, b + 2, len(options.operations), len(options.operations)) for b in range(options.blocks)]
        of_cell = [n for block in of_block for n in (*block, len(options.joins))]
        self._decisions = tuple(of_cell * len(CELLS))
        self._open = [at for at, n in enumerate(self._decisions) if n > 1]
        self._operation_index = {name: index for index, name in enumerate(options.operations)}
        self._join_index = {name: index for index, name in enumerate(options.joins)}
        self._stack = Stack(
            filters=options.filters,
            repeats=options.repeats,
            stages=options.stages,
            stem_filters=options.filters * options.stem_multiplier,
            batch_norm_momentum=options.batch_norm_momentum,
        )

    def sample(self, rng: np.random.Generator) -> Json:
        """Uniform: each decision on its own."""
        draws = rng.random(len(self._decisions)).tolist()
        return self.from_decisions([int(u * n) for u, n in zip(draws, self._decisions, strict=True)])

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """One decision, whichever, made anew: another input, operation or join of one block of one cell."""
        choices = self._choices(genotype)
        u_place, u_step = rng.random(2).tolist()
        at = self._open[int(u_place * len(self._open))]
        n = self._decisions[at]
        choices[at] = (choices[at] + 1 + int(u_step * (n - 1))) % n
        return self.from_decisions(choices)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each block from one of both, at its place."""
        draws = iter(rng.random(len(CELLS) * self._options.blocks).tolist())
        return {
            cell: [list(a if next(draws) < 0.5 else b) for a, b in zip(first[cell], second[cell], strict=True)]
            for cell in CELLS
        }

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or genotype.keys() != _KEYS:
            return False
        return all(self._is_cell(genotype[cell]) for cell in CELLS)

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every genotype with one decision made differently."""
        choices = self._choices(genotype)
        for at in self._open:
            for choice in range(self._decisions[at]):
                if choice != choices[at]:
                    yield self.from_decisions([*choices[:at], choice, *choices[at + 1 :]])

    def size(self) -> int:
        """Genotypes; several of them can be one network, as the order of a block's operands does not matter."""
        return math.prod(self._decisions)

    def decisions(self) -> tuple[int, ...]:
        """For each block of the normal cell, then of the reduction cell: two inputs, two operations, the join."""
        return self._decisions

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The point of these choices, each an index into its alternatives."""
        operations, joins = self._options.operations, self._options.joins
        blocks = [
            [int(i), int(j), operations[a], operations[b], joins[join]]
            for i, j, a, b, join in zip(*[iter(choices)] * DECISIONS_A_BLOCK, strict=True)
        ]
        return {"normal": blocks[: self._options.blocks], "reduction": blocks[self._options.blocks :]}

    def encode(self, genotype: Json) -> list[float]:
        """One-hot: for each decision as many numbers as it has alternatives."""
        numbers = [0.0] * sum(self._decisions)
        begin = 0
        for choice, n in zip(self._choices(genotype), self._decisions, strict=True):
            numbers[begin + choice] = 1.0
            begin += n
        return numbers

    def encode_paths(self, genotype: Json) -> list[float]:
        """For each cell, each of its inputs and each sequence of up to `PATH_LENGTH` operations, whether it is there.

        Paths lead from an input to the cell's output, through the blocks; longer ones are left out.
        """
        return [number for cell in CELLS for number in self._cell_paths(genotype[cell])]

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The whole network but its head."""
        return CellWriter(self._stack, normal=genotype["normal"], reduction=genotype["reduction"]).write()

    def from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The point whose network this is, read from the names of the layers and then compared as a whole.

        A network of one stage has no reduction cell; it gets one of first choices.

        Raises:
            Infeasible: there is none, or the layers were renamed.
        """
        genotype = self.from_decisions([0] * len(self._decisions))
        for name in descriptor.layers:
            if (found := _NAME.fullmatch(name)) is not None:
                cell, block, place, operation, source = found.groups()
                is_second = place == "second"
                changes: list[tuple[int, Json]] = [(is_second, int(source)), (2 + is_second, operation)]
            elif (found := _JOIN_NAME.fullmatch(name)) is not None:
                cell, block, join = found.groups()
                changes = [(4, join)]
            else:
                continue
            if int(block) >= self._options.blocks:
                raise Infeasible(f"a cell has more than {self._options.blocks} blocks", layer=name)
            for at, value in changes:
                genotype[cell][int(block)][at] = value
        if not self.contains(genotype):
            raise Infeasible("the descriptor's cells are not made of this space's operations, inputs and joins")
        if self.to_descriptor(genotype).canonical_hash() != descriptor.canonical_hash():
            raise Infeasible("the descriptor is not a network of this space with its filters, repeats and stages")
        return genotype

    def _choices(self, genotype: Json) -> list[int]:
        operation, join = self._operation_index, self._join_index
        return [
            choice
            for cell in CELLS
            for i, j, a, b, how in genotype[cell]
            for choice in (i, j, operation[a], operation[b], join[how])
        ]

    def _is_cell(self, blocks: Json) -> bool:
        if not isinstance(blocks, list) or len(blocks) != self._options.blocks:
            return False
        return all(self._is_block(block, b + 2) for b, block in enumerate(blocks))

    def _is_block(self, block: Json, n_inputs: int) -> bool:
        if not isinstance(block, list) or len(block) != DECISIONS_A_BLOCK:
            return False
        # By type too: True and 1.0 are equal to 1.
        if not all(type(source) is int and 0 <= source < n_inputs for source in block[:2]):
            return False
        if not all(isinstance(label, str) for label in block[2:]):
            return False
        return all(label in self._operation_index for label in block[2:4]) and block[4] in self._join_index

    def _cell_paths(self, blocks: Json) -> list[float]:
        n = len(self._operation_index)
        offsets = [sum(n**length for length in range(1, k)) for k in range(1, PATH_LENGTH + 2)]
        # The sequences of operations that lead to each state, as (input, operations so far).
        paths: list[set[tuple[int, ...]]] = [{(0,)}, {(1,)}]
        read = {source for block in blocks for source in block[:2]}
        for i, j, a, b, _ in blocks:
            steps = ((i, self._operation_index[a]), (j, self._operation_index[b]))
            paths.append(
                {
                    (*path, operation)
                    for source, operation in steps
                    for path in paths[source]
                    if len(path) <= PATH_LENGTH
                }
            )
        numbers = [0.0] * (2 * offsets[-1])
        outputs = [found for state, found in enumerate(paths) if state > 1 and state not in read]
        for source, *operations in set().union(*outputs):
            index = 0
            for operation in operations:
                index = index * n + operation
            numbers[source * offsets[-1] + offsets[len(operations) - 1] + index] = 1.0
        return numbers


def _known(given: tuple[str, ...], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    for name in given:
        if name not in known:
            raise ValueError(f"{what} {name!r} is unknown; set any of {', '.join(known)}")
    if len(set(given)) < len(given):
        raise ValueError(f"each {what} counts once: {', '.join(given)}")
    return given

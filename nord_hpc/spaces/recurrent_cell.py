"""Recurrent cells as a search space, the trees of Zoph and Le 2017; what computes and trains them is left to others.

"Neural Architecture Search with Reinforcement Learning" (arXiv 1611.01578), section 3.4: with 8 leaves there are 6 x
10^16 cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.builder.cell_trees import ACTIVATIONS, COMBINATIONS, CellTree
from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.trial import Json


class RecurrentCell:
    """A genotype is the JSON form of a `CellTree`: {"nodes", "inject", "read", "write"}.

    The decisions of a genotype, in this order: combination and activation of each node, combination and activation with
    which the memory comes in, the node where it comes in, the node where it goes out. Cells that differ only in the
    order in which nodes are merged are one network, with one canonical hash.

    The network is an embedding of the tokens and layers of the cell, all of one width; the evaluator adds the dense
    layer that predicts the next token.
    """

    class Options(BaseModel):
        """How large cells and networks are.

        Attributes:
            base: leaves of the tree.
            width: values of the state, of the memory and of a token's vector.
            layers: of the cell, one upon the other, with weights of their own.
            dropout: probability, behind the embedding and behind each layer.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        base: Literal[2, 4, 8, 16] = 8
        width: int = Field(64, ge=1)
        layers: int = Field(1, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, options: Options) -> None:
        self._options = options
        self._n_nodes = 2 * options.base - 1
        choice = (len(COMBINATIONS), len(ACTIVATIONS))
        self._decisions = (*choice * (self._n_nodes + 1), self._n_nodes, self._n_nodes)

    def sample(self, rng: np.random.Generator) -> Json:
        """Uniform: each decision for itself."""
        return self.from_decisions([int(u * n) for u, n in zip(self._draws(rng), self._decisions, strict=True)])

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """Another alternative in one decision."""
        choices = self.to_decisions(genotype)
        where, what = rng.random(2).tolist()
        place = int(where * len(choices))
        other = int(what * (self._decisions[place] - 1))
        choices[place] = other + (other >= choices[place])
        return self.from_decisions(choices)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each decision from one of both."""
        pairs = zip(self.to_decisions(first), self.to_decisions(second), self._draws(rng), strict=True)
        return self.from_decisions([one if u < 0.5 else other for one, other, u in pairs])

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every genotype with one other decision."""
        choices = self.to_decisions(genotype)
        for place, n in enumerate(self._decisions):
            for other in range(n):
                if other != choices[place]:
                    yield self.from_decisions([*choices[:place], other, *choices[place + 1 :]])

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        try:
            tree = CellTree.from_json(genotype)
        except ValueError:
            return False
        # By type too: a genotype is the JSON form itself.
        return tree.base == self._options.base and type(genotype) is dict and tree.to_json() == genotype

    def size(self) -> int:
        """Genotypes; drawings of one cell count apart."""
        size = 1
        for n in self._decisions:
            size *= n
        return size

    def decisions(self) -> tuple[int, ...]:
        """The number of alternatives of each decision; see the class for their order."""
        return self._decisions

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The genotype of these choices."""
        made = [
            [COMBINATIONS[choices[place]], ACTIVATIONS[choices[place + 1]]]
            for place in range(0, 2 * self._n_nodes + 2, 2)
        ]
        return {"nodes": made[:-1], "inject": made[-1], "read": int(choices[-2]), "write": int(choices[-1])}

    def to_decisions(self, genotype: Json) -> list[int]:
        """The choices that `from_decisions` makes this genotype of."""
        choices = []
        for combination, activation in (*genotype["nodes"], genotype["inject"]):
            choices += [COMBINATIONS.index(combination), ACTIVATIONS.index(activation)]
        return [*choices, genotype["read"], genotype["write"]]

    def encode(self, genotype: Json) -> list[float]:
        """One number for each alternative of each decision of the cell's canonical drawing: 1 where it is chosen."""
        choices = self.to_decisions(CellTree.from_json(genotype).canonical().to_json())
        return [
            float(alternative == choice)
            for choice, n in zip(choices, self._decisions, strict=True)
            for alternative in range(n)
        ]

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """Embedding and layers of the cell, in its canonical drawing."""
        options = self._options
        cell = CellTree.from_json(genotype).canonical().to_json()
        descriptor = NeuralDescriptor()
        descriptor.add_layer("Embedding", {"embedding_dim": options.width}, "embedding")
        for number in range(options.layers + 1):
            if number:
                descriptor.add_layer_sequential(
                    "RecurrentCell", {"hidden_size": options.width, "cell": cell}, f"cell{number}"
                )
            if options.dropout:
                descriptor.add_layer_sequential("Dropout", {"p": options.dropout}, f"dropout{number}")
        return descriptor

    def from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The canonical drawing of the cell whose network this is.

        Raises:
            Infeasible: it is no network of this space.
        """
        layers = descriptor.layers.values()
        cell = next((_cell_of(layer) for layer in layers if layer.kind == "RecurrentCell"), None)
        if not self.contains(cell) or self.to_descriptor(cell).canonical_hash() != descriptor.canonical_hash():
            raise Infeasible("the descriptor is no network of recurrent_cell with these options")
        return CellTree.from_json(cell).canonical().to_json()

    def _draws(self, rng: np.random.Generator) -> list[float]:
        draws: list[float] = rng.random(len(self._decisions)).tolist()
        return draws


def _cell_of(layer: Layer) -> Json:
    return layer.parameters.get("cell")

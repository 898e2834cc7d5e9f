"""Layers for sequences, as torch modules: embedding, recurrent cell, dense layer at each position, and no costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from nord_hpc.builder.cell_trees import CellTree
from nord_hpc.trial import Json

State = tuple[torch.Tensor, torch.Tensor]
"""h and c, [N, H] each."""

_COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"add": torch.add, "elem_mult": torch.mul}
_ACTIVATE: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "identity": None,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


class Embedding(nn.Module):
    """A vector for each token: indices [N, T] to [N, C, T].

    The same as a 1 x 1 convolution without bias of the tokens' one-hot vectors, so it takes maps [N, V, T] as well.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim).normal_())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            return functional.linear(x.transpose(1, 2), self.weight.t()).transpose(1, 2)
        return functional.embedding(x, self.weight).transpose(1, 2)


class PositionLinear(nn.Module):
    """A dense layer at each position: [N, C, T] to [N, K, T].

    Args:
        tied: whether the weight is that of an `Embedding` of K tokens, which `tie` hands over, and not its own.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, tied: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = None if tied else nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None
        self._source: tuple[Embedding, ...] = ()  # in a tuple, as a module's weight must not be listed twice

    def tie(self, embedding: Embedding) -> None:
        """Take the weight from there, scaled to what a dense layer begins with; before any training."""
        self._source = (embedding,)
        with torch.no_grad():
            embedding.weight.div_(math.sqrt(3 * embedding.weight.shape[1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._source[0].weight if self.weight is None else self.weight
        return functional.linear(x.transpose(1, 2), weight, self.bias).transpose(1, 2)


class RecurrentCell(nn.Module):
    """A cell of `CellTree`, run along a sequence: [N, C, T] to [N, H, T].

    Attributes:
        weight_input, bias: of the leaves, [leaves x H, C] and [leaves x H], one leaf after the other.
        weight_hidden: likewise, [leaves x H, H].
        initial: the state that the next call begins with; None for zeros. Whoever carries states sets it.
        final: the state that the last call ended with, without history.
    """

    def __init__(self, input_size: int, hidden_size: int, cell: Json) -> None:
        super().__init__()
        self.tree = CellTree.from_json(cell)
        self.hidden_size = hidden_size
        width = self.tree.base * hidden_size
        bound = 1 / math.sqrt(hidden_size)
        self.weight_input = nn.Parameter(torch.empty(width, input_size).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(width, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.initial: State | None = None
        self.final: State | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The input's share of all steps is one product; that of the state must be made step by step.
        inputs_TNP = functional.linear(x.permute(2, 0, 1), self.weight_input, self.bias)
        if self.initial is None:
            h_NH = c_NH = inputs_TNP.new_zeros((x.shape[0], self.hidden_size))
        else:
            h_NH, c_NH = self.initial
        outputs = []
        for inputs_NP in inputs_TNP.unbind(0):
            h_NH, c_NH = self._step(inputs_NP, h_NH, c_NH)
            outputs.append(h_NH)
        self.final = h_NH.detach(), c_NH.detach()
        return torch.stack(outputs, dim=1).transpose(1, 2)

    def _step(self, inputs_NP: torch.Tensor, h_NH: torch.Tensor, c_NH: torch.Tensor) -> State:
        tree = self.tree
        inputs = inputs_NP.chunk(tree.base, dim=1)
        hidden = functional.linear(h_NH, self.weight_hidden).chunk(tree.base, dim=1)
        written = c_NH
        values: list[torch.Tensor] = []
        for node, (combination, activation) in enumerate(tree.nodes):
            if node < tree.base:
                first, second = inputs[node], hidden[node]
            else:
                left, right = tree.children(node)
                first, second = values[left], values[right]
            value = _COMBINE[combination](first, second)
            if node == tree.write:
                written = value
            value = _activated(value, activation)
            if node == tree.read:
                value = _activated(_COMBINE[tree.inject[0]](value, c_NH), tree.inject[1])
            values.append(value)
        return values[-1], written


def _activated(value: torch.Tensor, activation: str) -> torch.Tensor:
    function = _ACTIVATE[activation]
    return value if function is None else function(value)

"""Recurrent cells as trees of choices, after Zoph and Le 2017; what computes them is the layer in `recurrent`.

"Neural Architecture Search with Reinforcement Learning" (arXiv 1611.01578), section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nord_hpc.trial import Json

COMBINATIONS = ("add", "elem_mult")
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu")
BASES = (2, 4, 8, 16)

Choice = tuple[str, str]
"""A combination and the activation after it."""

_KEYS = frozenset({"nodes", "inject", "read", "write"})


@dataclass(frozen=True, slots=True)
class CellTree:
    """A cell: from the input x_t, the state h_(t-1) and the memory c_(t-1) to h_t and c_t.

    The first half of the nodes and one more are leaves: leaf k is activation(W_k x_t + b_k  combination  U_k h_(t-1)),
    with weights of its own. Every other node merges two nodes without weights, level by level: with B leaves, node
    B + k merges the nodes 2 k and 2 k + 1. The last node, the root, is h_t. At one node, `read`, the memory comes in:
    its output becomes activation(output combination c_(t-1)) by the choice `inject`. At one node, `write`, it goes out:
    c_t is that node's combination, before its activation.

    Attributes:
        nodes: 2 B - 1 of them, B a power of two.
        inject: how the memory comes in.
        read, write: nodes.
    """

    nodes: tuple[Choice, ...]
    inject: Choice
    read: int
    write: int

    @property
    def base(self) -> int:
        """Leaves."""
        return (len(self.nodes) + 1) // 2

    def children(self, node: int) -> tuple[int, int]:
        """The two nodes that an inner node merges."""
        first = 2 * (node - self.base)
        return first, first + 1

    def to_json(self) -> dict[str, Json]:
        return {
            "nodes": [list(choice) for choice in self.nodes],
            "inject": list(self.inject),
            "read": self.read,
            "write": self.write,
        }

    @classmethod
    def from_json(cls, value: Json) -> CellTree:
        """The tree that `to_json` was called on.

        Raises:
            ValueError: it is none; one line says what is wrong.
        """
        if not isinstance(value, Mapping) or value.keys() != _KEYS:
            raise ValueError(f"is not a cell: give a mapping with {', '.join(sorted(_KEYS))}")
        nodes = value["nodes"]
        if not isinstance(nodes, (list, tuple)) or (len(nodes) + 1) // 2 not in BASES or len(nodes) % 2 == 0:
            raise ValueError(f"has not 2 B - 1 nodes with B of {', '.join(map(str, BASES))}")
        for place in ("read", "write"):
            if type(value[place]) is not int or not 0 <= value[place] < len(nodes):
                raise ValueError(f"has {place} {value[place]!r}: set a node, 0 to {len(nodes) - 1}")
        return cls(tuple(_choice(node) for node in nodes), _choice(value["inject"]), value["read"], value["write"])

    def canonical(self) -> CellTree:
        """The same for all trees that differ in the order of the children of their nodes: both combinations commute."""
        levels: list[list[int]] = [[] for _ in range(self.base.bit_length())]
        keys: list[Any] = []
        for node in range(len(self.nodes)):
            own = (*self.nodes[node], node == self.read, node == self.write)
            keys.append((own, *sorted(keys[child] for child in self.children(node))) if node >= self.base else (own,))

        def visit(node: int, depth: int) -> None:
            levels[depth].append(node)
            if node >= self.base:
                for child in sorted(self.children(node), key=keys.__getitem__):
                    visit(child, depth + 1)

        visit(len(self.nodes) - 1, 0)
        order = [node for level in reversed(levels) for node in level]
        return CellTree(
            tuple(self.nodes[node] for node in order), self.inject, order.index(self.read), order.index(self.write)
        )


def _choice(value: Any) -> Choice:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        combination, activation = value
        if combination in COMBINATIONS and activation in ACTIVATIONS:
            return str(combination), str(activation)
    raise ValueError(
        f"has the choice {value!r}: set one of {', '.join(COMBINATIONS)} and one of {', '.join(ACTIVATIONS)}"
    )


LSTM = CellTree(
    nodes=(
        ("add", "sigmoid"),  # 0: forget gate; here the memory comes in
        ("add", "identity"),  # 1: nothing, with weights of zero, as are 5, 6 and 7
        ("add", "sigmoid"),  # 2: input gate
        ("add", "tanh"),  # 3: what is new
        ("add", "identity"),  # 4: output gate, whose activation stands in node 13
        ("add", "identity"),
        ("add", "identity"),
        ("add", "identity"),
        ("add", "identity"),  # 8: forget gate x memory
        ("elem_mult", "identity"),  # 9: input gate x what is new
        ("add", "identity"),
        ("add", "identity"),
        ("add", "tanh"),  # 12: the memory, as it goes out, and its tanh
        ("add", "sigmoid"),
        ("elem_mult", "identity"),  # 14: output gate x tanh(memory)
    ),
    inject=("elem_mult", "identity"),
    read=0,
    write=12,
)
"""The LSTM in the space of base 8, where four of the eight leaves have weights of zero."""

TANH = CellTree(nodes=(*[("add", "identity")] * 14, ("add", "tanh")), inject=("add", "identity"), read=1, write=1)
"""The simple recurrent cell tanh(W x + b + U h): all leaves but one have weights of zero, so the memory stays zero."""

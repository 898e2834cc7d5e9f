"""Recurrent cells as trees: their JSON form, their canonical drawing, what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from nord_hpc.builder.cell_trees import ACTIVATIONS, BASES, COMBINATIONS, LSTM, TANH, CellTree


def random_tree(rng: random.Random, base: int) -> CellTree:
    def choice() -> tuple[str, str]:
        return rng.choice(COMBINATIONS), rng.choice(ACTIVATIONS)

    n = 2 * base - 1
    return CellTree(tuple(choice() for _ in range(n)), choice(), rng.randrange(n), rng.randrange(n))


def redrawn(tree: CellTree, rng: random.Random) -> CellTree:
    """The same cell with the children of some nodes swapped."""
    levels: list[list[int]] = []

    def visit(node: int, depth: int) -> None:
        while len(levels) <= depth:
            levels.append([])
        levels[depth].append(node)
        if node >= tree.base:
            children = list(tree.children(node))
            rng.shuffle(children)
            for child in children:
                visit(child, depth + 1)

    visit(len(tree.nodes) - 1, 0)
    order = [node for level in reversed(levels) for node in level]
    return CellTree(tuple(tree.nodes[n] for n in order), tree.inject, order.index(tree.read), order.index(tree.write))


def test_the_tree_is_balanced() -> None:
    assert LSTM.base == 8
    assert [LSTM.children(node) for node in range(8, 15)] == [
        (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13),
    ]  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_drawings_of_one_cell_have_one_canonical_form(base: int) -> None:
    rng = random.Random(base)
    different = 0
    for _ in range(50):
        tree = random_tree(rng, base)
        other = redrawn(tree, rng)
        different += other != tree
        assert other.canonical() == tree.canonical()
        assert tree.canonical().canonical() == tree.canonical()
        assert sorted(tree.canonical().nodes) == sorted(tree.nodes)
        assert CellTree.from_json(json.loads(json.dumps(tree.to_json()))) == tree
    assert different > 10


def test_other_cells_have_another_canonical_form() -> None:
    rng = random.Random(0)
    for _ in range(50):
        tree = random_tree(rng, 4)
        moved = CellTree(tree.nodes, tree.inject, tree.read, (tree.write + 4) % 7)  # to another level
        assert moved.canonical() != tree.canonical()
    assert LSTM.canonical() != TANH.canonical()
    # Which of two equal leaves is written matters only if the other one is read.
    nodes = (("add", "tanh"),) * 7
    first, second, both = (CellTree(nodes, ("add", "tanh"), 0, write) for write in (1, 2, 0))
    assert len({tree.canonical() for tree in (first, second, both)}) == 3
    assert second.canonical() == CellTree(nodes, ("add", "tanh"), 0, 3).canonical()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": 15}, "has read 15: set a node, 0 to 14"),
        ({"write": True}, "has write True: set a node, 0 to 14"),
        ({"nodes": [["add", "tanh"]] * 14}, "has not 2 B - 1 nodes with B of 2, 4, 8, 16"),
        ({"nodes": [["add", "tanh"]] * 5}, "has not 2 B - 1 nodes with B of 2, 4, 8, 16"),
        (
            {"inject": ["max", "tanh"]},
            "has the choice ['max', 'tanh']: set one of add, elem_mult and one of identity, tanh, sigmoid, relu",
        ),
        ({"more": 1}, "is not a cell: give a mapping with inject, nodes, read, write"),
    ],
)
def test_what_is_no_cell_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CellTree.from_json({**LSTM.to_json(), **change})
    assert str(caught.value) == message

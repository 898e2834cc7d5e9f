"""Recurrent cells as a search space: the suite of all spaces, its size, decisions, encodings and networks."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, text_of
from pydantic import ValidationError

from nord_hpc.builder.cell_trees import LSTM, TANH, CellTree
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible


class TestRecurrentCells(SpaceSuite):
    name = "recurrent_cell"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "smallest": {"base": 2, "width": 3},
        "deep": {"base": 4, "layers": 3, "dropout": 0.2},
    }
    input_shape = (12, 6)
    n_outputs = 12


def test_there_are_six_times_ten_to_the_16_cells() -> None:
    space = make_space("recurrent_cell", {})
    assert space.size() == 8**15 * 8 * 15 * 15
    assert space.size() == pytest.approx(6e16, rel=0.06)
    assert space.decisions() == (2, 4) * 16 + (15, 15)


def test_decisions_and_genotypes_are_one_to_one() -> None:
    space = make_space("recurrent_cell", {"base": 4})
    rng = generator(0)
    for _ in range(50):
        genotype = space.sample(rng)
        choices = space.to_decisions(genotype)
        assert all(0 <= choice < n for choice, n in zip(choices, space.decisions(), strict=True))
        assert space.from_decisions(choices) == genotype
    assert space.contains(space.from_decisions([0] * len(choices)))
    n_neighbours = sum(n - 1 for n in space.decisions())
    assert len(list(space.neighbours(genotype))) == n_neighbours == 8 * (1 + 3) + 2 * 6


def test_lstm_and_tanh_cells_are_points() -> None:
    space = make_space("recurrent_cell", {})
    for tree in (LSTM, TANH):
        assert space.contains(tree.to_json())
        found = space.from_descriptor(space.to_descriptor(tree.to_json()))
        assert CellTree.from_json(found) == tree.canonical()
    assert not make_space("recurrent_cell", {"base": 4}).contains(LSTM.to_json())


def test_drawings_of_one_cell_are_one_network_and_one_encoding() -> None:
    space = make_space("recurrent_cell", {"base": 4, "layers": 2})
    first, second, third, fourth = ["add", "tanh"], ["add", "relu"], ["elem_mult", "sigmoid"], ["add", "identity"]
    tree = {"nodes": [first, second, third, fourth, first, second, third], "inject": first, "read": 0, "write": 5}
    drawn = {"nodes": [fourth, third, first, second, second, first, third], "inject": first, "read": 2, "write": 4}
    other = {**drawn, "read": 3}
    hashes = [space.to_descriptor(genotype).canonical_hash() for genotype in (tree, drawn, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    codes = [space.encode(genotype) for genotype in (tree, drawn, other)]
    assert codes[0] == codes[1] != codes[2]
    assert len(codes[0]) == sum(space.decisions()) and sum(codes[0]) == len(space.decisions())


def test_crossover_takes_each_decision_from_a_parent() -> None:
    space = make_space("recurrent_cell", {})
    rng = generator(2)
    first, second = space.sample(rng), space.sample(rng)
    child = space.crossover(first, second, rng)
    triples = zip(*map(space.to_decisions, (first, second, child)), strict=True)
    assert all(got in (one, other) for one, other, got in triples)
    assert text_of(child) not in (text_of(first), text_of(second))


def test_networks_say_what_the_options_say() -> None:
    space = make_space("recurrent_cell", {"width": 7, "layers": 2, "dropout": 0.25})
    descriptor = space.to_descriptor(LSTM.to_json())
    assert [(layer.kind, name) for name, layer in descriptor.layers.items()] == [
        ("Embedding", "embedding"),
        ("Dropout", "dropout0"),
        ("RecurrentCell", "cell1"),
        ("Dropout", "dropout1"),
        ("RecurrentCell", "cell2"),
        ("Dropout", "dropout2"),
    ]
    assert descriptor.layers["cell2"].parameters["hidden_size"] == 7
    again = NeuralDescriptor.from_json(descriptor.to_json())
    assert space.from_descriptor(again) == LSTM.canonical().to_json()
    with pytest.raises(Infeasible, match="the descriptor is no network of recurrent_cell with these options"):
        make_space("recurrent_cell", {"width": 8, "layers": 2, "dropout": 0.25}).from_descriptor(descriptor)


@pytest.mark.parametrize(
    "change",
    [{"read": 3.0}, {"write": True}, {"read": 15}, {"inject": ["add"]}, {"inject": ("add", "tanh")}, {"more": 1}],
)
def test_near_genotypes_are_not_contained(change: dict[str, Any]) -> None:
    space = make_space("recurrent_cell", {})
    assert not space.contains({**LSTM.to_json(), **change})


def test_options_are_checked() -> None:
    for options in ({"base": 3}, {"width": 0}, {"layers": 0}, {"dropout": 1.0}, {"cells": 2}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            make_space("recurrent_cell", options)

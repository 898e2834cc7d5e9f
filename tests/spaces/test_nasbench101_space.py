"""The cells of NAS-Bench-101 as a search space: the suite of all spaces, the paper's sampling, cells and networks."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, text_of
from nasbench101_example import DOCUMENTED, DOCUMENTED_HASH, matrix_of
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.nasbench101 import CONV1X1, CONV3X3, INPUT, MAXPOOL3X3, OPERATIONS, OUTPUT, count_parameters, spec_of

SMALL_NETWORK = {"network": True, "stem_channels": 8, "stacks": 2, "cells": 1}


class TestCells(SpaceSuite):
    """As cells, which are for tables: nothing builds them."""

    name = "nasbench101"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "smallest": {"vertices": 3, "max_edges": 3, "mutation_rate": 3.0},
        "few_edges": {"vertices": 6, "max_edges": 4, "mutation_rate": 0.5},
    }
    infeasible_share = 1.0
    mutations_are_neighbours = False


class TestNetworks(SpaceSuite):
    """As whole networks, which the builder makes all of."""

    name = "nasbench101"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"network": SMALL_NETWORK}
    input_shape = (3, 16, 16)
    mutations_are_neighbours = False


def cell(edges: str, *inner: str) -> dict[str, Any]:
    return {"matrix": matrix_of(len(inner) + 2, edges), "ops": [INPUT, *inner, OUTPUT]}


def test_samples_are_uniform_over_valid_genotypes() -> None:
    space = make_space("nasbench101", {"vertices": 4})
    valid = {
        text_of(genotype)
        for bits in product((0, 1), repeat=6)
        for inner in product(OPERATIONS, repeat=2)
        if space.contains(genotype := _genotype_of(bits, inner))
    }
    rng = generator(0)
    n_samples = 40 * len(valid)
    counts = Counter(text_of(space.sample(rng)) for _ in range(n_samples))
    assert counts.keys() == valid
    chi_square = sum((counts[text] - 40) ** 2 / 40 for text in valid)
    degrees = len(valid) - 1
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def _genotype_of(bits: tuple[int, ...], inner: tuple[str, ...]) -> dict[str, Any]:
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    edges = " ".join(f"{i}-{j}" for (i, j), bit in zip(pairs, bits, strict=True) if bit)
    return cell(edges, *inner) if edges else {"matrix": [[0] * 4 for _ in range(4)], "ops": [INPUT, *inner, OUTPUT]}


def test_the_space_reaches_all_cells_of_up_to_four_vertices() -> None:
    space = make_space("nasbench101", {"vertices": 4})
    reached = {text_of(space.sample(generator(0)))}
    open_texts = list(reached)
    while open_texts:
        for neighbour in space.neighbours(json.loads(open_texts.pop())):
            if (text := text_of(neighbour)) not in reached:
                reached.add(text)
                open_texts.append(text)
    descriptors = [space.to_descriptor(json.loads(text)) for text in reached]
    assert len({descriptor.canonical_hash() for descriptor in descriptors}) == 91
    assert len({spec_of(descriptor).module_hash for descriptor in descriptors}) == 91


def test_mutations_change_an_edge_in_seven_and_one_operation() -> None:
    space = make_space("nasbench101", {})
    rng = generator(3)
    parent = cell("0-1 1-2 2-3 3-4 4-5 5-6", *[CONV3X3] * 5)
    n_edges = n_labels = 0
    for _ in range(2000):
        child = space.mutate(parent, rng)
        n_edges += sum(
            a != b for rows in zip(parent["matrix"], child["matrix"], strict=True) for a, b in zip(*rows, strict=True)
        )
        n_labels += sum(a != b for a, b in zip(parent["ops"], child["ops"], strict=True))
    # 21 edges with a chance of 1 / 7; that the result must be valid shifts it a little.
    assert n_edges / 2000 == pytest.approx(3, abs=0.2)
    assert n_labels / 2000 == pytest.approx(1, abs=0.1)


def test_mutations_of_high_rate_come_to_an_end() -> None:
    space = make_space("nasbench101", {"vertices": 3, "mutation_rate": 3.0})
    rng = generator(1)
    # Its opposite, with all edges flipped, leads nowhere.
    parent = cell("0-1 1-2 0-2", CONV3X3)
    assert len({text_of(space.mutate(parent, rng)) for _ in range(200)}) > 5


def test_dead_vertices_and_drawings_do_not_make_another_network() -> None:
    first = cell("0-1 0-2 1-3 2-3 3-4", CONV3X3, CONV1X1, MAXPOOL3X3)
    second = cell("0-1 0-2 1-3 2-3 3-4", CONV1X1, CONV3X3, MAXPOOL3X3)
    for options in ({"vertices": 5}, {"vertices": 5, **SMALL_NETWORK}):
        space = make_space("nasbench101", options)
        hashes = {space.to_descriptor(genotype).canonical_hash() for genotype in (first, second)}
        assert len(hashes) == 1
    wide = make_space("nasbench101", {})
    chain = cell("0-1 1-6 0-2 2-3 4-6", *[CONV3X3] * 5)
    other = cell("0-3 3-6", *[CONV3X3] * 5)
    assert wide.to_descriptor(chain).canonical_hash() == wide.to_descriptor(other).canonical_hash()


def test_reversed_keys_are_the_same_genotype() -> None:
    space = make_space("nasbench101", {})
    genotype = {"matrix": [list(row) for row in DOCUMENTED.matrix], "ops": list(DOCUMENTED.operations)}
    backwards = dict(reversed(genotype.items()))
    assert space.contains(backwards)
    assert spec_of(space.to_descriptor(backwards)).module_hash == DOCUMENTED_HASH


def test_networks_are_as_large_as_the_benchmarks() -> None:
    space = make_space("nasbench101", {"network": True})
    genotype = {"matrix": [list(row) for row in DOCUMENTED.matrix], "ops": list(DOCUMENTED.operations)}
    planned = plan(space.to_descriptor(genotype), input_shape=(3, 32, 32), n_outputs=10)
    assert planned.n_parameters == count_parameters(DOCUMENTED) == 2_694_282


def test_more_edges_than_allowed_count_only_where_they_lead_somewhere() -> None:
    space = make_space("nasbench101", {})
    labels = [MAXPOOL3X3, CONV1X1, CONV3X3, CONV3X3, CONV3X3]
    assert space.contains(cell("0-1 0-3 0-5 0-6 1-4 1-5 1-6 2-3 2-5 2-6 3-5 3-6 5-6", *labels))
    assert not space.contains(cell("0-1 0-2 0-3 0-5 0-6 1-5 1-6 2-3 2-6 3-5 3-6 5-6", *labels))
    assert not space.contains(cell("0-1 0-2 1-3", *labels))


@pytest.mark.parametrize(
    "change",
    [
        {"matrix": [[0, True, 0], [0, 0, 1], [0, 0, 0]]},
        {"matrix": [[0, 1.0, 0], [0, 0, 1], [0, 0, 0]]},
        {"matrix": [[0, 1, 0], [0, 1, 1], [0, 0, 0]]},
        {"matrix": [[0, 1, 0], [0, 0, 1]]},
        {"ops": [INPUT, "conv5x5", OUTPUT]},
        {"ops": [INPUT, OUTPUT, OUTPUT]},
        {"ops": [CONV3X3, CONV3X3, OUTPUT]},
        {"more": 1},
    ],
)
def test_near_genotypes_are_not_contained(change: dict[str, Any]) -> None:
    space = make_space("nasbench101", {"vertices": 3})
    genotype = cell("0-1 1-2", CONV3X3)
    assert space.contains(genotype)
    assert not space.contains({**genotype, **change})


def test_options_are_checked() -> None:
    for options in ({"vertices": 8}, {"vertices": 2}, {"max_edges": 10}, {"mutation_rate": 0}, {"edges": 3}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            make_space("nasbench101", options)


def test_distance_is_the_share_of_what_differs() -> None:
    space = make_space("nasbench101", {"vertices": 5})
    first = cell("0-1 0-2 1-3 2-3 3-4", CONV3X3, CONV1X1, MAXPOOL3X3)
    second = cell("0-1 0-2 1-3 2-4 3-4", CONV3X3, CONV1X1, CONV1X1)
    assert space.distance(first, first) == 0
    assert space.distance(first, second) == space.distance(second, first) == 3 / 13  # of 10 edges and 3 operations


def test_encodings_of_edges_and_paths() -> None:
    space = make_space("nasbench101", {"vertices": 4})
    genotype = cell("0-1 0-3 1-2 2-3", OPERATIONS[2], OPERATIONS[1])
    edges = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]  # 0-1 0-2 0-3 1-2 1-3 2-3
    assert space.encode(genotype) == [*edges, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    paths = space.encode_paths(genotype)
    assert len(paths) == 1 + 3 + 9
    assert [place for place, there in enumerate(paths) if there] == [0, 1 + 3 + 3 * 2 + 1]
    wide = make_space("nasbench101", {})
    assert len(wide.encode_paths(wide.sample(generator(0)))) == (3**6 - 1) // 2


def test_path_encodings_do_not_see_vertices_that_lead_nowhere() -> None:
    space = make_space("nasbench101", {"vertices": 5})
    first = cell("0-1 1-4 0-2 2-3", CONV3X3, CONV1X1, MAXPOOL3X3)
    second = cell("0-1 1-4 0-3", CONV3X3, MAXPOOL3X3, CONV1X1)
    assert space.encode_paths(first) == space.encode_paths(second)
    assert space.encode(first) != space.encode(second)

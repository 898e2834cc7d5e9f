"""The cells of NAS-Bench-201 as a search space: the suite of all spaces, the benchmark's operators, encodings."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space
from nasbench201_example import FIRST, NOTHING, SECOND
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201 import cell_of, count_parameters

SMALL_NETWORK = {"network": True, "stem_channels": 4, "stages": 2, "cells": 1}


class TestCells(SpaceSuite):
    """As cells, which are for tables: nothing builds them."""

    name = "nasbench201"
    infeasible_share = 1.0


class TestNetworks(SpaceSuite):
    """As whole networks, which the builder makes all of."""

    name = "nasbench201"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"network": SMALL_NETWORK}
    input_shape = (3, 16, 16)


def test_samples_are_uniform_over_all_cells() -> None:
    space = make_space("nasbench201", {})
    rng = generator(0)
    counts = Counter((place, op) for _ in range(5000) for place, op in enumerate(cell_of(space.sample(rng))))
    assert len(counts) == 30
    # A binomial of 5,000 with 1/5: 4.5 deviations.
    assert all(abs(n - 1000) < 4.5 * (5000 * 0.2 * 0.8) ** 0.5 for n in counts.values())


def test_mutations_choose_a_node_then_an_edge_then_another_operation() -> None:
    space = make_space("nasbench201", {})
    rng = generator(1)
    parent = cell_of(FIRST)
    n_mutations = 9000
    changes: Counter[tuple[int, str]] = Counter()
    for _ in range(n_mutations):
        differing = [
            (place, op)
            for place, (op, old) in enumerate(zip(cell_of(space.mutate(FIRST, rng)), parent, strict=True))
            if op != old
        ]
        assert len(differing) == 1
        changes[differing[0]] += 1
    for place, share in enumerate((1 / 3, 1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9)):
        for operation in {op for at, op in changes if at == place}:
            expected = n_mutations * share / 4
            assert abs(changes[place, operation] - expected) < 4.5 * expected**0.5
    assert len(changes) == 24


def test_neighbours_are_the_24_cells_with_another_operation() -> None:
    space = make_space("nasbench201", {})
    neighbours = list(space.neighbours(NOTHING))
    assert len(neighbours) == len(set(neighbours)) == 24
    assert neighbours[0] == "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert neighbours[-1] == "|none~0|+|none~0|none~1|+|none~0|none~1|avg_pool_3x3~2|"


def test_crossover_takes_each_edge_from_one_of_both() -> None:
    space = make_space("nasbench201", {})
    rng = generator(2)
    children = {space.crossover(FIRST, SECOND, rng) for _ in range(300)}
    pairs = list(zip(cell_of(FIRST), cell_of(SECOND), strict=True))
    assert all(op in pair for child in children for op, pair in zip(cell_of(child), pairs, strict=True))
    assert len(children) == len(set(product(*map(set, pairs))))


def test_encodings() -> None:
    space = make_space("nasbench201", {})
    assert len(space.encode(FIRST)) == 30
    assert space.encode(NOTHING) == [1.0, 0.0, 0.0, 0.0, 0.0] * 6
    assert space.encode(FIRST)[:10] == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert space.encode_paths(NOTHING) == [0.0] * 84
    # Convolution, pooling + skip, convolution + skip, pooling + skip + skip.
    paths = space.encode_paths(FIRST)
    assert sum(paths) == 4
    assert paths[:4] == [0.0, 1.0, 0.0, 0.0]  # of one operation: skip, 1x1, 3x3, pooling
    two = list(product(("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"), repeat=2))
    assert [labels for labels, has in zip(two, paths[4:20], strict=True) if has] == [
        ("nor_conv_1x1", "skip_connect"),
        ("avg_pool_3x3", "skip_connect"),
    ]


def test_decisions_make_every_cell_once() -> None:
    space = make_space("nasbench201", {})
    assert space.decisions() == (5,) * 6
    assert len({space.from_decisions(choices) for choices in product(range(5), repeat=6)}) == space.size() == 15_625
    assert space.from_decisions([4, 2, 1, 2, 1, 1]) == FIRST


def test_points_come_back_from_their_descriptors() -> None:
    for options in ({}, SMALL_NETWORK):
        space = make_space("nasbench201", options)
        for genotype in (FIRST, SECOND, NOTHING):
            assert space.from_descriptor(space.to_descriptor(genotype)) == genotype
    with pytest.raises(Infeasible, match="no network of NAS-Bench-201 with 4 channels in the stem"):
        space.from_descriptor(make_space("nasbench201", {}).to_descriptor(FIRST))


def test_networks_are_as_large_as_the_benchmarks() -> None:
    space = make_space("nasbench201", {"network": True})
    planned = plan(space.to_descriptor(FIRST), input_shape=(3, 32, 32), n_outputs=10)
    assert planned.n_parameters == count_parameters(cell_of(FIRST)) == 129_306


def test_options_are_checked() -> None:
    for options in ({"cells": 0}, {"stages": 6}, {"stem_channels": 0}, {"operations": 3}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            make_space("nasbench201", options)

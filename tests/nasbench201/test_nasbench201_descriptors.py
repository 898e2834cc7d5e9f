"""Cells as descriptors: one hash for what computes the same, and the way back."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from nasbench201_example import FIRST, NOTHING

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201 import (
    EDGES,
    N_CELLS,
    NONE,
    OPERATIONS,
    SKIP,
    Cell,
    architecture_of,
    cell_of,
    cell_of_index,
    from_descriptor,
    index_of,
    to_descriptor,
)


def value_of(cell: Cell, weights: dict[str, float]) -> float:
    """What a cell makes of the number 0.7, its edges being functions with weights of their own that keep zero."""
    nodes = [0.7, 0.0, 0.0, 0.0]
    for (source, target), operation in zip(EDGES, cell, strict=True):
        x = nodes[source]
        if operation == SKIP:
            nodes[target] += x
        elif operation != NONE:
            nodes[target] += math.sin((OPERATIONS.index(operation) / 7 + weights.get(f"{source}-{target}", 0.0)) * x)
    return nodes[3]


def test_hashes_are_equal_exactly_where_cells_compute_the_same() -> None:
    values = defaultdict(set)
    for index in range(N_CELLS):
        cell = cell_of_index(index)
        form = to_descriptor(cell).canonical_form()
        weights = {name: math.sqrt(2 + place) for place, name in enumerate(form.order)}
        values[form.sha256].add(round(value_of(cell, weights), 9))
    assert len(values) == 5_425
    # Those with one hash give one number when corresponding layers have equal weights.
    assert all(len(found) == 1 for found in values.values())
    assert len({found.pop() for found in values.values()}) == 5_425


def test_every_cell_comes_back_from_its_descriptor() -> None:
    for index in range(0, N_CELLS, 7):
        cell = cell_of_index(index)
        descriptor = to_descriptor(cell)
        assert from_descriptor(descriptor) == cell
        assert from_descriptor(NeuralDescriptor.from_json(descriptor.to_json())) == cell


def test_descriptors_with_other_names_are_the_first_cell_that_computes_the_same() -> None:
    descriptor = to_descriptor(cell_of(FIRST))
    descriptor.add_suffix("_renamed")
    found = from_descriptor(descriptor)
    assert to_descriptor(found).canonical_hash() == descriptor.canonical_hash()
    assert index_of(architecture_of(found)) == 0
    # The last edge carries nothing, so that many cells are this one.
    dead = cell_of("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|avg_pool_3x3~1|nor_conv_1x1~2|")
    renamed = to_descriptor(dead)
    renamed.add_suffix("!")
    first = from_descriptor(renamed)
    same = [
        index
        for index in range(N_CELLS)
        if to_descriptor(cell_of_index(index)).canonical_hash() == renamed.canonical_hash()
    ]
    assert index_of(architecture_of(first)) == same[0]
    assert len(same) > 50


def test_a_descriptor_whose_edges_are_wired_otherwise_is_read_by_what_it_computes() -> None:
    descriptor = to_descriptor(cell_of("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|"))
    descriptor.disconnect_layers("0-1", "1-3")
    descriptor.connect_layers("input", "1-3")
    found = to_descriptor(from_descriptor(descriptor))
    assert found.canonical_hash() == descriptor.canonical_hash()


def test_zeros_skips_and_sums() -> None:
    def hash_of(text: str) -> str:
        return to_descriptor(cell_of(text)).canonical_hash()

    zero = hash_of(NOTHING)
    # Zeros go through everything, sums of several too.
    assert hash_of("|none~0|+|none~0|nor_conv_3x3~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|") == zero
    skip = hash_of("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    assert hash_of("|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|") == skip
    # Twice the input is not the input, and one convolution read twice is not two convolutions.
    assert hash_of("|skip_connect~0|+|none~0|none~1|+|skip_connect~0|skip_connect~1|none~2|") not in (skip, zero)
    once = hash_of("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|skip_connect~1|skip_connect~2|")
    two = hash_of("|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|skip_connect~1|skip_connect~2|")
    assert once != two


def test_other_networks_are_infeasible() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3})
    with pytest.raises(Infeasible, match="a network of Conv2d is no cell of NAS-Bench-201"):
        from_descriptor(descriptor)

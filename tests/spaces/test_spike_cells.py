"""The cells of SpikeNAS-Bench as a search space: the suite of all spaces, neighbours, encodings and the way back."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.spaces.spike_cells import N_EDGES, OPERATIONS

NOTHING = ["none"] * N_EDGES


class TestSpikeCells(SpaceSuite):
    name = "spike_cells"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    infeasible_share = 1.0  # cells for tables: nothing builds them


def test_every_cell_is_a_choice_of_six_operations_and_can_be_read_from_its_network() -> None:
    space = make_space("spike_cells", {})
    assert space.decisions() == (5,) * 6
    assert space.size() == 15_625
    rng = generator(0)
    for _ in range(200):
        genotype = space.sample(rng)
        choices = [OPERATIONS.index(operation) for operation in genotype]
        assert space.from_decisions(choices) == genotype
        code = space.encode(genotype)
        assert [code[5 * edge : 5 * edge + 5].index(1.0) for edge in range(6)] == choices
        assert sum(code) == 6 and len(code) == 30
        descriptor = NeuralDescriptor.from_json(space.to_descriptor(genotype).to_json())
        assert space.from_descriptor(descriptor) == genotype
    assert len(list(space.neighbours(NOTHING))) == 24


def test_cells_that_compute_nothing_are_one_network_and_have_a_row_each() -> None:
    space = make_space("spike_cells", {})
    dead = [["spike_low", first, second, *["none"] * 3] for first, second in product(OPERATIONS, repeat=2)]
    assert len({space.to_descriptor(cell).canonical_hash() for cell in [NOTHING, *dead]}) == 1
    assert [space.from_descriptor(space.to_descriptor(cell)) for cell in dead] == dead


def test_what_is_no_cell_is_infeasible() -> None:
    space = make_space("spike_cells", {})
    other = make_space("nasbench201", {}).to_descriptor("|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    changed = space.to_descriptor(["spike_low"] * N_EDGES)
    changed.disconnect_layers("input", "0-3")
    for descriptor in (other, changed):
        with pytest.raises(
            Infeasible, match="this is no cell of six edges with operations of none, skip_connect, spik"
        ):
            space.from_descriptor(descriptor)

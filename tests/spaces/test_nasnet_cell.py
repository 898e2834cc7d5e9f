"""The cells of NASNet: the suite of all spaces, cells worked out by hand, and transfer to other stacks."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, for_seeds, generator, make_space, text_of
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.spaces.nasnet_layers import OPERATIONS

SMALL = {"filters": 4, "repeats": 1, "stages": 2, "stem_multiplier": 1}
ONE_BLOCK = {**SMALL, "blocks": 1}


class TestNasNetCell(SpaceSuite):
    name = "nasnet_cell"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "five_blocks": SMALL,
        "smallest": {**SMALL, "blocks": 1, "operations": ["identity"], "joins": ["add"]},
        "all_operations": {**SMALL, "blocks": 2, "operations": list(OPERATIONS)},
    }
    input_shape = (1, 7, 8)


def one_block(*block: Any) -> dict[str, Any]:
    return {"normal": [list(block)], "reduction": [list(block)]}


def planned(options: dict[str, Any], genotype: Any, *, size: int = 8, n_outputs: int = 10) -> Any:
    descriptor = make_space("nasnet_cell", options).to_descriptor(genotype)
    return plan(descriptor, input_shape=(3, size, size), n_outputs=n_outputs)


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    return {step.layer: step.output_shape for step in network.steps}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_every_operation_halves_maps_in_reduction_cells_alone(operation: str, size: int) -> None:
    options = {**ONE_BLOCK, "stages": 3, "operations": [operation], "joins": ["add"]}
    network = planned(options, one_block(0, 1, operation, operation, "add"), size=size)
    shapes = shapes_of(network)
    half, quarter = -(-size // 2), -(-size // 4)
    outputs = {layer: shape for layer, shape in shapes.items() if layer.endswith("block0.add")}
    assert list(outputs.values()) == [
        (4, size, size),
        (8, half, half),
        (8, half, half),
        (16, quarter, quarter),
        (16, quarter, quarter),
    ]
    # Nothing is scaled or projected behind the space's back.
    for step in network.steps:
        assert all((a.pool_to, a.project, a.enlarge_to) == (None, None, None) for a in step.inputs), step.layer


def test_parameters_are_those_of_the_paper_s_layers() -> None:
    """By hand: F = 4 filters, 3 channels of the image, one normal cell of one block, a head for 10 classes."""
    options = {**ONE_BLOCK, "stages": 1}
    stem, head = 9 * 3 * 4 + 8, 4 * 10 + 10
    fitted = 4 * 4 + 8
    separable = 2 * (25 * 4 + 4 * 4 + 8)
    row_and_column = 2 * (3 * 4 * 4 + 8)
    network = planned(options, one_block(0, 1, "sep_conv_5x5", "conv_1x3_3x1", "add"))
    assert network.n_parameters == stem + 2 * fitted + separable + row_and_column + head
    dilated = 9 * 4 * 4 + 8
    network = planned(options, one_block(1, 1, "dil_conv_3x3", "max_pool_3x3", "concat"))
    assert network.n_parameters == stem + fitted + dilated + (8 * 4 + 8) + head


def test_a_reduction_cell_has_twice_the_filters_and_strides_where_it_reads_its_inputs() -> None:
    options = {**SMALL, "blocks": 2}
    reduction = [[0, 1, "identity", "sep_conv_3x3", "add"], [2, 1, "sep_conv_3x3", "avg_pool_3x3", "add"]]
    normal = [[1, 1, "identity", "identity", "add"], [1, 2, "identity", "identity", "add"]]
    network = planned(options, {"normal": normal, "reduction": reduction})
    strides = {
        step.layer: step.parameters["stride"]
        for step in network.steps
        if "stride" in step.parameters and step.layer.startswith("cell1_reduction.block")
    }
    assert strides == {
        # An identity that halves maps is a 1x1 convolution; of a pair of convolutions the first one halves.
        "cell1_reduction.block0.first=identity@0.conv0": (2, 2),
        "cell1_reduction.block0.second=sep_conv_3x3@1.conv0": (2, 2),
        "cell1_reduction.block0.second=sep_conv_3x3@1.conv1": (1, 1),
        "cell1_reduction.block1.first=sep_conv_3x3@2.conv0": (1, 1),
        "cell1_reduction.block1.first=sep_conv_3x3@2.conv1": (1, 1),
        "cell1_reduction.block1.second=avg_pool_3x3@1": (2, 2),
    }
    shapes = shapes_of(network)
    assert shapes["cell0_normal.block1.add"] == (4, 8, 8)
    assert shapes["cell1_reduction.block1.add"] == (8, 4, 4)
    # The cell after a reduction gets its older input, of 8 x 8, halved.
    assert not any(layer.startswith("cell2_normal.input0") for layer in shapes)
    normal[0] = [0, 1, "identity", "identity", "add"]
    shapes = shapes_of(planned(options, {"normal": normal, "reduction": reduction}))
    assert shapes["cell2_normal.input0.halved"] == (4, 4, 4)
    assert shapes["cell2_normal.input0.norm"] == (8, 4, 4)


def test_what_no_block_reads_is_concatenated() -> None:
    options = {**SMALL, "blocks": 3, "stages": 1}
    blocks = [[0, 1, "identity", "identity", "add"] for _ in range(3)]
    shapes = shapes_of(planned(options, {"normal": blocks, "reduction": blocks}))
    assert shapes["cell0_normal.output"] == (12, 8, 8)
    blocks[2] = [2, 1, "identity", "identity", "concat"]
    descriptor = make_space("nasnet_cell", options).to_descriptor({"normal": blocks, "reduction": blocks})
    assert descriptor.inputs("cell0_normal.output") == (
        "cell0_normal.block1.add",
        "cell0_normal.block2.narrowed.norm",
    )
    assert descriptor.inputs("cell0_normal.block2.concat") == (
        "cell0_normal.block2.first=identity@2",
        "cell0_normal.block2.second=identity@1",
    )
    blocks[2] = [2, 3, "identity", "identity", "add"]
    assert "cell0_normal.output" not in shapes_of(planned(options, {"normal": blocks, "reduction": blocks}))


def test_the_order_of_added_operands_does_not_matter_but_that_of_others_does() -> None:
    space = make_space("nasnet_cell", ONE_BLOCK)

    def sha256(*block: Any) -> str:
        hashed: str = space.to_descriptor(one_block(*block)).canonical_hash()
        return hashed

    assert sha256(0, 1, "identity", "max_pool_3x3", "add") == sha256(1, 0, "max_pool_3x3", "identity", "add")
    assert sha256(0, 1, "identity", "max_pool_3x3", "add") != sha256(0, 1, "max_pool_3x3", "identity", "add")
    assert sha256(0, 1, "identity", "max_pool_3x3", "add") != sha256(0, 1, "identity", "max_pool_3x3", "concat")
    # The sum of a state with itself is twice the state, not the state.
    assert sha256(1, 1, "identity", "identity", "add") != sha256(0, 1, "identity", "identity", "add")


def test_a_cell_is_a_point_of_larger_stacks_too() -> None:
    found, larger = make_space("nasnet_cell", SMALL), make_space("nasnet_cell", {"filters": 8, "repeats": 6})
    genotype = found.sample(generator(0))
    assert larger.contains(genotype)
    layers = larger.to_descriptor(genotype).layers
    cells = list(dict.fromkeys(name.split(".")[0] for name in layers if name.startswith("cell")))
    assert len(cells) == 3 * 6 + 2
    assert [cell for cell in cells if cell.endswith("reduction")] == ["cell6_reduction", "cell13_reduction"]


def test_the_size_is_that_of_the_decisions() -> None:
    space = make_space("nasnet_cell", {"blocks": 2, "operations": ["identity", "conv_3x3"]})
    assert space.decisions() == (2, 2, 2, 2, 2, 3, 3, 2, 2, 2) * 2
    assert space.size() == (2**5 * 3 * 3 * 2**3) ** 2
    assert make_space("nasnet_cell", {}).size() == (2**2 * 3**2 * 4**2 * 5**2 * 6**2 * 8**10 * 2**5) ** 2
    # With one block of one operation, all genotypes can be listed.
    few = make_space("nasnet_cell", {"blocks": 1, "operations": ["identity"], "joins": ["add"]})
    reached = {text_of(few.sample(generator(0)))}
    waiting = list(reached)
    while waiting:
        for neighbour in few.neighbours(json.loads(waiting.pop())):
            if text_of(neighbour) not in reached:
                reached.add(text_of(neighbour))
                waiting.append(text_of(neighbour))
    assert len(reached) == few.size() == 16


def test_decisions_give_blocks_in_their_order() -> None:
    space = make_space("nasnet_cell", {"blocks": 2, "operations": ["identity", "conv_3x3"]})
    genotype = space.from_decisions([0, 1, 1, 0, 1, 2, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
    assert genotype == {
        "normal": [[0, 1, "conv_3x3", "identity", "concat"], [2, 0, "identity", "identity", "add"]],
        "reduction": [[1, 1, "conv_3x3", "conv_3x3", "add"], [0, 0, "identity", "conv_3x3", "concat"]],
    }
    assert space.contains(genotype)


def test_encodings_tell_points_apart_by_one_hot_decisions_and_by_paths() -> None:
    space = make_space("nasnet_cell", {"blocks": 2, "operations": ["identity", "conv_3x3"]})
    genotype = space.from_decisions([0, 1, 1, 0, 1, 2, 0, 0, 0, 0] * 2)
    assert space.encode(genotype) == [1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0] * 2
    # Two cells, two inputs, and 2 + 4 + 8 sequences of up to three operations.
    paths = space.encode_paths(genotype)
    assert len(paths) == 2 * 2 * 14
    # identity = 0, conv = 1. Block 0 is read by block 1, so paths end in block 1: input 0 by its second operand;
    # input 0 by conv and identity; input 1 by identity twice.
    one_cell = [0.0] * 28
    for source, operations in ((0, [0]), (0, [1, 0]), (1, [0, 0])):
        begin = 14 * source + {1: 0, 2: 2}[len(operations)]
        one_cell[begin + int("".join(map(str, operations)), 2)] = 1.0
    assert paths == one_cell * 2


def test_long_paths_are_left_out() -> None:
    space = make_space("nasnet_cell", {"blocks": 4, "operations": ["identity"], "joins": ["add"]})
    chain = [[1, 1, "identity", "identity", "add"]]
    chain += [[1 + k, 1 + k, "identity", "identity", "add"] for k in range(1, 4)]
    assert space.encode_paths({"normal": chain, "reduction": chain}) == [0.0] * 12
    chain[3] = [3, 3, "identity", "identity", "add"]
    # Block 2 is unread now and has the path of three, block 3 too.
    assert space.encode_paths({"normal": chain, "reduction": chain}) == ([0.0] * 5 + [1.0]) * 2


def test_a_network_tells_its_cells() -> None:
    space = make_space("nasnet_cell", {**SMALL, "blocks": 3})

    def check(seed: int) -> None:
        genotype = space.sample(generator(seed))
        assert space.from_descriptor(space.to_descriptor(genotype)) == genotype

    for_seeds(check, examples=30)


def test_other_networks_are_not_taken_for_cells() -> None:
    space = make_space("nasnet_cell", ONE_BLOCK)
    genotype = one_block(0, 1, "identity", "sep_conv_3x3", "add")
    with pytest.raises(Infeasible, match="not a network of this space with its filters, repeats and stages"):
        space.from_descriptor(make_space("nasnet_cell", {**ONE_BLOCK, "filters": 6}).to_descriptor(genotype))
    fewer = make_space("nasnet_cell", {**ONE_BLOCK, "operations": ["identity"]})
    with pytest.raises(Infeasible, match="not made of this space's operations, inputs and joins"):
        fewer.from_descriptor(space.to_descriptor(genotype))
    larger = make_space("nasnet_cell", {**SMALL, "blocks": 2})
    with pytest.raises(Infeasible, match="a cell has more than 1 blocks"):
        space.from_descriptor(larger.to_descriptor(larger.sample(generator(0))))
    other = NeuralDescriptor()
    other.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, "conv")
    with pytest.raises(Infeasible, match="not a network of this space"):
        space.from_descriptor(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": ["identity", "conv_9x9"]}, "operation 'conv_9x9' is unknown; set any of identity, conv_1x1"),
        ({"operations": ["identity", "identity"]}, "each operation counts once: identity, identity"),
        ({"joins": ["mean"]}, "join 'mean' is unknown; set any of add, concat"),
        ({"operations": []}, "operations"),
        ({"blocks": 0}, "blocks"),
        ({"cells": 3}, "cells"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_space("nasnet_cell", options)

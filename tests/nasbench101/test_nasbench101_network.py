"""Whole networks of cells: channels, parameters as in the benchmark, and that the builder makes and trains them."""

from __future__ import annotations

import pytest
import torch
from nasbench101_example import CHAIN, DOCUMENTED, FIVE, FOUR, matrix_of, needs_files

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.evaluators.nasbench101.records import read_rows
from nord_hpc.nasbench101 import (
    CONV1X1,
    CONV3X3,
    INPUT,
    MAXPOOL3X3,
    OUTPUT,
    ModelSpec,
    count_parameters,
    network_descriptor,
    vertex_channels,
)

FIRST = ModelSpec.from_text("0110001100010000", f"{INPUT},{CONV1X1},{CONV3X3},{OUTPUT}")
ALONE = ModelSpec([[0, 1], [0, 0]], [INPUT, OUTPUT])
CUT = ModelSpec(matrix_of(5, "0-1 1-2 1-3 1-4 2-4 3-4"), [INPUT, CONV3X3, MAXPOOL3X3, CONV1X1, OUTPUT])
"""Vertex 1 gets one of the channels that are left over, and 2 gets the other: 3 has to cut one off."""


def test_channels_of_vertices() -> None:
    assert vertex_channels(CUT, in_channels=128, out_channels=128) == (128, 43, 43, 42, 128)
    # Vertex 4 feeds 5 alone; the output is a sum of four parts.
    assert vertex_channels(DOCUMENTED, in_channels=256, out_channels=512) == (256, 128, 128, 128, 128, 128, 512)
    assert vertex_channels(ALONE, in_channels=3, out_channels=5) == (3, 5)


def test_parameters_that_are_known() -> None:
    assert count_parameters(FIRST) == 3_468_426
    assert count_parameters(DOCUMENTED) == 2_694_282


@needs_files
def test_parameters_of_all_cells_of_up_to_five_vertices() -> None:
    rows = {row.module_hash: row for file in (FOUR, FIVE) for row in read_rows(file)}
    assert len(rows) == 2532
    for row in rows.values():
        assert count_parameters(ModelSpec.from_text(row.adjacency, row.operations)) == row.n_parameters, row.module_hash


@pytest.mark.parametrize(
    "spec", [FIRST, DOCUMENTED, ALONE, CUT, CHAIN], ids=["first", "documented", "alone", "cut", "chain"]
)
def test_the_builders_network_has_as_many(spec: ModelSpec) -> None:
    planned = plan(network_descriptor(spec), input_shape=(3, 32, 32), n_outputs=10)
    assert planned.n_parameters == count_parameters(spec)
    assert planned.notes == ()
    small = plan(network_descriptor(spec, stem_channels=8), input_shape=(3, 32, 32), n_outputs=10)
    assert small.n_parameters == count_parameters(spec, stem_channels=8)


@pytest.mark.parametrize("spec", [FIRST, DOCUMENTED], ids=["first", "documented"])
def test_the_torch_module_has_as_many(spec: ModelSpec) -> None:
    network = build(plan(network_descriptor(spec), input_shape=(3, 32, 32), n_outputs=10), seed=0)
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trainable == count_parameters(spec)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) and all(module.bias is None for module in convolutions)
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.003, 1e-5)}


def test_maps_are_halved_and_channels_doubled() -> None:
    planned = plan(network_descriptor(CHAIN), input_shape=(3, 32, 32), n_outputs=10)
    ends = [step.output_shape for step in planned.steps if step.kind == "ReLU"]
    assert ends[:1] + ends[2::6] == [(128, 32, 32), (128, 32, 32), (256, 16, 16), (512, 8, 8)]
    odd = plan(network_descriptor(CHAIN), input_shape=(3, 9, 9), n_outputs=10)
    assert [step.output_shape[1] for step in odd.steps if step.kind == "MaxPool2d"] == [5, 3]


@pytest.mark.parametrize("spec", [ALONE, CUT, DOCUMENTED], ids=["alone", "cut", "documented"])
def test_networks_learn(spec: ModelSpec) -> None:
    descriptor = network_descriptor(spec, stem_channels=8, stacks=2, cells=1)
    network = build(plan(descriptor, input_shape=(1, 8, 8), n_outputs=3), seed=1)
    generator = torch.Generator().manual_seed(0)
    x_NCHW, y_N = torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 3
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x_NCHW), y_N)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_cut_takes_the_first_channels() -> None:
    descriptor = network_descriptor(CUT, stem_channels=8, stacks=1, cells=1)
    cut = [(name, layer.parameters) for name, layer in descriptor.layers.items() if layer.kind == "FirstChannels"]
    assert cut == [("0.0.1.relu.first2", {"channels": 2})]
    assert descriptor.inputs("0.0.3.conv") == ("0.0.1.relu.first2",)
    assert descriptor.inputs("0.0.2.pool") == ("0.0.1.relu",)


def test_no_more_channels_can_be_kept_than_there_are() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("FirstChannels", {"channels": 4}, "cut")
    with pytest.raises(
        Infeasible, match=r"layer 'cut' \(FirstChannels\) keeps 4 channels, but its input is a map of 3x8x8"
    ):
        plan(descriptor, input_shape=(3, 8, 8), n_outputs=10)
    assert plan(descriptor, input_shape=(5, 8, 8), n_outputs=10).steps[0].output_shape == (4, 8, 8)

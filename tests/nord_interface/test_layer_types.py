"""The builder's own layers, by class and by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nord_hpc.neural_nets import NeuralDescriptor, NeuralNet
from nord_hpc.neural_nets.layers import (
    Conv2d151,
    Flatten,
    Identity,
    ScaleLayer,
    SizeScaleLayer,
    find_layer_type,
    types_dict,
)


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (nn.Conv1d, "convolutions"),
        (nn.ConvTranspose3d, "convolutions"),
        (Conv2d151, "convolutions"),
        (nn.LogSoftmax, "activations"),
        (nn.MaxUnpool2d, "pooling"),
        (nn.BatchNorm2d, "normalization"),
        (nn.AlphaDropout, "dropout"),
        (nn.Linear, "linear"),
        (Flatten, "flatten"),
        (Identity, "identity"),
        (SizeScaleLayer, "scaling"),
        (nn.MSELoss, None),
    ],
)
def test_type_of_a_layer(layer: type[nn.Module], key: str | None) -> None:
    assert find_layer_type(layer) == key


def test_no_layer_has_two_types() -> None:
    layers = [layer for classes in types_dict.values() for layer in classes]
    assert len(layers) == len(set(layers)) > 60


def test_values() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(ScaleLayer(0.5)(x), x / 2)
    assert torch.equal(SizeScaleLayer(2)(x), x[:, :, ::2, ::2])
    assert SizeScaleLayer((8, 2))(x).shape == (1, 1, 8, 2)
    vector = torch.ones(3, 5)
    assert SizeScaleLayer(9)(vector) is vector
    conv = Conv2d151(1, 1, kernel_size=(2, 3))
    for layer in (conv.along_rows, conv.along_columns):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    assert torch.equal(conv(x), nn.functional.conv2d(x, torch.ones(1, 1, 2, 3)))


@pytest.mark.parametrize("by_name", [True, False])
def test_as_kinds_of_a_descriptor(by_name: bool) -> None:
    d = NeuralDescriptor()
    for cls, parameters in (
        (Identity, {}),
        (Conv2d151, {"in_channels": 3, "out_channels": 4}),
        (SizeScaleLayer, {"final_size": 7}),
        (ScaleLayer, {"scale": 3}),
    ):
        d.add_layer_sequential(cls.__name__ if by_name else cls, parameters)
    assert [layer.kind for layer in d.layers.values()] == ["Identity", "Conv2d151", "SizeScaleLayer", "ScaleLayer"]
    net = NeuralNet(d, 5, (12, 9), 3)
    assert net.plan is not None
    assert [step.output_shape for step in net.plan.steps[:4]] == [(3, 12, 9), (4, 8, 5), (4, 7, 7), (4, 7, 7)]
    assert net(torch.zeros(2, 3, 12, 9)).shape == (2, 5)

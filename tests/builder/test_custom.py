"""Layers outside the table: the user's classes by module and by file, and torch's rarer ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible

LAYERS = '''
import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions."""

    def __init__(self, in_channels, width, scale=1.0):
        super().__init__()
        self.scale = scale
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return self.scale * self.second(self.first(x))

    class Inner(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))


class Pair(nn.Module):
    def forward(self, x):
        return x, x
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_layers.py").write_text(LAYERS)
    return tmp_path


def descriptor_of(kind: str, parameters: dict[str, float] | None = None) -> NeuralDescriptor:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("ReLU", None, "in")
    descriptor.add_layer_sequential(kind, parameters, "mine")
    return descriptor


def test_a_class_of_a_file_is_inferred_and_built(folder: Path) -> None:
    descriptor = descriptor_of("my_layers.py:Block", {"width": 5, "scale": 0.5})
    result = plan(descriptor, input_shape=(2, 8, 8), n_outputs=3, folder=folder)
    mine = result.steps[1]
    assert mine.parameters == {"width": 5, "scale": 0.5, "in_channels": 2}
    assert mine.output_shape == (5, 8, 8)
    assert mine.n_parameters == (2 * 9 * 5 + 5) + 5 * 9 * 5
    assert mine.multiply_adds == 64 * 9 * (2 * 5 + 5 * 5)
    network = build(result, seed=1, folder=folder)
    assert sum(parameter.numel() for parameter in network.parameters()) == result.n_parameters
    x = torch.randn(2, 2, 8, 8)
    y = network(x)
    assert y.shape == (2, 3)
    assert torch.equal(build(result, seed=1, folder=folder)(x), y)


def test_a_class_of_a_module_may_be_nested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    result = plan(descriptor_of("my_layers:Block.Inner"), input_shape=(2, 8, 8), n_outputs=3)
    assert result.steps[1].output_shape == (2,)
    cls = sys.modules["my_layers"].Block.Inner
    descriptor = NeuralDescriptor()
    descriptor.add_layer("ReLU", None, "in")
    descriptor.add_layer_sequential(cls, None, "mine")
    assert plan(descriptor, input_shape=(2, 8, 8), n_outputs=3) == result
    monkeypatch.delitem(sys.modules, "my_layers")


def test_other_classes_of_torch_work_without_in_place_changes() -> None:
    transposed = descriptor_of("ConvTranspose2d", {"out_channels": 4, "kernel_size": 2, "stride": 2})
    step = plan(transposed, input_shape=(2, 8, 8), n_outputs=3).steps[1]
    assert (step.output_shape, step.n_parameters, step.factory) == ((4, 16, 16), 36, "torch.nn:ConvTranspose2d")
    step = plan(descriptor_of("RReLU", {"inplace": True}), input_shape=(2,), n_outputs=3).steps[1]
    assert step.parameters == {}


def test_inference_leaves_the_random_state_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    plan(descriptor_of("my_layers.py:Block", {"width": 5}), input_shape=(2, 8, 8), n_outputs=3, folder=folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("my_layers.py:Block", {}, "cannot work on a map of 2x8: TypeError: "),
        ("my_layers.py:Block", {"width": 4}, "cannot work on a map of 2x8: RuntimeError: "),
        ("my_layers.py:Block", {"width": 4, "depth": 3}, "cannot work on a map of 2x8: TypeError: "),
        ("my_layers.py:Pair", {}, "does not give one tensor with as many samples as its input, a batch of 97"),
    ],
)
def test_layers_that_do_not_fit_are_infeasible(
    folder: Path, kind: str, parameters: dict[str, float], reason: str
) -> None:
    with pytest.raises(Infeasible) as caught:
        plan(descriptor_of(kind, parameters), input_shape=(2, 8), n_outputs=3, folder=folder)
    assert caught.value.reason.startswith(f"layer 'mine' ({kind}) {reason}")
    assert "\n" not in caught.value.reason


def test_classes_that_do_not_exist_are_bad_input(folder: Path) -> None:
    for kind, reason in (
        ("my_layers.py:Gone", "layer 'my_layers.py:Gone': .*my_layers.py defines no Gone"),
        ("gone.py:Block", "layer 'gone.py:Block': there is no file .*gone.py"),
        ("no_such_module:Block", "layer class 'no_such_module:Block': cannot be imported: ModuleNotFoundError: "),
        ("collections:Gone", "layer class 'collections:Gone': cannot be imported: AttributeError: "),
    ):
        with pytest.raises(BadInput, match=f"^{reason}"):
            plan(descriptor_of(kind), input_shape=(2, 8), n_outputs=3, folder=folder)

"""Rules of inference against the real modules: shapes, parameters, multiply-adds; clamping; refusals."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nord_hpc.builder import custom
from nord_hpc.builder.cell_trees import LSTM
from nord_hpc.builder.operations import OPERATIONS
from nord_hpc.builder.shapes import Inferred, Shape, Site, describe
from nord_hpc.errors import Infeasible

MAPS: dict[int, Shape] = {1: (6, 12), 2: (6, 9, 12), 3: (4, 5, 6, 7)}


def infer(kind: str, parameters: dict[str, Any], shape: Shape) -> Inferred:
    return OPERATIONS[kind].rule(Site("x", kind), parameters, shape)


def assert_like_the_module(kind: str, parameters: dict[str, Any], shape: Shape) -> Inferred:
    """The rule says what the real module does, on real data."""
    inferred = infer(kind, parameters, shape)
    module = custom.load(OPERATIONS[kind].factory, folder=Path("."))(**inferred.parameters)
    x = torch.randn(2, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        y = module(x.flatten(1) if inferred.flatten else x)
    assert inferred.output_shape == tuple(y.shape[1:])
    assert inferred.n_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert inferred.multiply_adds == counter.get_total_flops() // 4
    return inferred


CASES: list[tuple[str, dict[str, Any], Shape]] = [
    ("Linear", {"out_features": 7}, (5,)),
    ("Linear", {"out_features": 7, "in_features": 99, "bias": False}, (3, 4, 4)),
    ("Flatten", {}, (3, 4, 5)),
    ("Flatten", {"start_dim": 1}, (3,)),
    ("FirstChannels", {"channels": 2}, (3, 4, 5)),
    ("Identity", {}, (3, 4, 5)),
    ("Input", {}, (3, 4)),
    ("Output", {}, (3,)),
    ("Dropout", {"p": 0.2}, (3, 4)),
    ("BatchNorm1d", {}, (5,)),
    ("BatchNorm2d", {"num_features": 99, "affine": False, "momentum": 0.2}, (5, 3, 3)),
    ("GroupNorm", {"num_groups": 3}, (6, 4, 4)),
    ("GroupNorm", {"num_groups": 2, "affine": False, "num_channels": 99}, (6, 4)),
    ("LayerNorm", {}, (6, 4, 4)),
    ("LayerNorm", {"bias": False, "normalized_shape": [1]}, (6,)),
    ("LayerNorm", {"elementwise_affine": False}, (6, 4)),
    ("PReLU", {}, (6, 4)),
    ("PReLU", {"num_parameters": 6, "init": 0.1}, (6, 4)),
    ("PositionLinear", {"out_features": 7}, (5, 6)),
    ("PositionLinear", {"out_features": 7, "bias": False, "in_features": 99}, (5, 6)),
    ("RecurrentCell", {"hidden_size": 7, "cell": LSTM.to_json()}, (5, 6)),
    ("LeakyReLU", {"negative_slope": 0.2, "inplace": True}, (6, 4)),
    ("Softplus", {"beta": 2}, (6,)),
    ("GELU", {"approximate": "tanh"}, (6,)),
    ("Conv2d", {"out_channels": 8, "kernel_size": [3, 5], "groups": 2, "bias": False, "stride": [1, 2]}, MAPS[2]),
    ("Conv2d", {"out_channels": 8, "kernel_size": 4, "padding": "same", "dilation": 2}, MAPS[2]),
    ("Conv2d", {"out_channels": 8, "kernel_size": 3, "padding": "same", "stride": 2}, MAPS[2]),
    ("Conv2d", {"out_channels": 8, "kernel_size": 3, "padding": "valid"}, MAPS[2]),
    ("Conv2d", {"out_channels": 8, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, MAPS[2]),
    ("Conv2d", {"out_channels": 8, "kernel_size": 3, "padding": "same", "padding_mode": "circular"}, MAPS[2]),
    ("AvgPool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False, "divisor_override": 5}, MAPS[2]),
    ("AdaptiveAvgPool2d", {"output_size": [None, 3]}, MAPS[2]),
    ("AdaptiveMaxPool2d", {"output_size": 20}, MAPS[2]),
    ("Conv2d151", {"in_channels": 99, "out_channels": 7}, MAPS[2]),
    ("Conv2d151", {"out_channels": 7, "stride": 2, "kernel_size": [3, 4]}, MAPS[2]),
    ("Conv2d151", {"out_channels": 7, "stride": 2}, (3, 6, 4)),
    ("ScaleLayer", {"scale": 0.5}, (3, 4)),
    ("SizeScaleLayer", {"final_size": 20}, MAPS[2]),
    ("SizeScaleLayer", {"final_size": [2, 30]}, MAPS[2]),
    ("SizeScaleLayer", {"final_size": 4}, (3,)),
]
for _dims, _shape in MAPS.items():
    CASES += [
        (f"Conv{_dims}d", {"out_channels": 8, "kernel_size": 3, "in_channels": 99}, _shape),
        (f"SeparableConv{_dims}d", {"out_channels": 8, "kernel_size": 3, "padding": 1, "stride": 2}, _shape),
        (f"SeparableConv{_dims}d", {"out_channels": 8, "kernel_size": 3, "padding": "same", "bias": False}, _shape),
        (f"MaxPool{_dims}d", {"kernel_size": 2}, _shape),
        (f"AvgPool{_dims}d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, _shape),
        (f"AdaptiveAvgPool{_dims}d", {"output_size": 2}, _shape),
        (f"AdaptiveMaxPool{_dims}d", {}, _shape),
        (f"BatchNorm{_dims}d", {}, _shape),
        (f"InstanceNorm{_dims}d", {"affine": True}, _shape),
        (f"Dropout{_dims}d", {"p": 0.1, "inplace": True}, _shape),
    ]
_covered = {kind for kind, _, _ in CASES} | {"Embedding"}  # it looks up, which only indices show
CASES += [(kind, {}, (4, 5, 5)) for kind in OPERATIONS if kind not in _covered]


@pytest.mark.parametrize(("kind", "parameters", "shape"), CASES)
def test_rule_says_what_the_module_does(kind: str, parameters: dict[str, Any], shape: Shape) -> None:
    assert set(parameters) <= OPERATIONS[kind].accepts
    assert_like_the_module(kind, parameters, shape)


def test_an_embedding_looks_up_what_a_dense_layer_would_multiply() -> None:
    inferred = infer("Embedding", {"embedding_dim": 3}, (11, 6))
    module = custom.load(OPERATIONS["Embedding"].factory, folder=Path("."))(**inferred.parameters)
    tokens = torch.randint(0, 11, (2, 6))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = module(tokens)
    assert inferred.output_shape == tuple(y.shape[1:]) == (3, 6)
    assert inferred.n_parameters == module.weight.numel() == 33
    assert inferred.multiply_adds == counter.get_total_flops() == 0
    one_hot = torch.nn.functional.one_hot(tokens, 11).transpose(1, 2).float()
    assert torch.allclose(module(one_hot), y, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "parameters", "shape", "reason"),
    [
        ("Embedding", {"embedding_dim": 3}, (11,), "works on 1-D maps, but its input is a vector of 11"),
        ("RecurrentCell", {"hidden_size": 3}, (5, 6), "lacks cell: set it to the JSON form of a tree"),
        ("RecurrentCell", {"hidden_size": 3, "cell": 1}, (5, 6), "has a cell that is not a cell: give a mapping with"),
        ("RecurrentCell", {"hidden_size": 0, "cell": 1}, (5, 6), "has hidden_size 0: set a positive integer"),
    ],
)
def test_wrong_layers_of_sequences_are_refused(
    kind: str, parameters: dict[str, Any], shape: Shape, reason: str
) -> None:
    with pytest.raises(Infeasible, match=rf"layer 'x' \({kind}\) {reason}"):
        infer(kind, parameters, shape)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, dict[str, Any], Shape]:
    """Dimensions, window parameters of any kind of value, and the shape of a map, from 1 up."""
    dims = draw(st.integers(1, 3))

    def sizes(least: int, most: int) -> st.SearchStrategy[Any]:
        one = st.integers(least, most)
        return one | st.lists(one, min_size=dims, max_size=dims)

    parameters = {
        "kernel_size": draw(sizes(1, 5)),
        "stride": draw(sizes(1, 3)),
        "padding": draw(sizes(0, 3)),
        "dilation": draw(sizes(1, 3)),
    }
    shape = (4, *draw(st.lists(st.integers(1, 8), min_size=dims, max_size=dims)))
    return dims, parameters, shape


@settings(deadline=None, max_examples=150)
@given(windows(), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([None, "same", "valid"]))
def test_any_convolution(
    window: tuple[int, dict[str, Any], Shape], groups: int, bias: bool, padding: str | None
) -> None:
    dims, parameters, shape = window
    if padding is not None:
        parameters = {**parameters, "padding": padding}
    assert_like_the_module(f"Conv{dims}d", {**parameters, "out_channels": 8, "groups": groups, "bias": bias}, shape)
    assert_like_the_module(f"SeparableConv{dims}d", {**parameters, "out_channels": 3, "bias": bias}, shape)


@settings(deadline=None, max_examples=150)
@given(windows(), st.booleans())
def test_any_pooling(window: tuple[int, dict[str, Any], Shape], ceil_mode: bool) -> None:
    dims, parameters, shape = window
    average = {key: value for key, value in parameters.items() if key != "dilation"} | {"ceil_mode": ceil_mode}
    for kind, given_parameters in (("AvgPool", average), ("MaxPool", parameters | {"ceil_mode": ceil_mode})):
        try:
            infer(f"{kind}{dims}d", given_parameters, shape)
        except Infeasible as error:
            assert "more than half of its kernel" in error.reason
            assume(False)
        assert_like_the_module(f"{kind}{dims}d", given_parameters, shape)


def test_a_kernel_larger_than_the_map_is_clamped_and_said() -> None:
    inferred = assert_like_the_module("Conv2d", {"out_channels": 2, "kernel_size": [5, 3]}, (3, 2, 8))
    assert inferred.parameters["kernel_size"] == (2, 3)
    assert inferred.output_shape == (2, 1, 6)
    assert inferred.note == "kernel 5x3 clamped to 2x3, as its input is a map of 3x2x8"
    inferred = assert_like_the_module("Conv2d", {"out_channels": 2, "kernel_size": 5, "padding": 1}, (3, 2, 2))
    assert (inferred.parameters["kernel_size"], inferred.n_parameters) == ((4, 4), 3 * 2 * 16 + 2)
    inferred = assert_like_the_module("MaxPool2d", {"kernel_size": 3, "dilation": 3, "padding": 1}, (3, 1, 1))
    assert inferred.parameters["kernel_size"] == (1, 1)
    assert inferred.parameters["padding"] == (0, 0)
    assert infer("MaxPool2d", {"kernel_size": 2}, (3, 2, 2)).note is None


def test_integers_may_come_as_floats() -> None:
    inferred = infer("Conv2d", {"out_channels": 8.0, "kernel_size": [3.0, 1], "groups": 1.0}, (3, 8, 8))
    assert inferred.output_shape == (8, 6, 8)
    assert type(inferred.parameters["out_channels"]) is int


@pytest.mark.parametrize(
    ("kind", "parameters", "shape", "reason"),
    [
        (
            "Conv1d",
            {"out_channels": 2, "kernel_size": 3},
            (3, 8, 8),
            "works on 1-D maps, but its input is a map of 3x8x8",
        ),
        ("Conv2d", {"out_channels": 2, "kernel_size": 3}, (3,), "works on 2-D maps, but its input is a vector of 3"),
        ("MaxPool3d", {"kernel_size": 3}, (3, 8), "works on 3-D maps, but its input is a map of 3x8"),
        ("BatchNorm2d", {}, (3,), "works on 2-D maps, but its input is a vector of 3"),
        ("Dropout2d", {}, (3,), "works on 2-D maps, but its input is a vector of 3"),
        ("InstanceNorm1d", {}, (3, 1), "needs more than one value in a channel, but its input is a map of 3x1"),
        (
            "GroupNorm",
            {"num_groups": 3},
            (3, 1, 1),
            "needs more than one value in a group, but has 3 groups and its input is a map of 3x1x1",
        ),
        ("GroupNorm", {"num_groups": 4}, (6, 2, 2), "has 4 groups, which do not divide its 6 input channels"),
        (
            "Conv2d",
            {"out_channels": 4, "kernel_size": 3, "groups": 2},
            (3, 8, 8),
            "has 2 groups, which do not divide its 3 input and 4 output channels",
        ),
        (
            "Conv2d",
            {"out_channels": 3, "kernel_size": 3, "groups": 2},
            (4, 8, 8),
            "has 2 groups, which do not divide its 4 input and 3 output channels",
        ),
        ("Conv2d", {"kernel_size": 3}, (3, 8, 8), "lacks out_channels: set it to a positive integer"),
        ("Conv2d", {"out_channels": 3}, (3, 8, 8), "lacks kernel_size: set it to a positive integer, or a list of 2"),
        ("Conv2d", {"out_channels": 0, "kernel_size": 3}, (3, 8, 8), "has out_channels 0: set a positive integer"),
        (
            "Conv2d",
            {"out_channels": 3, "kernel_size": [3, 3, 3]},
            (3, 8, 8),
            "has kernel_size [3, 3, 3]: set an integer of at least 1, or a list of 2",
        ),
        (
            "Conv2d",
            {"out_channels": 3, "kernel_size": 3, "padding": "full"},
            (3, 8, 8),
            "has padding 'full': set an integer of at least 0, or a list of 2",
        ),
        (
            "Conv2d",
            {"out_channels": 3, "kernel_size": 3, "padding_mode": "mirror"},
            (3, 8, 8),
            "has padding_mode 'mirror': set zeros, reflect, replicate or circular",
        ),
        (
            "Conv2d",
            {"out_channels": 3, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
            (3, 2, 8),
            "has reflect padding 2x2, too much for its input, a map of 3x2x8",
        ),
        ("Conv2d", {"out_channels": 3, "kernel_size": 1, "bias": "no"}, (3, 2, 8), "has bias 'no': set true or false"),
        (
            "MaxPool2d",
            {"kernel_size": 2, "padding": 2},
            (3, 8, 8),
            "has padding 2x2, more than half of its kernel 2x2",
        ),
        (
            "MaxPool2d",
            {"kernel_size": 2, "return_indices": True},
            (3, 8, 8),
            "cannot return indices: leave return_indices away",
        ),
        (
            "AdaptiveAvgPool2d",
            {"output_size": [1, 2, 3]},
            (3, 8, 8),
            "has output_size [1, 2, 3]: set an integer of at least 1, or a list of 2",
        ),
        ("Linear", {"out_features": 2.5}, (3,), "has out_features 2.5: set a positive integer"),
        ("Dropout", {"p": 1.5}, (3,), "needs p from 0 to below 1, not 1.5"),
        ("Flatten", {"start_dim": 2}, (3, 8), "flattens all but the batch: leave start_dim and end_dim away"),
        (
            "PReLU",
            {"num_parameters": 2},
            (3, 8),
            "has 2 slopes, but its input is a map of 3x8: set num_parameters to 1 or 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_naming_layer_and_shapes(
    kind: str, parameters: dict[str, Any], shape: Shape, reason: str
) -> None:
    with pytest.raises(Infeasible) as caught:
        infer(kind, parameters, shape)
    assert caught.value.reason == f"layer 'x' ({kind}) {reason}"
    assert caught.value.layer == "x"


def test_shapes_in_words() -> None:
    assert describe((3,)) == "a vector of 3"
    assert describe((3, 4, 5)) == "a map of 3x4x5"

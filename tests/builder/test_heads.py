"""The head: its layers for maps and vectors, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from nord_hpc.builder.heads import Head
from nord_hpc.errors import BadInput


def test_default_is_average_pooling_and_one_dense_layer() -> None:
    assert Head().operations((8, 4, 4), 10) == [
        ("head.pool", "AdaptiveAvgPool2d", {"output_size": 1}),
        ("head.flatten", "Flatten", {}),
        ("head.linear0", "Linear", {"out_features": 10}),
    ]
    assert Head().operations((8,), 10) == [("head.linear0", "Linear", {"out_features": 10})]


def test_hidden_layers_over_flattened_features() -> None:
    given = {"kind": "dense", "layers": [64, 32], "activation": "Tanh", "batch_norm": True, "features": "flattened"}
    kinds = [(name, kind) for name, kind, _ in Head.from_json(given).operations((8, 4), 10)]
    assert kinds == [
        ("head.flatten", "Flatten"),
        ("head.linear0", "Linear"),
        ("head.norm0", "BatchNorm1d"),
        ("head.activation0", "Tanh"),
        ("head.linear1", "Linear"),
        ("head.norm1", "BatchNorm1d"),
        ("head.activation1", "Tanh"),
        ("head.linear2", "Linear"),
    ]


def test_dropout_stands_before_each_dense_layer() -> None:
    steps = Head(layers=(5,), dropout=0.3).operations((8,), 10)
    assert [kind for _, kind, _ in steps] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert steps[0][2] == {"p": 0.3}


def test_no_head_has_no_layers() -> None:
    assert Head(kind="none").operations((10,), 10) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "conv"}, "head.kind: 'conv' is not a choice; set dense or none"),
        ({"features": "all"}, "head.features: 'all' is not a choice; set auto, pooled, flattened or positions"),
        ({"layers": [0]}, "head.layers: [0] is wrong; set a list of positive integers"),
        (
            {"widths": [3]},
            "head.widths: is not a known key; set one of kind, layers, activation, batch_norm, dropout, features, tied",
        ),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        Head.from_json(given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("shape", "first"), [((8, 8, 8), "Flatten"), ((8, 9, 9), "AdaptiveAvgPool2d"), ((8,), "Linear")]
)
def test_auto_flattens_maps_of_up_to_64_positions(shape: tuple[int, ...], first: str) -> None:
    assert Head(features="auto").operations(shape, 10)[0][1] == first

"""Plans: inference over whole networks, pruning, clamping, refusals, and the time they take."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nord_hpc.builder import Head, plan
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible


def small() -> NeuralDescriptor:
    """conv -> relu -> pool -> conv, and a skip connection from the first convolution to the last."""
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Conv2d", {"in_channels": 99, "out_channels": 4, "kernel_size": 3, "padding": 1}, "a")
    descriptor.add_layer_sequential("ReLU", None, "relu")
    descriptor.add_layer_sequential("MaxPool2d", {"kernel_size": 2}, "pool")
    descriptor.add_layer_sequential("Conv2d", {"out_channels": 6, "kernel_size": 1, "bias": False}, "wide")
    descriptor.add_layer_sequential("Identity", None, "join")
    descriptor.connect_layers("a", "join")
    return descriptor


def test_everything_is_inferred() -> None:
    result = plan(small(), input_shape=(1, 8, 8), n_outputs=10)
    names = ["a", "relu", "pool", "wide", "join", "head.pool", "head.flatten", "head.linear0"]
    assert [step.layer for step in result.steps] == names
    shapes = [(4, 8, 8), (4, 8, 8), (4, 4, 4), (6, 4, 4), (6, 4, 4), (6, 1, 1), (6,), (10,)]
    assert [step.output_shape for step in result.steps] == shapes
    assert [step.n_parameters for step in result.steps] == [40, 0, 0, 24, 0, 0, 0, 70]
    assert [step.multiply_adds for step in result.steps] == [36 * 64, 0, 0, 24 * 16, 0, 0, 0, 60]
    assert result.steps[0].parameters["in_channels"] == 1
    join = result.steps[4]
    assert (join.join, join.input_shape) == ("add", (6, 4, 4))
    assert [(adapter.source, adapter.pool_to, adapter.project) for adapter in join.inputs] == [
        (0, (4, 4), (4, 6)),
        (3, None, None),
    ]
    assert result.n_parameters == 40 + 24 + 70 + 24
    assert result.multiply_adds == 36 * 64 + 24 * 16 + 60 + 24 * 16
    results = 4 * 64 + 4 * 64 + 4 * 16 + 6 * 16 + 6 * 16 + 6 + 6 + 10
    joining = 4 * 16 + 6 * 16 + 6 * 16
    assert result.n_values == 64 + results + joining
    assert result.memory_bytes(32) == 4 * (4 * result.n_parameters + 32 * result.n_values)
    assert (result.n_layers, result.depth) == (8, 8)
    assert (result.input_shape, result.output_shape) == ((1, 8, 8), (10,))
    assert result.notes == ()


def test_one_descriptor_serves_several_data_sets() -> None:
    descriptor = small()
    before = descriptor.copy()
    gray = plan(descriptor, input_shape=(1, 28, 28), n_outputs=10)
    colour = plan(descriptor, input_shape=(3, 32, 32), n_outputs=100)
    assert [p.steps[0].parameters["in_channels"] for p in (gray, colour)] == [1, 3]
    assert [p.output_shape for p in (gray, colour)] == [(10,), (100,)]
    assert descriptor == before


def test_channels_and_sizes_that_differ_are_projected_and_scaled() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Identity", None, "in")
    descriptor.add_layer("Conv2d", {"out_channels": 16, "kernel_size": 3, "padding": 1}, "narrow")
    descriptor.add_layer("Conv2d", {"out_channels": 32, "kernel_size": 3, "padding": 1}, "wide")
    descriptor.add_layer("Identity", None, "sum")
    descriptor.add_layer("Conv2d", {"out_channels": 16, "kernel_size": 3, "padding": 1}, "fine")
    descriptor.add_layer("Conv2d", {"out_channels": 16, "kernel_size": 3, "padding": 1, "stride": 2}, "coarse")
    descriptor.add_layer("Identity", None, "both", join="concat")
    for source, target in (
        ("in", "narrow"),
        ("in", "wide"),
        ("narrow", "sum"),
        ("wide", "sum"),
        ("sum", "fine"),
        ("sum", "coarse"),
        ("fine", "both"),
        ("coarse", "both"),
    ):
        descriptor.connect_layers(source, target)
    steps = {step.layer: step for step in plan(descriptor, input_shape=(3, 32, 32), n_outputs=10).steps}
    assert steps["sum"].output_shape == (32, 32, 32)
    assert sorted((adapter.project or ()) for adapter in steps["sum"].inputs) == [(), (16, 32)]
    assert steps["both"].output_shape == (32, 16, 16)
    assert [adapter.pool_to for adapter in steps["both"].inputs] == [(16, 16), None]
    steps = {
        step.layer: step
        for step in plan(descriptor, input_shape=(3, 32, 32), n_outputs=10, size_policy="largest").steps
    }
    assert [adapter.enlarge_to for adapter in steps["both"].inputs] == [None, (32, 32)]


def test_a_chain_of_pools_is_clamped_at_the_last_and_named() -> None:
    descriptor = NeuralDescriptor()
    for number in range(1, 7):
        descriptor.add_layer_sequential("MaxPool2d", {"kernel_size": 2, "stride": 2}, f"pool{number}")
    result = plan(descriptor, input_shape=(1, 28, 28), n_outputs=10)
    assert [step.output_shape[1] for step in result.steps[:6]] == [14, 7, 3, 1, 1, 1]
    text = "(MaxPool2d): kernel 2x2 clamped to 1x1, as its input is a map of 1x1x1"
    assert result.notes == (f"layer 'pool5' {text}", f"layer 'pool6' {text}")


def test_a_dead_branch_is_not_planned() -> None:
    alive = small()
    dead = small()
    dead.add_layer("Conv2d", {"out_channels": 8, "kernel_size": 3}, "dead")
    dead.connect_layers("a", "dead")
    dead.add_layer("Conv1d", {"nonsense": 1}, "unreachable")
    dead.connect_layers("unreachable", "join")
    dead.last_layer = "join"
    assert dead.canonical_hash() == alive.canonical_hash()
    arguments: dict[str, Any] = {"input_shape": (1, 8, 8), "n_outputs": 10}
    assert plan(dead, **arguments) == plan(alive, **arguments)


def test_depth_is_the_longest_way() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Identity", None, "in")
    for name in "abc":
        descriptor.add_layer_sequential("Tanh", None, name)
    descriptor.add_layer_sequential("Identity", None, "out")
    descriptor.connect_layers("in", "out")
    assert plan(descriptor, input_shape=(4,), n_outputs=2).depth == 6


@pytest.mark.parametrize(("kind", "shape", "samples"), [("BatchNorm1d", (4,), 2), ("BatchNorm2d", (4, 2, 2), 1)])
def test_batch_norm_of_single_values_needs_two_samples(kind: str, shape: tuple[int, ...], samples: int) -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer(kind)
    assert plan(descriptor, input_shape=shape, n_outputs=2).smallest_batch == samples


def test_batch_norm_after_global_pooling_needs_two_samples() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer_sequential("Conv2d", {"out_channels": 4, "kernel_size": 3})
    descriptor.add_layer_sequential("AdaptiveAvgPool2d", {"output_size": 1})
    descriptor.add_layer_sequential("BatchNorm2d")
    descriptor.add_layer_sequential("Linear", {"out_features": 10})
    assert plan(descriptor, input_shape=(1, 8, 8), n_outputs=10).smallest_batch == 2


def test_heads_of_the_users_own() -> None:
    head = {"kind": "dense", "layers": [64], "activation": "Tanh", "batch_norm": True, "features": "flattened"}
    result = plan(small(), input_shape=(1, 8, 8), n_outputs=10, head=head)
    kinds = [step.kind for step in result.steps if step.layer.startswith("head.")]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "Tanh", "Linear"]
    assert result.steps[-4].n_parameters == 6 * 16 * 64 + 64
    with pytest.raises(
        Infeasible, match=r"layer 'head.activation0' \(Relu\) is of an unknown kind: did you mean ReLU\?"
    ):
        plan(small(), input_shape=(1, 8, 8), n_outputs=10, head=Head(layers=(3,), activation="Relu"))


def test_without_a_head_the_last_layer_gives_the_outputs() -> None:
    descriptor = small()
    with pytest.raises(Infeasible, match=r"layer 'join' \(Identity\) is the last one and gives a map of 6x4x4, not"):
        plan(descriptor, input_shape=(1, 8, 8), n_outputs=10, head=Head(kind="none"))
    descriptor.add_layer_sequential("Linear", {"out_features": 10}, "out")
    result = plan(descriptor, input_shape=(1, 8, 8), n_outputs=10, head={"kind": "none"})
    assert (result.n_layers, result.output_shape) == (6, (10,))


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        (
            "Conv2D",
            {},
            "is of an unknown kind: did you mean Conv2d? set an operation, a class of torch.nn, MODULE:CLASS",
        ),
        ("conv3x3-bn-relu", {}, "is of an unknown kind: set an operation"),
        ("functional", {}, "is of an unknown kind: set an operation"),
        ("ReLU", {"slope": 1}, "has no parameter 'slope': set any of inplace"),
        ("Identity", {"slope": 1}, "has no parameter 'slope': set any of none"),
        ("Conv1d", {"out_channels": 3, "kernel_size": 3}, "works on 1-D maps, but its input is a map of 1x8x8"),
    ],
)
def test_what_cannot_be_planned_is_named(kind: str, parameters: dict[str, int], reason: str) -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer(kind, parameters, "wrong")
    with pytest.raises(Infeasible) as caught:
        plan(descriptor, input_shape=(1, 8, 8), n_outputs=10)
    assert caught.value.reason.startswith(f"layer 'wrong' ({kind}) {reason}")
    assert caught.value.layer == "wrong"


def test_a_network_without_a_way_through_is_infeasible() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("ReLU", None, "in")
    descriptor.add_layer("ReLU", None, "out")
    with pytest.raises(Infeasible, match=r"^no path from 'in' to 'out'$"):
        plan(descriptor, input_shape=(1, 8, 8), n_outputs=10)


def test_an_unknown_head_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^head.kind: 'tail' is not a choice; set dense or none$"):
        plan(small(), input_shape=(1, 8, 8), n_outputs=10, head={"kind": "tail"})


@pytest.mark.timing
def test_planning_is_fast() -> None:
    descriptor = small()
    descriptor.add_layer_sequential("BatchNorm2d")
    descriptor.add_layer_sequential("ReLU")
    seconds = []
    for _ in range(200):
        descriptor.connect_layers("a", "join")
        start = time.perf_counter()
        plan(descriptor, input_shape=(3, 32, 32), n_outputs=10)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 150e-6


@pytest.mark.timing
def test_planning_is_linear_in_connections() -> None:
    """200 layers that all feed one another: 19,900 connections."""
    descriptor = NeuralDescriptor()
    names = [descriptor.add_layer("Conv2d", {"out_channels": 4 + n % 3, "kernel_size": 1}) for n in range(200)]
    for target, name in enumerate(names):
        for source in names[:target]:
            descriptor.connect_layers(source, name)
    start = time.perf_counter()
    result = plan(descriptor, input_shape=(3, 8, 8), n_outputs=10)
    assert time.perf_counter() - start < 1.5
    assert sum(len(step.inputs) for step in result.steps[:200]) == 19900

"""Networks: random graphs build and run as planned; equal graphs give equal bits, whatever their layers are called."""

from __future__ import annotations

import copy
import random
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nord_hpc.builder import NetworkPlan, plan
from nord_hpc.builder.network import Network, build
from nord_hpc.descriptor import NeuralDescriptor

SHAPES = {0: (5,), 1: (3, 9), 2: (3, 8, 6), 3: (2, 4, 5, 3)}


def _window(draw: st.DrawFn) -> dict[str, Any]:
    sizes = {"kernel_size": draw(st.integers(1, 4)), "stride": draw(st.integers(1, 2))}
    return sizes | {"padding": draw(st.integers(0, sizes["kernel_size"] // 2))}


@st.composite
def descriptors(draw: st.DrawFn) -> tuple[NeuralDescriptor, tuple[int, ...]]:
    """An acyclic graph of layers that work on what `dims` says, and an input shape; some layers are dead."""
    dims = draw(st.integers(0, 3))
    kinds: list[Callable[[], tuple[str, dict[str, Any]]]] = [
        lambda: ("ReLU", {"inplace": True}),
        lambda: ("Tanh", {}),
        lambda: ("LayerNorm", {}),
        lambda: ("GELU", {}),
    ]
    if dims:
        channels = st.integers(1, 4)
        kinds += [
            lambda: (f"Conv{dims}d", {"out_channels": draw(channels), **_window(draw)}),
            lambda: (f"Conv{dims}d", {"out_channels": draw(channels), "kernel_size": 3, "padding": "same"}),
            lambda: (f"SeparableConv{dims}d", {"out_channels": draw(channels), **_window(draw)}),
            lambda: (f"MaxPool{dims}d", _window(draw)),
            lambda: (f"AvgPool{dims}d", _window(draw)),
            lambda: (f"BatchNorm{dims}d", {}),
        ]
    else:
        kinds += [lambda: ("Linear", {"out_features": draw(st.integers(1, 6))}), lambda: ("BatchNorm1d", {})]
    n_layers = draw(st.integers(1, 8))
    descriptor = NeuralDescriptor()
    for number in range(n_layers):
        kind, parameters = draw(st.sampled_from(kinds))()
        descriptor.add_layer(kind, parameters, f"v{number}", join=draw(st.sampled_from(["add", "mean", "concat"])))
        if number:
            sources = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3, unique=True))
            for source in sources:
                descriptor.connect_layers(f"v{source}", f"v{number}")
    return descriptor, SHAPES[dims]


def renamed(descriptor: NeuralDescriptor, seed: int) -> NeuralDescriptor:
    """The same graph with other names, added and connected in another order."""
    rng = random.Random(seed)
    names = list(descriptor.layers)
    new = {name: f"{rng.random()}\n.\u2028'{name[::-1]}" for name in names}
    other = NeuralDescriptor()
    for name in rng.sample(names, len(names)):
        layer = descriptor.layers[name]
        other.add_layer(layer.kind, layer.parameters, new[name], join=layer.join)
    for name in rng.sample(names, len(names)):
        sources = list(descriptor.inputs(name))
        if descriptor.layers[name].join != "concat":
            rng.shuffle(sources)
        for source in sources:
            other.connect_layers(new[source], new[name])
    assert descriptor.first_layer is not None and descriptor.last_layer is not None
    other.first_layer, other.last_layer = new[descriptor.first_layer], new[descriptor.last_layer]
    return other


def assert_runs_as_planned(network: Network, result: NetworkPlan, x: torch.Tensor) -> torch.Tensor:
    """Each module gets and gives what its step says, and has its parameters."""
    seen: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    hooks = []
    for index in range(len(result.steps)):
        module = network.get_submodule(f"layer{index}")

        def hook(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor, index: int = index) -> None:
            seen[index] = (tuple(inputs[0].shape[1:]), tuple(output.shape[1:]))

        hooks.append(module.register_forward_hook(hook))
    y: torch.Tensor = network(x)
    for remove in hooks:
        remove.remove()
    for index, step in enumerate(result.steps):
        given_shape, output_shape = seen[index]
        flat = (torch.Size(step.input_shape).numel(),)
        assert given_shape == (flat if step.flatten else step.input_shape)
        assert output_shape == step.output_shape
        parameters = network.get_submodule(f"layer{index}").parameters()
        assert step.n_parameters == sum(parameter.numel() for parameter in parameters)
    assert result.n_parameters == sum(parameter.numel() for parameter in network.parameters())
    return y


@settings(deadline=None, max_examples=100)
@given(descriptors(), st.integers(0, 2**63 - 1), st.sampled_from(["smallest", "largest", 4]))
def test_random_graphs_run_as_planned_and_names_change_no_bit(
    drawn: tuple[NeuralDescriptor, tuple[int, ...]], seed: int, policy: Any
) -> None:
    descriptor, shape = drawn
    x = torch.randn(2, *shape)
    before = x.clone()
    arguments: dict[str, Any] = {"input_shape": shape, "n_outputs": 10, "size_policy": policy}
    result = plan(descriptor, **arguments)
    network = build(result, seed=seed)
    y = assert_runs_as_planned(network, result, x)
    assert y.shape == (2, 10)
    assert torch.equal(x, before)

    other = renamed(descriptor, seed)
    assert other.canonical_hash() == descriptor.canonical_hash()
    twin = build(plan(other, **arguments), seed=seed)
    assert torch.equal(twin(x), y)
    for (name, value), (twin_name, twin_value) in zip(
        network.state_dict().items(), twin.state_dict().items(), strict=True
    ):
        assert name == twin_name
        assert torch.equal(value, twin_value)

    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    assert network(x[:1]).shape == (1, 10)


def residual() -> NeuralDescriptor:
    """Two convolutions of different width and size that are added, beside a shortcut."""
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3, "padding": 1}, "in")
    descriptor.add_layer("Conv2d", {"out_channels": 6, "kernel_size": 3, "stride": 2}, "a")
    descriptor.add_layer("Identity", None, "out")
    for source, target in (("in", "a"), ("a", "out"), ("in", "out")):
        descriptor.connect_layers(source, target)
    return descriptor


def test_keys_do_not_depend_on_names() -> None:
    network = build(plan(residual(), input_shape=(1, 8, 8), n_outputs=10), seed=0)
    assert list(network.state_dict()) == [
        "layer0.weight",
        "layer0.bias",
        "layer1.weight",
        "layer1.bias",
        "layer2_from0.weight",
        "layer5.weight",
        "layer5.bias",
    ]


def test_a_join_is_computed_as_documented() -> None:
    network = build(plan(residual(), input_shape=(1, 8, 8), n_outputs=10), seed=0)
    x = torch.randn(3, 1, 8, 8)
    first = network.layer0(x)
    shortcut = network.layer2_from0(nn.functional.adaptive_avg_pool2d(first, (3, 3)))
    summed = shortcut + network.layer1(first)
    expected = network.layer5(summed.mean(dim=(2, 3)))
    torch.testing.assert_close(network(x), expected)


def test_equal_windows_average_as_adaptive_pooling_does() -> None:
    descriptor = residual()
    descriptor.disconnect_layers("a", "out")
    descriptor.add_layer("MaxPool2d", {"kernel_size": 4}, "pool")
    descriptor.connect_layers("in", "pool")
    descriptor.connect_layers("pool", "out")
    descriptor.last_layer = "out"
    network = build(plan(descriptor, input_shape=(1, 8, 8), n_outputs=2, head={"features": "flattened"}), seed=0)
    x = torch.randn(3, 1, 8, 8)
    first = network.layer0(x)
    summed = nn.functional.adaptive_avg_pool2d(first, 2) + nn.functional.max_pool2d(first, 4)
    torch.testing.assert_close(network(x), network.layer4(summed.flatten(1)))


def test_mean_divides_and_concatenation_keeps_its_order() -> None:
    for join, expected in (
        ("add", lambda x: torch.tanh(x) + torch.relu(x)),
        ("mean", lambda x: (torch.tanh(x) + torch.relu(x)) / 2),
        ("concat", lambda x: torch.cat([torch.tanh(x), torch.relu(x)], 1)),
    ):
        descriptor = NeuralDescriptor()
        descriptor.add_layer("Identity", None, "in")
        descriptor.add_layer("ReLU", None, "relu")
        descriptor.add_layer("Tanh", None, "tanh")
        descriptor.add_layer("Identity", None, "out", join=join)
        for source, target in (("in", "relu"), ("in", "tanh"), ("tanh", "out"), ("relu", "out")):
            descriptor.connect_layers(source, target)
        n_outputs = 8 if join == "concat" else 4
        network = build(plan(descriptor, input_shape=(4,), n_outputs=n_outputs, head={"kind": "none"}), seed=0)
        x = torch.randn(3, 4)
        torch.testing.assert_close(network(x), expected(x))


def test_a_map_that_meets_a_vector_is_averaged() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Identity", None, "in")
    descriptor.add_layer("Linear", {"out_features": 3}, "vector")
    descriptor.add_layer("Identity", None, "out")
    for source, target in (("in", "vector"), ("in", "out"), ("vector", "out")):
        descriptor.connect_layers(source, target)
    network = build(plan(descriptor, input_shape=(2, 4, 4), n_outputs=5), seed=0)
    x = torch.randn(3, 2, 4, 4)
    joined = network.layer2_from0(x.mean(dim=(2, 3))) + network.layer1(x.flatten(1))
    torch.testing.assert_close(network(x), network.layer3(joined))


def test_a_dead_branch_changes_no_bit() -> None:
    alive, dead = residual(), residual()
    dead.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, "dead")
    dead.connect_layers("in", "dead")
    dead.last_layer = "out"
    networks = [build(plan(d, input_shape=(1, 8, 8), n_outputs=10), seed=3) for d in (alive, dead)]
    assert alive.canonical_hash() == dead.canonical_hash()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(networks[0](x), networks[1](x))


def test_the_seed_alone_decides_and_the_global_state_stays() -> None:
    result = plan(residual(), input_shape=(1, 8, 8), n_outputs=10)
    x = torch.randn(2, 1, 8, 8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(result, seed=7)(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(build(result, seed=7)(x), first)
    assert not torch.equal(build(result, seed=8)(x), first)


def test_copies_are_independent_and_layers_can_be_exchanged() -> None:
    network = build(plan(residual(), input_shape=(1, 8, 8), n_outputs=10), seed=0)
    x = torch.randn(2, 1, 8, 8)
    before = network(x)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.layer0.weight.zero_()
    assert torch.equal(network(x), before)
    assert not torch.equal(other(x), before)
    network.layer5 = nn.Identity()
    assert network(x).shape == (2, 6)


def test_results_are_let_go_after_their_last_use() -> None:
    """A chain of 30 layers without gradients never holds more than a few results at once."""
    descriptor = NeuralDescriptor()
    for _ in range(30):
        descriptor.add_layer_sequential("Tanh")
    network = build(plan(descriptor, input_shape=(4, 8), n_outputs=2), seed=0)
    alive: list[int] = []
    counts: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            alive.append(1)
            weakref.finalize(y, alive.pop)
            counts.append(len(alive))
            return y

    for index in range(30):
        network.add_module(f"layer{index}", Counted())
    with torch.no_grad():
        network(torch.randn(2, 4, 8))
    assert len(counts) == 30
    assert max(counts) <= 2


def test_batch_norm_after_global_pooling_trains_on_two_samples_and_scores_one() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer_sequential("Conv2d", {"out_channels": 4, "kernel_size": 3})
    descriptor.add_layer_sequential("AdaptiveAvgPool2d", {"output_size": 1})
    descriptor.add_layer_sequential("BatchNorm2d")
    result = plan(descriptor, input_shape=(1, 8, 8), n_outputs=10)
    network = build(result, seed=0)
    network(torch.randn(result.smallest_batch, 1, 8, 8)).sum().backward()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        network(torch.randn(result.smallest_batch - 1, 1, 8, 8))
    network.eval()
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 10)


def dense_graph(n_layers: int) -> NeuralDescriptor:
    """Convolutions of five widths, each of which feeds all later ones."""
    descriptor = NeuralDescriptor()
    names = []
    for number in range(n_layers):
        parameters = {"out_channels": 8 + number % 5, "kernel_size": 3, "padding": 1}
        names.append(descriptor.add_layer("Conv2d", parameters))
        for source in names[:-1]:
            descriptor.connect_layers(source, names[-1])
    return descriptor


@pytest.mark.parametrize(("n_layers", "seconds", "repeats"), [(14, 0.023, 5), (100, 3.0, 1)])
@pytest.mark.timing
def test_dense_graphs_build_in_time(n_layers: int, seconds: float, repeats: int) -> None:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        network = build(plan(dense_graph(n_layers), input_shape=(3, 32, 32), n_outputs=10), seed=0)
        times.append(time.perf_counter() - start)
    assert min(times) < seconds
    with torch.no_grad():
        assert network(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.timing
def test_building_costs_little_more_than_the_bare_layers() -> None:
    """Ten convolutions with 8 million parameters in all."""
    descriptor = NeuralDescriptor()
    for _ in range(10):
        descriptor.add_layer_sequential("Conv2d", {"out_channels": 298, "kernel_size": 3, "padding": 1})
    bare, built = [], []
    for _ in range(10):
        start = time.perf_counter()
        modules = [nn.Conv2d(298, 298, 3, padding=1) for _ in range(10)]
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        network = build(plan(descriptor, input_shape=(298, 8, 8), n_outputs=10), seed=0)
        built.append(time.perf_counter() - start)
    bare_parameters = sum(p.numel() for module in modules for p in module.parameters())
    assert bare_parameters == 10 * (298 * 298 * 9 + 298)
    assert sum(p.numel() for p in network.parameters()) == bare_parameters + 298 * 10 + 10
    assert min(built) < 1.3 * min(bare)

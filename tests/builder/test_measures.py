"""Measures of networks against values computed by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nord_hpc.builder import plan
from nord_hpc.builder.measures import PathLengths, layer_masses, positions
from nord_hpc.builder.plan import NetworkPlan
from nord_hpc.descriptor import NeuralDescriptor


def planned(
    *layers: tuple[str, str, dict[str, Any], list[str]], shape: tuple[int, ...] = (3, 16, 16), **options: Any
) -> NetworkPlan:
    descriptor = NeuralDescriptor()
    for name, kind, parameters, inputs in layers:
        descriptor.add_layer(kind, parameters, name, join=options.get("join", "add"))
        for source in inputs:
            descriptor.connect_layers(source, name)
    return plan(descriptor, input_shape=shape, n_outputs=10, head=options.get("head"))


def conv(channels: int) -> dict[str, Any]:
    return {"out_channels": channels, "kernel_size": 3, "padding": 1}


def test_masses_of_a_branched_network() -> None:
    network = planned(
        ("in", "Identity", {}, []),
        ("a", "Conv2d", conv(16), ["in"]),
        ("relu", "ReLU", {}, ["a"]),
        ("b", "Conv2d", conv(32), ["relu"]),
        ("pool", "MaxPool2d", {"kernel_size": 2}, ["relu", "b"]),
        ("c", "Conv2d", conv(64), ["pool", "b"]),
    )
    masses = layer_masses(network)
    # a: 3 x 16. b: 16 x 32. pool: 16 + 32. c: (32 + 32) x 64. The head pools 64. In all 4768; a tenth for the ends.
    assert masses == {
        "in": pytest.approx(476.8),
        "a": 48,
        "relu": 0,
        "b": 512,
        "pool": 48,
        "c": 4096,
        "head.pool": 64,
        "head.flatten": 0,
        "head.linear0": pytest.approx(476.8),
    }


def test_concatenated_inputs_count_as_added_ones_do() -> None:
    layers: list[Any] = [
        ("a", "Conv2d", conv(16), []),
        ("b", "Conv2d", conv(32), ["a"]),
        ("c", "Conv2d", conv(8), ["a", "b"]),
    ]
    added, concatenated = layer_masses(planned(*layers)), layer_masses(planned(*layers, join="concat"))
    assert added["c"] == concatenated["c"] == (16 + 32) * 8
    assert added["a"] == 3 * 16  # there is no layer for the input: its channels are those of the data


def test_the_ends_of_a_small_network_have_a_least_mass() -> None:
    network = planned(("in", "Input", {}, []), ("a", "Conv2d", conv(4), ["in"]), ("out", "Output", {}, ["a"]))
    masses = layer_masses(network)
    assert masses["in"] == masses["out"] == masses["head.linear0"] == 100.0 and masses["a"] == 12


def test_dense_layers_count_the_values_that_they_read() -> None:
    network = planned(
        ("a", "Conv2d", conv(4), []),
        ("dense", "Linear", {"out_features": 20}, ["a"]),
        ("last", "Linear", {"out_features": 10}, ["dense"]),
        head={"kind": "none"},
    )
    # A last layer of the descriptor's own is one like the others.
    assert layer_masses(network) == {"a": 12, "dense": 4 * 16 * 16 * 20, "last": 200}


def test_path_lengths() -> None:
    network = planned(
        ("a", "Conv2d", conv(4), []),
        ("b", "Conv2d", conv(4), ["a"]),
        ("c", "Conv2d", conv(4), ["a", "b"]),
        ("d", "Conv2d", conv(4), ["a", "c"]),
    )
    found = positions(network)
    assert found["a"].from_input == PathLengths(0, 0, 0.0)
    assert found["c"].from_input == PathLengths(1, 2, 1.5)  # from a, or by b
    assert found["d"].from_input == PathLengths(1, 3, 1.75)  # 1 + (0 + 1.5) / 2
    # Three layers of the head follow d. From c: 1 + 3. From b: 2 + 3. From a: 1 + (b 5 + c 4 + d 3) / 3.
    assert found["d"].to_output == PathLengths(3, 3, 3.0)
    assert found["b"].to_output == PathLengths(5, 5, 5.0)
    assert found["a"].to_output == PathLengths(4, 6, 5.0)
    assert found["head.linear0"].to_output == PathLengths(0, 0, 0.0)
    assert found["head.linear0"].from_input.longest == network.depth - 1


@pytest.mark.timing
def test_a_dense_graph_is_measured_in_linear_time() -> None:
    layers = [(f"l{k}", "Conv2d", conv(4), [f"l{j}" for j in range(k)]) for k in range(100)]
    network = planned(*layers, shape=(4, 8, 8))
    before = time.perf_counter()
    masses, found = layer_masses(network), positions(network)
    assert time.perf_counter() - before < 0.5
    assert masses["l99"] == 99 * 4 * 4 and found["l99"].from_input[:2] == (1, 99)

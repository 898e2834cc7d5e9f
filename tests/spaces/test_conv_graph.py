"""The space of convolutional graphs: the conformance suite, its counts, its options, its networks, its speed."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, text_of, walk
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.spaces.conv_graph import ConvGraph

SMALL: dict[str, Any] = {
    "max_layers": 3,
    "min_layers": 1,
    "channels": [8],
    "kernels": [1, 3],
    "normalization": ["batch"],
    "pooling": ["none", "max"],
    "max_poolings": 1,
}


class TestConvGraph(SpaceSuite):
    name = "conv_graph"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "small": SMALL,
        "chains": {"skip": False, "max_layers": 5, "max_poolings": 3},
        "many_layers": {"max_layers": 20, "min_layers": 12, "activations": ["relu", "elu", "gelu", "tanh", "silu"]},
        "one_length": {"min_layers": 4, "max_layers": 4, "join": "mean", "activations": ["sigmoid", "leaky_relu"]},
        "only_edges": {
            "min_layers": 3, "max_layers": 3, "channels": [8], "kernels": [3],
            "normalization": ["none"], "pooling": ["none"], "join": "concat",
        },
        "always_pooled": {"max_layers": 3, "pooling": ["max", "avg"], "max_poolings": 3},
    }  # fmt: skip


def layer(inputs: list[int], **fields: Any) -> dict[str, Any]:
    fixed = {"channels": 8, "kernel": 3, "activation": "relu", "normalization": "batch", "pooling": "none"}
    return {**fixed, **fields, "inputs": inputs}


def test_size_counts_what_the_neighbours_reach() -> None:
    space = make_space("conv_graph", SMALL)
    reached = {text_of(space.sample(generator(0)))}
    open_texts = list(reached)
    while open_texts:
        for neighbour in space.neighbours(json.loads(open_texts.pop())):
            if (text := text_of(neighbour)) not in reached:
                reached.add(text)
                open_texts.append(text)
    # Lengths 1, 2, 3: kernels 2**n, no or one pooling 1 + n, graphs 1, 2, 10.
    assert len(reached) == 2 * 2 * 1 + 4 * 3 * 2 + 8 * 4 * 10
    assert space.size() == len(reached)


def test_samples_reach_most_graphs() -> None:
    space = make_space("conv_graph", {**SMALL, "kernels": [3], "pooling": ["none"]})
    rng = generator(0)
    sampled = {tuple(tuple(node["inputs"]) for node in space.sample(rng)) for _ in range(3000)}
    assert space.size() == 13
    beyond = {((-1,), (0,), (-1, 0, 1)), ((-1,), (-1, 0), (-1, 0, 1))}
    assert len(sampled) == 11
    assert not sampled & beyond


def test_mutations_make_every_neighbour() -> None:
    space = make_space("conv_graph", SMALL)
    rng = generator(0)
    for genotype in ([layer([-1]), layer([0])], [layer([-1]), layer([-1, 0], pooling="max"), layer([1])]):
        neighbours = {text_of(neighbour) for neighbour in space.neighbours(genotype)}
        assert {text_of(space.mutate(genotype, rng)) for _ in range(3000)} == neighbours


def test_samples_spread_lengths_and_poolings_evenly() -> None:
    space = make_space("conv_graph", {})
    rng = generator(1)
    samples = [space.sample(rng) for _ in range(5000)]
    lengths = np.bincount([len(genotype) for genotype in samples], minlength=7)
    assert lengths[:2].sum() == 0
    assert np.all(np.abs(lengths[2:] - 1000) < 120)
    poolings = np.bincount([sum(node["pooling"] != "none" for node in genotype) for genotype in samples])
    assert len(poolings) == 3
    assert np.all(np.abs(poolings - 5000 / 3) < 140)
    normalized = [node["normalization"] == "batch" for genotype in samples for node in genotype]
    assert all(normalized)


def test_a_mutation_never_fills_the_graph_with_edges() -> None:
    space = make_space("conv_graph", {})
    rng = generator(2)
    genotype, n_edges, n_layers = space.sample(rng), 0, 0
    for _ in range(5000):
        genotype = space.mutate(genotype, rng)
        n_edges += sum(len(node["inputs"]) for node in genotype)
        n_layers += len(genotype)
    assert n_edges / n_layers < 2


def test_a_layer_put_in_takes_the_place_of_the_edge_and_one_taken_out_gives_it_back() -> None:
    space = make_space("conv_graph", {"min_layers": 2, "max_layers": 3, "pooling": ["none"]})
    pair = [layer([-1]), layer([0])]
    shapes = {tuple(tuple(node["inputs"]) for node in genotype) for genotype in space.neighbours(pair)}
    assert shapes == {((-1,), (0,)), ((-1,), (-1, 0)), ((-1,), (0,), (1,))}
    triple = [layer([-1], channels=8), layer([0], channels=16), layer([-1, 1], channels=32)]
    shorter = [genotype for genotype in space.neighbours(triple) if len(genotype) == 2]
    assert shorter == [
        [layer([-1], channels=16), layer([-1, 0], channels=32)],
        [layer([-1], channels=8), layer([-1, 0], channels=32)],
        [layer([-1], channels=8), layer([0], channels=16)],
    ]


def test_crossover_joins_a_beginning_and_an_end() -> None:
    space = make_space("conv_graph", {"channels": [8, 16]})
    rng = generator(4)
    first = [layer([-1]), layer([0]), layer([0, 1]), layer([2])]
    second = [
        layer([-1], channels=16, pooling="max"),
        layer([0], channels=16, pooling="max"),
        layer([0, 1], channels=16),
    ]
    children = [space.crossover(first, second, rng) for _ in range(300)]
    patterns = {"".join("a" if node["channels"] == 8 else "b" for node in child) for child in children}
    assert patterns == {"a" * head + "b" * tail for head in range(1, 5) for tail in range(1, 4) if head + tail <= 6}
    pooled = [layer([-1], pooling="avg"), layer([0], pooling="avg")]
    crossed = [space.crossover(pooled, second, rng) for _ in range(100)]
    assert max(sum(node["pooling"] != "none" for node in child) for child in crossed) == 2
    # Two of each parent, the last two poolings left out, edges of one and two steps back.
    child = next(child for child in crossed if len(child) == 5)
    assert [node["pooling"] for node in child] == ["avg", "avg", "none", "none", "none"]
    assert [node["inputs"] for node in child] == [[-1], [0], [1], [2], [2, 3]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda genotype: genotype.pop(),
        lambda genotype: genotype[1].update(channels=9),
        lambda genotype: genotype[1].update(channels=8.0),
        lambda genotype: genotype[1].update(kernel=True),
        lambda genotype: genotype[1].update(activation="gelu"),
        lambda genotype: genotype[1].update(dropout=0.5),
        lambda genotype: genotype[1].pop("pooling"),
        lambda genotype: genotype[0].update(inputs=[]),
        lambda genotype: genotype[1].update(inputs=[1]),
        lambda genotype: genotype[1].update(inputs=[0, -1]),
        lambda genotype: genotype[1].update(inputs=[0, 0]),
        lambda genotype: genotype[1].update(inputs=[-2, 0]),
        lambda genotype: genotype[1].update(inputs=["0"]),
        lambda genotype: genotype[1].update(inputs=[-1]),
        lambda genotype: [node.update(pooling="max") for node in genotype],
    ],
)
def test_contains_looks_at_every_part(damage: Any) -> None:
    space = make_space("conv_graph", {"min_layers": 3, "kernels": [1, 3]})
    genotype = [layer([-1]), layer([0]), layer([-1, 1])]
    assert space.contains(genotype)
    damage(genotype)
    assert not space.contains(genotype)


def test_chains_have_no_other_edges() -> None:
    space = make_space("conv_graph", {"skip": False})
    assert space.contains([layer([-1]), layer([0]), layer([1])])
    assert not space.contains([layer([-1]), layer([0]), layer([0, 1])])
    for seed in range(50):
        for genotype in walk(space, seed, 10):
            assert [node["inputs"] for node in genotype] == [[index - 1] for index in range(len(genotype))]


def test_networks_have_the_layers_and_edges_of_the_genotype() -> None:
    space = make_space("conv_graph", {"activations": ["relu", "tanh"]})
    genotype = [
        layer([-1], channels=16, kernel=5, pooling="max"),
        layer([-1, 0], normalization="none", activation="tanh", kernel=1, pooling="avg"),
    ]
    network = space.to_descriptor(genotype).to_json()
    layers = {node["name"]: node for node in network["layers"]}
    assert list(layers) == [
        "input",
        "0_Conv2d", "0_BatchNorm2d", "0_ReLU", "0_MaxPool2d",
        "1_Conv2d", "1_Tanh", "1_AvgPool2d",
    ]  # fmt: skip
    first = {"out_channels": 16, "kernel_size": 5, "padding": 2, "bias": False}
    assert layers["0_Conv2d"]["parameters"] == first
    second = {"out_channels": 8, "kernel_size": 1, "padding": 0, "bias": True}
    assert layers["1_Conv2d"]["parameters"] == second
    assert layers["0_MaxPool2d"]["parameters"] == {"kernel_size": 2}
    inputs = {name: node["inputs"] for name, node in layers.items()}
    assert inputs["0_Conv2d"] == ["input"]
    assert inputs["1_Conv2d"] == ["input", "0_MaxPool2d"]
    assert inputs["1_Tanh"] == ["1_Conv2d"]
    assert (network["first"], network["last"]) == ("input", "1_AvgPool2d")


def test_the_order_of_equal_parallel_layers_does_not_change_the_hash() -> None:
    space = make_space("conv_graph", {})
    narrow, wide = {"channels": 8}, {"channels": 32}
    first = [layer([-1]), layer([0], **narrow), layer([0], **wide), layer([1, 2])]
    second = [layer([-1]), layer([0], **wide), layer([0], **narrow), layer([1, 2])]
    third = [layer([-1]), layer([0], **wide), layer([0], **wide), layer([1, 2])]
    hashes = [space.to_descriptor(genotype).canonical_hash() for genotype in (first, second, third)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_layers": 7}, "min_layers 7 is above max_layers 6; set min_layers to 6 or less"),
        ({"kernels": [3, 4]}, "a kernel of 4 cannot keep height and width; set odd sides such as 1, 3, 5"),
        ({"channels": []}, "is empty; set at least one choice"),
        ({"channels": [8, 0]}, "0 channels are too few; set 1 or more"),
        (
            {"pooling": ["max"]},
            "every layer pools, and max_poolings is 2; add none to pooling, or set max_poolings to 6",
        ),
        ({"activations": ["step"]}, "relu"),
        ({"depth": 3}, "depth"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConvGraph.Options.model_validate(options)


def test_resolved_options_give_the_same_space_again() -> None:
    options = ConvGraph.Options.model_validate({"channels": [4, 4, 8], "skip": False})
    again = ConvGraph.Options.model_validate(json.loads(json.dumps(options.model_dump(mode="json"))))
    assert again == options


@pytest.mark.timing
def test_operators_are_fast_enough_for_thousands_of_trials_a_second() -> None:
    space = make_space("conv_graph", {})
    rng = generator(0)
    six = next(genotype for genotype in (space.sample(rng) for _ in range(1000)) if len(genotype) == 6)

    def microseconds(operator: Any) -> float:
        best = float("inf")
        for _ in range(7):
            before = time.perf_counter()
            for _ in range(200):
                operator()
            best = min(best, (time.perf_counter() - before) / 200)
        return best * 1e6

    assert microseconds(lambda: space.sample(rng)) < 60
    assert microseconds(lambda: space.mutate(six, rng)) < 60
    assert microseconds(lambda: space.crossover(six, six, rng)) < 60
    assert microseconds(lambda: space.to_descriptor(six)) < 60


def test_all_poolings_fit_on_small_images() -> None:
    space = make_space("conv_graph", {})
    genotype = [layer([-1], pooling="max"), layer([0], pooling="avg"), layer([-1, 0, 1])]
    planned = plan(space.to_descriptor(genotype), input_shape=(3, 8, 8), n_outputs=10)
    assert planned.n_parameters > 0

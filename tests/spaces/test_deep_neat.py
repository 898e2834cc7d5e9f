"""The space of DeepNEAT's genes: the conformance suite, its networks, its bounds, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, walk
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.spaces.deep_neat import DeepNeat


class TestDeepNeatConforms(SpaceSuite):
    name = "deep_neat"
    variants = {  # noqa: RUF012
        "default": {},
        "small": {"max_nodes": 2, "sample_nodes": 2, "channels": [4, 5], "kernels": [2, 2], "join": "mean"},
        "plain": {"dropout": [0, 0], "scale": [1, 1], "pool": False, "join": "concat"},
        "growing": {"add_node_rate": 0.6, "add_connection_rate": 0.4, "toggle_rate": 0, "max_nodes": 30},
    }
    input_shape = (3, 12, 12)


class TestDeepNeatOnSequencesConforms(SpaceSuite):
    name = "deep_neat"
    variants = {"sequences": {"dimensions": 1, "channels": [4, 16]}}  # noqa: RUF012
    input_shape = (3, 52)


def test_values_stay_inside_their_bounds_and_reach_them() -> None:
    space = make_space("deep_neat", {"channels": [4, 9], "kernels": [1, 3], "dropout": [0.1, 0.4]})
    nodes = [node for seed in range(60) for genotype in walk(space, seed, 10) for node in genotype["nodes"]]
    assert {node["out_channels"] for node in nodes} == {4, 5, 6, 7, 8, 9}
    assert {node["kernel_size"] for node in nodes} == {1, 2, 3}
    assert {node["pool"] for node in nodes} == {False, True}
    assert all(0.1 <= node["dropout"] <= 0.4 and 0.5 <= node["scale"] <= 1.5 for node in nodes)
    drawn = sorted(node["dropout"] for node in nodes)
    assert drawn[0] < 0.13 and drawn[-1] > 0.37


def test_the_graph_never_has_a_cycle_and_grows_to_its_limit() -> None:
    space = make_space("deep_neat", {"max_nodes": 6, "add_node_rate": 0.5, "add_connection_rate": 0.4})
    rng = generator(3)
    genotype = space.sample(rng)
    sizes = set()
    for _ in range(300):
        genotype = space.mutate(genotype, rng)
        assert space.contains(genotype)
        space.to_descriptor(genotype).check()
        sizes.add(len(genotype["nodes"]))
    assert max(sizes) == 6
    assert len(genotype["connections"]) == 8 * 7 // 2  # all that no cycle forbids


def test_networks_have_the_layers_of_their_nodes() -> None:
    space = make_space("deep_neat", {"scale": [0.5, 1.5]})
    number = space._graphs.innovation
    node = {"innovation": 7, "out_channels": 16, "dropout": 0.25, "scale": 0.5, "kernel_size": 2, "pool": True}
    bare = {"innovation": 9, "out_channels": 8, "dropout": 0.0, "scale": 1.0, "kernel_size": 1, "pool": True}
    pairs = [(-2, 7, True), (7, 9, True), (9, -1, True), (-2, -1, False), (7, -1, True)]
    connections = [
        {"innovation": number.connection(a, b), "source": a, "target": b, "enabled": enabled} for a, b, enabled in pairs
    ]
    genotype = {"nodes": [node, bare], "connections": sorted(connections, key=lambda gene: gene["innovation"])}
    assert space.contains(genotype)
    network = space.to_descriptor(genotype)
    kinds = {name: layer.kind for name, layer in network.layers.items()}
    assert kinds == {
        "7in": "Conv2d", "7scale": "ScaleLayer", "7dout": "Dropout2d", "7pool": "MaxPool2d", "7out": "ReLU6",
        "9in": "Conv2d", "9out": "ReLU6", "-2out": "Identity", "-1in": "Identity",
    }  # fmt: skip
    assert network.layers["7in"].parameters == {"out_channels": 16, "kernel_size": 2}
    assert network.layers["7pool"].parameters == {"kernel_size": 2, "stride": 2}
    assert set(network.inputs("-1in")) == {"7out", "9out"} and network.inputs("7in") == ("-2out",)
    planned = plan(network, input_shape=(3, 8, 8), n_outputs=10)
    assert planned.steps[-4].output_shape == (16, 3, 3)
    # A node whose connections are all disabled is not built.
    off = {**genotype, "connections": [dict(gene) for gene in genotype["connections"]]}
    for gene in off["connections"]:
        gene["enabled"] = gene["enabled"] and gene["target"] != 9
    assert space.contains(off) and "9in" not in space.to_descriptor(off).layers


def test_a_child_has_genes_of_both() -> None:
    space = make_space("deep_neat", {"extra_share": 0.5, "max_nodes": 8})
    shared = {"both": 0, "more": 0}
    for seed in range(60):
        rng = generator(seed)
        first = walk(space, seed, 4)[-1]
        second = space.mutate(space.mutate(walk(space, seed, 2)[-1], rng), rng)
        child = space.crossover(first, second, rng)
        numbers = [{gene["innovation"] for gene in genotype["nodes"]} for genotype in (first, second, child)]
        assert numbers[0] <= numbers[2] <= numbers[0] | numbers[1]
        values = {str(node) for node in (*first["nodes"], *second["nodes"])}
        assert all(str(node) in values for node in child["nodes"])
        shared["both"] += bool(numbers[0] & numbers[1])
        shared["more"] += numbers[2] > numbers[0]
    assert shared["both"] > 10 and shared["more"] > 5


def test_distance_is_that_of_the_genes() -> None:
    space = make_space("deep_neat", {})
    first, second = (space.sample(generator(seed)) for seed in (1, 2))
    assert space.distance(first, first) == 0
    assert space.distance(first, second) == space.distance(second, first) > 0


def test_damaged_genotypes_are_not_contained() -> None:
    space = make_space("deep_neat", {})
    genotype = space.sample(generator(5))

    def changed(kind: str, place: int, **values: Any) -> Any:
        genes = [dict(gene) for gene in genotype[kind]]
        genes[place] = {**genes[place], **values}
        return {**genotype, kind: genes}

    assert space.contains(changed("nodes", 0, out_channels=9))
    number = space._graphs.innovation.connection
    back = {"innovation": number(-1, -2), "source": -1, "target": -2, "enabled": False}
    for wrong in [
        changed("nodes", 0, out_channels=9.0),
        changed("nodes", 0, out_channels=1000),
        changed("nodes", 0, pool=1),
        changed("nodes", 0, dropout=0),
        changed("nodes", 0, innovation=-2),
        changed("connections", 0, enabled=1),
        changed("connections", 0, source=12345),
        changed("connections", 0, innovation=3),
        {**genotype, "nodes": []},
        {**genotype, "connections": genotype["connections"][::-1]},
        {**genotype, "connections": [{**gene, "enabled": False} for gene in genotype["connections"]]},
        {
            **genotype,
            "connections": sorted([*genotype["connections"], back], key=lambda gene: gene["innovation"]),
        },
    ]:
        assert not space.contains(wrong), wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [64, 8]}, "the lowest value 64 is above the highest one 8; swap them"),
        ({"channels": [0, 8]}, "channels and kernels begin at 1; set their lowest values to 1 or more"),
        ({"dropout": [0, 1]}, r"dropout \[0.0, 1.0\] is no chance; set values from 0 to below 1"),
        ({"sample_nodes": 20}, "sample_nodes 20 is above max_nodes 12; set it to 12 or less"),
        ({"toggle_rate": 0.9}, "the rates of mutations add up to 1.35; set them so that they give 1 or less"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DeepNeat.Options.model_validate(options)

"""The space of modules and blueprints: the conformance suite, assembled networks, parts, and what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, walk
from pydantic import ValidationError

from nord_hpc.builder import plan
from nord_hpc.spaces.co_deep_neat import CoDeepNeat


class TestCoDeepNeatConforms(SpaceSuite):
    name = "co_deep_neat"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "concat": {
            "join": "concat",
            "species": 1,
            "module_rate": 0.2,
            "modules": {"max_nodes": 2, "sample_nodes": 2, "join": "mean"},
        },
    }
    input_shape = (3, 12, 12)


def node(number: int, channels: int) -> dict[str, Any]:
    return {
        "innovation": number, "out_channels": channels, "dropout": 0.0, "scale": 1.0, "kernel_size": 1, "pool": False,
    }  # fmt: skip


def graph(space: Any, nodes: list[Any], pairs: list[tuple[int, int]]) -> Any:
    number = space.blueprints.innovation.connection
    connections = [{"innovation": number(a, b), "source": a, "target": b, "enabled": True} for a, b in pairs]
    return {"nodes": nodes, "connections": sorted(connections, key=lambda gene: gene["innovation"])}


def example(space: Any) -> Any:
    """Two nodes of species 0 one after the other, and one of species 2 beside them."""
    blueprint = graph(
        space,
        [{"innovation": 5, "module": 0}, {"innovation": 6, "module": 0}, {"innovation": 7, "module": 2}],
        [(-2, 5), (5, 6), (6, -1), (-2, 7), (7, -1)],
    )
    chain = graph(space, [node(8, 8), node(9, 16)], [(-2, 8), (8, 9), (9, -1)])
    single = graph(space, [node(8, 24)], [(-2, 8), (8, -1)])
    return space.assemble(blueprint, {0: chain, 1: single, 2: single})


def test_the_network_has_the_module_of_each_node() -> None:
    space = make_space("co_deep_neat", {"join": "concat"})
    genotype = example(space)
    assert space.contains(genotype) and list(genotype["modules"]) == ["0", "2"]
    network = space.to_descriptor(genotype)
    convolutions = {
        name: layer.parameters["out_channels"] for name, layer in network.layers.items() if name[-3:] in ("8in", "9in")
    }
    assert convolutions == {"5/8in": 8, "5/9in": 16, "6/8in": 8, "6/9in": 16, "7/8in": 24}
    assert network.inputs("6/-2out") == ("5/-1in",) and network.inputs("5/-2out") == ("-2out",)
    assert set(network.inputs("-1in")) == {"6/-1in", "7/-1in"}
    assert network.layers["-1in"].join == network.layers["6/-2out"].join == "concat"
    planned = plan(network, input_shape=(3, 8, 8), n_outputs=10)
    # Two modules of 1x1 convolutions behind each other, 3-8-16 and 16-8-16, and 3-24 beside them; 40 features.
    assert planned.n_parameters == (32 + 144) + (136 + 144) + 96 + 410


def test_parts_and_assembly_are_inverse() -> None:
    space = make_space("co_deep_neat", {})
    for seed in range(20):
        for genotype in walk(space, seed, 6):
            blueprint, modules = space.parts(genotype)
            assert space.blueprints.contains(blueprint) and all(map(space.modules.contains, modules.values()))
            assert list(modules) == space.species_of(blueprint)
            assert space.assemble(blueprint, {**{k: None for k in range(3)}, **modules}) == genotype


def test_a_mutation_changes_a_module_or_the_blueprint() -> None:
    space = make_space("co_deep_neat", {"species": 4})
    rng = generator(1)
    changed = {"blueprint": 0, "modules": 0}
    for _ in range(200):
        genotype = space.sample(rng)
        child = space.mutate(genotype, rng)
        if child["blueprint"] != genotype["blueprint"]:
            changed["blueprint"] += 1
            kept = child["modules"].keys() & genotype["modules"].keys()
            assert all(child["modules"][species] == genotype["modules"][species] for species in kept)
        else:
            changed["modules"] += 1
            differing = [key for key, module in child["modules"].items() if module != genotype["modules"][key]]
            assert len(differing) == 1
    assert min(changed.values()) > 60


def test_distance_is_that_of_blueprints_and_modules() -> None:
    space = make_space("co_deep_neat", {})
    first = example(space)
    blueprint, modules = space.parts(first)
    assert space.distance(first, first) == 0
    wider = graph(space, [node(8, 64)], [(-2, 8), (8, -1)])
    second = space.assemble(blueprint, {**modules, 2: wider})
    assert space.distance(first, second) == space.modules.distance(modules[2], wider) / 4
    other = graph(space, [{"innovation": 5, "module": 0}], [(-2, 5), (5, -1)])
    apart = space.blueprints.distance(blueprint, other)
    assert space.distance(first, space.assemble(other, modules)) == pytest.approx((apart + 0.5) / 2)


def test_damaged_genotypes_are_not_contained() -> None:
    space = make_space("co_deep_neat", {})
    genotype = example(space)
    blueprint, modules = genotype["blueprint"], genotype["modules"]
    nodes = [{**blueprint["nodes"][0], "module": 3}, *blueprint["nodes"][1:]]
    for wrong in [
        {"blueprint": blueprint},
        {"blueprint": blueprint, "modules": {"0": modules["0"]}},
        {"blueprint": blueprint, "modules": {**modules, "1": modules["0"]}},
        {"blueprint": blueprint, "modules": {"0": modules["0"], "2": blueprint}},
        {"blueprint": modules["0"], "modules": modules},
        {"blueprint": {**blueprint, "nodes": nodes}, "modules": modules},
        {"blueprint": blueprint, "modules": list(modules.values())},
    ]:
        assert not space.contains(wrong), wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_nodes": 9}, "sample_nodes 9 is above max_nodes 6; set it to 6 or less"),
        ({"toggle_rate": 0.9}, "the rates of mutations add up to 1.35; set them so that they give 1 or less"),
        ({"modules": {"channels": [64, 8]}}, "the lowest value 64 is above the highest one 8; swap them"),
        ({"species": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CoDeepNeat.Options.model_validate(options)

"""Genes and genomes: numbers, operators against what the papers say, and the interface that NORD's scripts use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nord_hpc.builder import plan
from nord_hpc.errors import BadInput
from nord_hpc.spaces import genes as ops
from nord_hpc.spaces.genes import Bounds, ConnectionGene, Genes, NodeGene
from nord_hpc.spaces.genome import Genome, Innovation

TYPES = [int, float, float, int, bool]
LIMITS = [[32, 0.0, 0, 1, 0], [256, 0.7, 2.0, 3, 1]]
BOUNDS = Bounds(tuple(TYPES), (1, 0.0, 0.0, 1, False), (11, 0.5, 2.0, 3, True))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def genome(seed: int = 0, *, rates: tuple[float, float, float] = (0.4, 0.3, 0.5), **options: Any) -> Genome:
    return Genome(TYPES, LIMITS, *rates, rng=rng(seed), **options)


def made(nodes: dict[int, Any], pairs: list[tuple[int, int, bool]]) -> Genes:
    innovation = Innovation()
    connections = [ConnectionGene(innovation.connection(a, b), a, b, enabled) for a, b, enabled in pairs]
    return ops._sorted([NodeGene(number, values) for number, values in nodes.items()], connections)


def test_equal_changes_have_equal_numbers_whoever_makes_them() -> None:
    first, second = Innovation(), Innovation()
    assert first.connection(-2, 5) == second.connection(-2, 5) != first.connection(5, -2)
    assert first.node(7, 0) == second.node(7, 0) != first.node(7, 1)
    second.new_generation()
    assert first.node(7, 0) != second.node(7, 0) and first.connection(1, 2) == second.connection(1, 2)
    split = [ops.add_node(ops.initial(Innovation()), BOUNDS, Innovation(), rng(seed)) for seed in (1, 2)]
    assert split[0].nodes[0].innovation == split[1].nodes[0].innovation
    assert split[0].nodes[0].values != split[1].nodes[0].values


def test_a_node_splits_a_connection() -> None:
    genes = ops.add_node(ops.initial(Innovation()), BOUNDS, Innovation(), rng())
    number = genes.nodes[0].innovation
    edges = {(gene.source, gene.target): gene.enabled for gene in genes.connections}
    assert edges == {(-2, -1): False, (-2, number): True, (number, -1): True}
    assert genes.sound and genes.live == {-2, -1, number}
    # The same connection split again, after it was enabled again, gives another node.
    again = made({number: (2, 0.0, 1.0, 1, False)}, [(-2, -1, True), (-2, number, False), (number, -1, False)])
    twice = ops.add_node(again, BOUNDS, Innovation(), rng())
    assert len(twice.nodes) == 2 and twice.sound


def test_connections_go_forward_until_all_are_there() -> None:
    genes: Genes | None = ops.initial(Innovation())
    for seed in range(4):
        genes = ops.add_node(genes, BOUNDS, Innovation(), rng(seed))
    assert genes is not None
    steps = 0
    while (more := ops.add_connection(genes, Innovation(), rng(steps))) is not None:
        genes, steps = more, steps + 1
        assert genes.sound
    assert len(genes.connections) == 6 * 5 // 2 and steps == 15 - 9


def test_toggling_leaves_a_way() -> None:
    line = made({5: (2, 0.0, 1.0, 1, False)}, [(-2, 5, True), (5, -1, True)])
    assert ops.toggle(line, rng()) is None
    shortcut = made({5: (2, 0.0, 1.0, 1, False)}, [(-2, 5, True), (5, -1, True), (-2, -1, True)])
    assert ops.toggle(shortcut, rng(), least_live=1) == made(
        {5: (2, 0.0, 1.0, 1, False)}, [(-2, 5, True), (5, -1, True), (-2, -1, False)]
    )
    seen = {ops.toggle(shortcut, rng(seed)) for seed in range(40)}
    assert len(seen) == 3  # any one of the three


def test_distance_by_hand() -> None:
    first = made({5: (1, 0.0, 1.0, 1, False)}, [(-2, 5, True), (5, -1, True), (-2, -1, False)])
    second = made(
        {5: (11, 0.5, 1.0, 2, False), 6: (1, 0.0, 1.0, 1, False)},
        [(-2, 5, True), (5, 6, True), (6, -1, True), (-2, -1, False)],
    )
    # 4 and 6 genes; 5 -> -1 alone in one, node 6 and its two connections alone in the other; twins differ by
    # 1 + 1 + 0 + 1/2 + 0 in five values.
    expected = 4 / 6 + 0.4 * 2.5 / 5
    assert ops.distance(first, second, BOUNDS) == pytest.approx(expected)
    assert ops.distance(second, first, BOUNDS, structure=2, values=0) == pytest.approx(8 / 6)
    assert ops.distance(first, first, BOUNDS) == 0


def test_disabled_genes_stay_disabled_three_times_in_four() -> None:
    """Stanley and Miikkulainen 2002: 75 % where either parent has it disabled."""
    nodes = {5: (1, 0.0, 1.0, 1, False)}
    first = made(nodes, [(-2, 5, True), (5, -1, True), (-2, -1, True)])
    second = made(nodes, [(-2, 5, True), (5, -1, True), (-2, -1, False)])
    generator = rng(0)
    children = [ops.crossover(first, second, generator, extra_share=0, max_nodes=9) for _ in range(2000)]
    disabled = sum(not gene.enabled for child in children for gene in child.connections)
    assert 0.72 < disabled / 2000 < 0.78


def test_the_topology_of_a_child_is_that_of_the_first_unless_more_is_asked_for() -> None:
    nodes = {5: (1, 0.0, 1.0, 1, False)}
    first = made(nodes, [(-2, 5, True), (5, -1, True)])
    second = made(
        {5: (11, 0.5, 2.0, 3, True), 6: (2, 0.0, 1.0, 1, False)}, [(-2, 6, True), (6, 5, True), (5, -1, True)]
    )
    alone = ops.crossover(first, second, rng(), extra_share=0, max_nodes=9)
    assert [node.innovation for node in alone.nodes] == [5] and len(alone.connections) == 2
    full = ops.crossover(first, second, rng(), extra_share=1, max_nodes=9)
    assert [node.innovation for node in full.nodes] == [5, 6] and len(full.connections) == 4 and full.sound
    assert ops.crossover(first, second, rng(), extra_share=1, max_nodes=1).connections == first.connections


def test_a_connection_that_would_close_a_cycle_is_not_inherited() -> None:
    nodes = {5: (1, 0.0, 1.0, 1, False), 6: (1, 0.0, 1.0, 1, False)}
    first = made(nodes, [(-2, 5, True), (5, 6, True), (6, -1, True)])
    second = made(nodes, [(-2, 6, True), (6, 5, True), (5, -1, True)])
    child = ops.crossover(first, second, rng(), extra_share=1, max_nodes=9)
    edges = {(gene.source, gene.target) for gene in child.connections}
    assert child.sound and (5, 6) in edges and (6, 5) not in edges and {(-2, 6), (5, -1)} <= edges


def test_genomes_grow_and_stay_sound() -> None:
    innovation = Innovation()
    population = [genome(seed, innovation=innovation) for seed in range(6)]
    for step in range(60):
        for member in population:
            member.mutate()
            assert member._genes.sound
            plan(member.to_descriptor(dimensions=2), input_shape=(3, 32, 32), n_outputs=10)
        if step % 10 == 9:
            for number, member in enumerate(population):
                member.nodes.fitness = member.connections.fitness = float(number)
            child = population[0].crossover(population[5])
            assert child._genes.sound and child.nodes.fitness is None
            assert set(child.nodes.genes) == set(population[5].nodes.genes)  # of the fitter one
            population[0] = child
            innovation.new_generation()
    assert max(len(member.nodes.genes) for member in population) > 10


def test_genomes_are_values_for_a_cache() -> None:
    first, second = genome(1), genome(1)
    for member in (first, second):
        for _ in range(8):
            member.mutate()
    assert first == second and hash(first) == hash(second) and first in {second: 1}
    other = genome(2)
    assert first != other and first.distance(other) > 0 == first.distance(second)
    assert "NodeGene" in repr(first)


def test_numpys_global_state_seeds_a_genome_without_a_generator() -> None:
    found = []
    for _ in range(2):
        np.random.seed(4)
        member = Genome(TYPES, LIMITS, 0.5, 0.2, 0.5, Innovation())
        for _ in range(10):
            member.mutate()
        found.append(member)
    assert found[0] == found[1] and len(found[0].nodes.genes) > 1


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (3, 52)), (2, (3, 32, 32)), (3, (1, 9, 9, 9))])
def test_descriptors_of_any_dimension(dimensions: int, shape: tuple[int, ...]) -> None:
    member = genome(3, rates=(1.0, 0.0, 0.0))
    untouched = plan(member.to_descriptor(dimensions), input_shape=shape, n_outputs=7)
    assert untouched.multiply_adds == 7 * shape[0]  # the head alone
    for _ in range(3):
        member.mutate()
    network = member.to_descriptor(dimensions=dimensions)
    assert network.first_layer == "-2out" and network.last_layer == "-1in"
    kinds = [layer.kind for layer in network.layers.values()]
    assert kinds.count(f"Conv{dimensions}d") == 3
    assert plan(network, input_shape=shape, n_outputs=7).n_parameters > 1000
    assert set(member.to_networkx()) <= {-2, -1, *member.nodes.genes}
    with pytest.raises(ValueError, match="4 dimensions: give 1, 2 or 3"):
        member.to_descriptor(4)


@pytest.mark.parametrize(
    ("types", "limits", "message"),
    [
        ([int, float], [[1, 0], [2, 1]], r"\['int', 'float'\] do not fit out_channels, .*; set int, float, float, int"),
        (TYPES, [[1, 0, 0, 1, 0]], "give two rows, lowest and highest, of out_channels"),
        (TYPES, [[9, 0, 0, 1, 0], [3, 0, 1, 1, 1]], "out_channels has the lowest value 9 above the highest one 3"),
        (TYPES, [[1, 0, 0, 1, 0], [3, 1, 1, 1, 1]], "set channels and kernels of 1 or more, and dropout from 0 to"),
    ],
)
def test_wrong_bounds_are_refused(types: Any, limits: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Genome(types, limits, 0.1, 0.1, 0.1)

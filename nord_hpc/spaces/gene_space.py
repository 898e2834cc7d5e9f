"""Graphs of numbered genes as points of a space: JSON form and operators; what their nodes mean is left to others."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from nord_hpc.spaces import genes as ops
from nord_hpc.spaces.genes import Bounds, ConnectionGene, Genes, Innovation, NodeGene
from nord_hpc.trial import Json

MOST_SAMPLED_CONNECTIONS = 2
"""A sample has up to this many connections that grew by no node."""

_CONNECTION_KEYS = ("innovation", "source", "target", "enabled")


def check_growth(*, sample_nodes: int, max_nodes: int, rates: tuple[float, float, float]) -> None:
    """Refuse options of a space that do not fit together.

    Raises:
        ValueError: says which, and what to set.
    """
    if sample_nodes > max_nodes:
        raise ValueError(f"sample_nodes {sample_nodes} is above max_nodes {max_nodes}; set it to {max_nodes} or less")
    if sum(rates) > 1:
        raise ValueError(f"the rates of mutations add up to {sum(rates):g}; set them so that they give 1 or less")


class GeneSpace:
    """Graphs that begin small and grow; what is common to two of them is known by number.

    A point is {"nodes": [{"innovation", and the fields}, ...], "connections": [{"innovation", "source", "target",
    "enabled"}, ...]}, each sorted by innovation number; -2 is the input, -1 the output. It has no cycle, and at least
    one node is in use.

    Args:
        fields: names of a node's values.
        bounds: kinds and bounds of these.
        max_nodes: of a point, those not in use included.
        sample_nodes: of a sample, at most.
        rates: shares of the mutations that add a node, add a connection, and enable or disable one. The others change a
            value of a node.
        extra_share: chance that a child has a connection that only its second parent has.
    """

    def __init__(
        self,
        *,
        fields: tuple[str, ...],
        bounds: Bounds,
        max_nodes: int,
        sample_nodes: int,
        rates: tuple[float, float, float],
        extra_share: float,
    ) -> None:
        self.innovation = Innovation()
        self._fields = fields
        self._node_keys = ("innovation", *fields)
        self._bounds = bounds
        self._max_nodes = max_nodes
        self._sample_nodes = sample_nodes
        self._extra_share = extra_share
        self._up_to = [sum(rates[: k + 1]) for k in range(len(rates))]
        self._mutations = (self._add_node, self._add_connection, self._toggle, self._change_values)

    def sample(self, rng: np.random.Generator) -> Json:
        """A point grown from the smallest one by a few nodes and connections."""
        u_nodes, u_connections = rng.random(2).tolist()
        genes = ops.initial(self.innovation)
        for _ in range(1 + int(u_nodes * self._sample_nodes)):
            genes = ops.add_node(genes, self._bounds, self.innovation, rng)
        for _ in range(int(u_connections * (MOST_SAMPLED_CONNECTIONS + 1))):
            genes = ops.add_connection(genes, self.innovation, rng) or genes
        return self._to_json(genes)

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A node or connection more, a connection enabled or disabled, or another value; the next where one cannot."""
        genes = self.genes_of(genotype)
        drawn = rng.random()
        first = sum(drawn >= bound for bound in self._up_to)
        for step in range(len(self._mutations)):
            changed = self._mutations[(first + step) % len(self._mutations)](genes, rng)
            if changed is not None and changed != genes:
                return self._to_json(changed)
        return self._to_json(genes)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Genes that both have from either; those of the first alone; and some of those of the second alone."""
        child = ops.crossover(
            self.genes_of(first),
            self.genes_of(second),
            rng,
            extra_share=self._extra_share,
            max_nodes=self._max_nodes,
            least_live=1,
        )
        return self._to_json(child)

    def distance(self, first: Json, second: Json) -> float:
        """The compatibility distance of NEAT, for strategies with species; see `genes.distance`."""
        return ops.distance(self.genes_of(first), self.genes_of(second), self._bounds)

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or genotype.keys() != {"nodes", "connections"}:
            return False
        nodes, connections = genotype["nodes"], genotype["connections"]
        if not _are_sorted_genes(nodes, self._node_keys) or not _are_sorted_genes(connections, _CONNECTION_KEYS):
            return False
        if not 1 <= len(nodes) <= self._max_nodes:
            return False
        if not all(self._bounds.contain([node[field] for field in self._fields]) for node in nodes):
            return False
        for gene in connections:
            if type(gene["enabled"]) is not bool or any(type(gene[end]) is not int for end in ("source", "target")):
                return False
            if gene["innovation"] != self.innovation.connection(gene["source"], gene["target"]):
                return False
        genes = self.genes_of(genotype)
        return genes.sound and len(genes.live) > 2

    def genes_of(self, genotype: Json) -> Genes:
        """The genes of a point."""
        return Genes(
            tuple(
                NodeGene(node["innovation"], tuple(node[field] for field in self._fields)) for node in genotype["nodes"]
            ),
            tuple(ConnectionGene(*(gene[key] for key in _CONNECTION_KEYS)) for gene in genotype["connections"]),
        )

    def _to_json(self, genes: Genes) -> Json:
        nodes = [dict(zip(self._node_keys, (node.innovation, *node.values), strict=True)) for node in genes.nodes]
        connections = [
            {"innovation": gene.innovation, "source": gene.source, "target": gene.target, "enabled": gene.enabled}
            for gene in genes.connections
        ]
        return {"nodes": nodes, "connections": connections}

    # Mutations give None where they cannot act.

    def _add_node(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        if len(genes.nodes) >= self._max_nodes:
            return None
        return ops.add_node(genes, self._bounds, self.innovation, rng)

    def _add_connection(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        return ops.add_connection(genes, self.innovation, rng)

    def _toggle(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        return ops.toggle(genes, rng, least_live=1)

    def _change_values(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        return ops.change_values(genes, self._bounds, rng)


def _are_sorted_genes(genes: Any, keys: tuple[str, ...]) -> bool:
    if not isinstance(genes, list) or any(not isinstance(gene, dict) or gene.keys() != set(keys) for gene in genes):
        return False
    numbers = [gene["innovation"] for gene in genes]
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    return all(before < after for before, after in itertools.pairwise(numbers))

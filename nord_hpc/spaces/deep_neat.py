"""Convolutional networks that grow by DeepNEAT's genes, as a search space; species are left to a strategy."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.spaces import genes as ops
from nord_hpc.spaces.genes import FIELDS, Bounds, ConnectionGene, Genes, Innovation, NodeGene
from nord_hpc.trial import Json

MOST_SAMPLED_CONNECTIONS = 2
"""A sample has up to this many connections that grew by no node."""

_NODE_KEYS = ("innovation", *FIELDS)
_CONNECTION_KEYS = ("innovation", "source", "target", "enabled")


class DeepNeat:
    """Graphs of convolution blocks that begin small and grow; what is common to two of them is known by number.

    A genotype is {"nodes": [{"innovation", "out_channels", "dropout", "scale", "kernel_size", "pool"}, ...],
    "connections": [{"innovation", "source", "target", "enabled"}, ...]}, each sorted by innovation number; -2 is the
    input, -1 the output. It has no cycle, and at least one node is in use.
    """

    class Options(BaseModel):
        """Bounds of a block's values, all inclusive, and what mutations do.

        Attributes:
            dimensions: of the data, beside the channels.
            channels: lowest and highest number of output channels of a convolution.
            dropout: lowest and highest chance of a channel to be dropped.
            scale: lowest and highest factor that a convolution's result is multiplied by.
            kernels: lowest and highest side of a convolution's window.
            pool: whether blocks may pool, over windows of the kernel's size.
            max_nodes: of a genotype, those not in use included.
            sample_nodes: of a sample, at most.
            add_node_rate, add_connection_rate, toggle_rate: shares of the mutations that add a node, add a connection,
                enable or disable one. The others change a value of a node.
            extra_share: chance that a child has a connection that only its second parent has.
            join: how several inputs of a block become one.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        dimensions: Literal[1, 2, 3] = 2
        channels: tuple[int, int] = (8, 64)
        dropout: tuple[float, float] = (0.0, 0.5)
        scale: tuple[float, float] = (0.5, 1.5)
        kernels: tuple[int, int] = (1, 3)
        pool: bool = True
        max_nodes: int = Field(12, ge=1)
        sample_nodes: int = Field(3, ge=1)
        add_node_rate: float = Field(0.25, ge=0, le=1)
        add_connection_rate: float = Field(0.2, ge=0, le=1)
        toggle_rate: float = Field(0.1, ge=0, le=1)
        extra_share: float = Field(0.5, ge=0, le=1)
        join: Literal["add", "mean", "concat"] = "add"

        @field_validator("channels", "dropout", "scale", "kernels")
        @classmethod
        def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
            if bounds[0] > bounds[1]:
                raise ValueError(f"the lowest value {bounds[0]} is above the highest one {bounds[1]}; swap them")
            return bounds

        @model_validator(mode="after")
        def _possible(self) -> DeepNeat.Options:
            if self.channels[0] < 1 or self.kernels[0] < 1:
                raise ValueError("channels and kernels begin at 1; set their lowest values to 1 or more")
            if self.dropout[0] < 0 or self.dropout[1] >= 1:
                raise ValueError(f"dropout {list(self.dropout)} is no chance; set values from 0 to below 1")
            if self.sample_nodes > self.max_nodes:
                raise ValueError(
                    f"sample_nodes {self.sample_nodes} is above max_nodes {self.max_nodes}; set it to {self.max_nodes} "
                    "or less"
                )
            rates = self.add_node_rate + self.add_connection_rate + self.toggle_rate
            if rates > 1:
                raise ValueError(f"the rates of mutations add up to {rates:g}; set them so that they give 1 or less")
            return self

    def __init__(self, options: Options) -> None:
        self._options = options
        self._innovation = Innovation()
        ranges = (options.channels, options.dropout, options.scale, options.kernels, (False, options.pool))
        self._bounds = Bounds(
            (int, float, float, int, bool), tuple(low for low, _ in ranges), tuple(high for _, high in ranges)
        )
        rates = (options.add_node_rate, options.add_connection_rate, options.toggle_rate)
        self._up_to = [sum(rates[: k + 1]) for k in range(len(rates))]
        self._mutations = (self._add_node, self._add_connection, self._toggle, self._change_values)

    def sample(self, rng: np.random.Generator) -> Json:
        """A genotype grown from the smallest one by a few nodes and connections."""
        u_nodes, u_connections = rng.random(2).tolist()
        genes = ops.initial(self._innovation)
        for _ in range(1 + int(u_nodes * self._options.sample_nodes)):
            genes = ops.add_node(genes, self._bounds, self._innovation, rng)
        for _ in range(int(u_connections * (MOST_SAMPLED_CONNECTIONS + 1))):
            genes = ops.add_connection(genes, self._innovation, rng) or genes
        return _to_json(genes)

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A node or connection more, a connection enabled or disabled, or another value; the next where one cannot."""
        genes = _from_json(genotype)
        drawn = rng.random()
        first = sum(drawn >= bound for bound in self._up_to)
        for step in range(len(self._mutations)):
            changed = self._mutations[(first + step) % len(self._mutations)](genes, rng)
            if changed is not None and changed != genes:
                return _to_json(changed)
        return _to_json(genes)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Genes that both have from either; those of the first alone; and some of those of the second alone."""
        child = ops.crossover(
            _from_json(first),
            _from_json(second),
            rng,
            extra_share=self._options.extra_share,
            max_nodes=self._options.max_nodes,
            least_live=1,
        )
        return _to_json(child)

    def distance(self, first: Json, second: Json) -> float:
        """The compatibility distance of NEAT, for strategies with species; see `genes.distance`."""
        return ops.distance(_from_json(first), _from_json(second), self._bounds)

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or genotype.keys() != {"nodes", "connections"}:
            return False
        nodes, connections = genotype["nodes"], genotype["connections"]
        if not _are_sorted_genes(nodes, _NODE_KEYS) or not _are_sorted_genes(connections, _CONNECTION_KEYS):
            return False
        if not 1 <= len(nodes) <= self._options.max_nodes:
            return False
        if not all(self._bounds.contain([node[field] for field in FIELDS]) for node in nodes):
            return False
        for gene in connections:
            if type(gene["enabled"]) is not bool or any(type(gene[end]) is not int for end in ("source", "target")):
                return False
            if gene["innovation"] != self._innovation.connection(gene["source"], gene["target"]):
                return False
        genes = _from_json(genotype)
        return genes.sound and len(genes.live) > 2

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The network of the genes in use; see `genes.to_descriptor`."""
        return ops.to_descriptor(_from_json(genotype), dimensions=self._options.dimensions, join=self._options.join)

    # Mutations give None where they cannot act.

    def _add_node(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        if len(genes.nodes) >= self._options.max_nodes:
            return None
        return ops.add_node(genes, self._bounds, self._innovation, rng)

    def _add_connection(self, genes: Genes, rng: np.random.Generator) -> Genes | None:
        return ops.add_connection(genes, self._innovation, rng)

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


def _to_json(genes: Genes) -> Json:
    nodes = [dict(zip(_NODE_KEYS, (node.innovation, *node.values), strict=True)) for node in genes.nodes]
    connections = [
        {"innovation": gene.innovation, "source": gene.source, "target": gene.target, "enabled": gene.enabled}
        for gene in genes.connections
    ]
    return {"nodes": nodes, "connections": connections}


def _from_json(genotype: Json) -> Genes:
    return Genes(
        tuple(NodeGene(node["innovation"], tuple(node[field] for field in FIELDS)) for node in genotype["nodes"]),
        tuple(ConnectionGene(*(gene[key] for key in _CONNECTION_KEYS)) for gene in genotype["connections"]),
    )

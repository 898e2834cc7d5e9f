"""Convolutional networks that grow by DeepNEAT's genes, as a search space; species are left to a strategy."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.spaces import genes as ops
from nord_hpc.spaces.gene_space import GeneSpace, check_growth
from nord_hpc.spaces.genes import FIELDS, Bounds, Genes
from nord_hpc.trial import Json


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
            check_growth(
                sample_nodes=self.sample_nodes,
                max_nodes=self.max_nodes,
                rates=(self.add_node_rate, self.add_connection_rate, self.toggle_rate),
            )
            return self

    def __init__(self, options: Options) -> None:
        self._options = options
        ranges = (options.channels, options.dropout, options.scale, options.kernels, (False, options.pool))
        self._graphs = GeneSpace(
            fields=FIELDS,
            bounds=Bounds(
                (int, float, float, int, bool), tuple(low for low, _ in ranges), tuple(high for _, high in ranges)
            ),
            max_nodes=options.max_nodes,
            sample_nodes=options.sample_nodes,
            rates=(options.add_node_rate, options.add_connection_rate, options.toggle_rate),
            extra_share=options.extra_share,
        )

    def sample(self, rng: np.random.Generator) -> Json:
        """A genotype grown from the smallest one by a few nodes and connections."""
        return self._graphs.sample(rng)

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A node or connection more, a connection enabled or disabled, or another value; the next where one cannot."""
        return self._graphs.mutate(genotype, rng)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Genes that both have from either; those of the first alone; and some of those of the second alone."""
        return self._graphs.crossover(first, second, rng)

    def distance(self, first: Json, second: Json) -> float:
        """The compatibility distance of NEAT, for strategies with species; see `genes.distance`."""
        return self._graphs.distance(first, second)

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        return self._graphs.contains(genotype)

    def genes_of(self, genotype: Json) -> Genes:
        """The genes of a genotype."""
        return self._graphs.genes_of(genotype)

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The network of the genes in use; see `genes.to_descriptor`."""
        genes = self.genes_of(genotype)
        return ops.to_descriptor(genes, dimensions=self._options.dimensions, join=self._options.join)

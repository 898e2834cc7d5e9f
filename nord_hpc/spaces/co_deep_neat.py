"""Networks of modules that repeat, as a search space; evolving both parts together is left to a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.spaces.deep_neat import DeepNeat
from nord_hpc.spaces.gene_space import GeneSpace, check_growth
from nord_hpc.spaces.genes import INPUT, OUTPUT, Bounds
from nord_hpc.trial import Json

MODULE = "module"
"""The field of a blueprint's node: the number of its module's species."""


class ModuleOptions(DeepNeat.Options):
    """Of modules, which are smaller than whole networks and, as they repeat, without pooling; see space `deep_neat`."""

    pool: bool = False
    max_nodes: int = Field(4, ge=1)
    sample_nodes: int = Field(2, ge=1)


class CoDeepNeat:
    """Blueprints whose nodes name species of modules, with one module for each species that they name.

    Miikkulainen et al., "Evolving Deep Neural Networks", 2017, arXiv 1703.00548, section 4.

    A genotype is {"blueprint": {"nodes": [{"innovation", "module"}, ...], "connections": as in `deep_neat`}, "modules":
    {"SPECIES": a genotype of `deep_neat`, ...}}. All nodes of a species have the same module, each with its own
    weights. Of modules and blueprints only what is in use is built.

    Attributes:
        n_species: of modules.
        blueprints, modules: the spaces of the two parts.
    """

    class Options(BaseModel):
        """Sizes of blueprints and modules.

        Attributes:
            species: of modules, which blueprints may name.
            max_nodes: of a blueprint, those not in use included.
            sample_nodes: of a sampled blueprint, at most.
            add_node_rate, add_connection_rate, toggle_rate: shares of a blueprint's mutations that add a node, add a
                connection, enable or disable one. The others change the species of a node.
            extra_share: chance that a child has a connection that only its second parent has.
            module_rate: share of the mutations that change a module and not the blueprint.
            join: how several inputs of a module become one.
            modules: the options of space `deep_neat`, with other defaults: smaller, and without pooling.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        species: int = Field(3, ge=1)
        max_nodes: int = Field(6, ge=1)
        sample_nodes: int = Field(3, ge=1)
        add_node_rate: float = Field(0.25, ge=0, le=1)
        add_connection_rate: float = Field(0.2, ge=0, le=1)
        toggle_rate: float = Field(0.1, ge=0, le=1)
        extra_share: float = Field(0.5, ge=0, le=1)
        module_rate: float = Field(0.5, ge=0, le=1)
        join: Literal["add", "mean", "concat"] = "add"
        modules: ModuleOptions = Field(default_factory=lambda: ModuleOptions.model_validate({}))

        @model_validator(mode="after")
        def _possible(self) -> CoDeepNeat.Options:
            check_growth(
                sample_nodes=self.sample_nodes,
                max_nodes=self.max_nodes,
                rates=(self.add_node_rate, self.add_connection_rate, self.toggle_rate),
            )
            return self

    def __init__(self, options: Options) -> None:
        self._options = options
        self.n_species = options.species
        self.modules = DeepNeat(options.modules)
        self.blueprints = GeneSpace(
            fields=(MODULE,),
            bounds=Bounds((int,), (0,), (options.species - 1,)),
            max_nodes=options.max_nodes,
            sample_nodes=options.sample_nodes,
            rates=(options.add_node_rate, options.add_connection_rate, options.toggle_rate),
            extra_share=options.extra_share,
        )

    def sample(self, rng: np.random.Generator) -> Json:
        """A sampled blueprint with sampled modules."""
        return self._completed(self.blueprints.sample(rng), {}, rng)

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A change of a module or of the blueprint; a species that it names newly gets a sampled module."""
        blueprint, modules = self.parts(genotype)
        if rng.random() < self._options.module_rate:
            species = list(modules)[int(rng.random() * len(modules))]
            modules[species] = self.modules.mutate(modules[species], rng)
        else:
            blueprint = self.blueprints.mutate(blueprint, rng)
        return self._completed(blueprint, modules, rng)

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """The blueprints crossed, and for each species the module of either parent, or of the one that has it."""
        (one, mine), (other, theirs) = self.parts(first), self.parts(second)
        blueprint = self.blueprints.crossover(one, other, rng)
        modules = {}
        for species in sorted(mine.keys() | theirs.keys()):
            known = [modules_of[species] for modules_of in (mine, theirs) if species in modules_of]
            modules[species] = known[int(rng.random() * len(known))]
        return self._completed(blueprint, modules, rng)

    def distance(self, first: Json, second: Json) -> float:
        """The mean of the blueprints' distance and that of the modules; a module that one lacks is 1 away."""
        (one, mine), (other, theirs) = self.parts(first), self.parts(second)
        apart = [
            self.modules.distance(mine[species], theirs[species]) if species in mine and species in theirs else 1.0
            for species in sorted(mine.keys() | theirs.keys())
        ]
        return (self.blueprints.distance(one, other) + sum(apart) / len(apart)) / 2

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or genotype.keys() != {"blueprint", "modules"}:
            return False
        blueprint, modules = genotype["blueprint"], genotype["modules"]
        if not self.blueprints.contains(blueprint) or not isinstance(modules, dict):
            return False
        if modules.keys() != {str(species) for species in self.species_of(blueprint)}:
            return False
        return all(self.modules.contains(module) for module in modules.values())

    def species_of(self, blueprint: Json) -> list[int]:
        """The species that a blueprint names, ascending."""
        return sorted({node[MODULE] for node in blueprint["nodes"]})

    def assemble(self, blueprint: Json, modules: Mapping[int, Json]) -> Json:
        """The genotype of a blueprint and the modules of its species; others are left out."""
        return {"blueprint": blueprint, "modules": {str(s): modules[s] for s in self.species_of(blueprint)}}

    def parts(self, genotype: Json) -> tuple[Json, dict[int, Json]]:
        """Blueprint and modules by species, ascending."""
        blueprint = genotype["blueprint"]
        return blueprint, {species: genotype["modules"][str(species)] for species in self.species_of(blueprint)}

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The network: for each node of the blueprint in use the network of its module, as in `genes.to_descriptor`.

        Names are "{number of the blueprint's node}/" and those of the module's layers; the ends are as in a module.
        """
        blueprint, modules = self.parts(genotype)
        genes = self.blueprints.genes_of(blueprint)
        networks = {species: self.modules.to_descriptor(module) for species, module in modules.items()}
        live = genes.live
        descriptor = NeuralDescriptor()
        for node in genes.nodes:
            if node.innovation in live:
                _add_module(descriptor, networks[int(node.values[0])], f"{node.innovation}/", join=self._options.join)
        first = descriptor.add_layer("Identity", None, f"{INPUT}out")
        last = descriptor.add_layer("Identity", None, f"{OUTPUT}in", join=self._options.join)
        descriptor.first_layer, descriptor.last_layer = first, last
        for gene in genes.connections:
            if gene.enabled and gene.source in live and gene.target in live:
                source = first if gene.source == INPUT else f"{gene.source}/{OUTPUT}in"
                target = last if gene.target == OUTPUT else f"{gene.target}/{INPUT}out"
                descriptor.connect_layers(source, target)
        return descriptor

    def _completed(self, blueprint: Json, modules: Mapping[int, Json], rng: np.random.Generator) -> Json:
        """The genotype, with samples of modules that are missing."""
        whole: dict[int, Any] = dict(modules)
        for species in self.species_of(blueprint):
            if species not in whole:
                whole[species] = self.modules.sample(rng)
        return _copied(self.assemble(blueprint, whole))


def _add_module(descriptor: NeuralDescriptor, network: NeuralDescriptor, prefix: str, *, join: str) -> None:
    """The layers of a module's network; its first one joins what feeds the module."""
    for name, layer in network.layers.items():
        made = replace(layer, join=join) if name == network.first_layer else layer
        descriptor.add_made_layer(prefix + name, made)
    for source, target in network.connections:
        descriptor.connect_layers(prefix + source, prefix + target)


def _copied(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value

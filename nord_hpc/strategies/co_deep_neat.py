"""CoDeepNEAT: blueprints and the modules that they name evolve together, by the scores of their networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace, Wait
from nord_hpc.strategies.parts import Part, Parts
from nord_hpc.strategies.turns import Turns
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

PARTNER_ATTEMPTS = 4
"""Draws of a second parent that is another one than the first."""
MUTATION_ATTEMPTS = 10
"""Mutations of what is equal to a living part, and so not new."""
NEEDED = ("blueprints", "modules", "n_species", "species_of", "assemble", "parts")


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A part of a proposed network.

    Attributes:
        key: None for one that is new.
        group: species of a module; 0 for blueprints.
        ancestors: the trials that it, or its parents, came up in.
    """

    key: int | None
    genotype: Json
    group: int
    ancestors: tuple[int, ...] = ()

    @classmethod
    def of(cls, part: Part, group: int) -> _Chosen:
        return cls(part.key, part.genotype, group, (part.trial,))

    def to_json(self) -> Json:
        return [self.key, self.genotype, self.group]


_Network = tuple[_Chosen, ...]
"""The blueprint, then the modules by species."""


class CoDeepNeat:
    """CoDeepNEAT; see `nord_hpc.interfaces.Strategy` for the contract.

    Miikkulainen et al., "Evolving Deep Neural Networks", 2017, arXiv 1703.00548, section 4. NORD calls it arc.

    There are two populations, of blueprints and of modules, the latter in as many species as the space's blueprints can
    name. A network is a blueprint with one module of each species that it names; its score counts for all of them, and
    the fitness of a part is the mean over the networks that it was in.

    It begins with `population` samples. After that each network has, with a chance of `blueprint_rate`, a new blueprint
    and for each species, with a chance of `module_rate`, a new module, one of them new in any case; the others are the
    best of `tournament` drawn from those that live. New ones are children of parents that are drawn the same way,
    modules' within their species: with a chance of `crossover` the crossover of two, the better one first; then mutated
    with a chance of `mutation`, and in any case where equal to one that lives. They live from when their first network
    has completed.

    Of too many blueprints the one with the lowest mean leaves. Of too many modules it is the one of least shared
    fitness: the mean, scaled over the population from 0.2 of the worst to 1 of the best, divided by the species' size;
    the last of a species stays. Each time that `population` more networks have completed, modules are grouped again:
    each joins the species whose best module is nearest.

    In the steady state results count at once. By generations, asks wait until the last result of a generation is told,
    and its results count then. Failed and infeasible networks change nothing.
    """

    class Options(BaseModel):
        """Sizes and chances.

        Attributes:
            generational: by whole generations; else in the steady state.
            population: networks of a generation, and samples at first.
            blueprints, modules: that live at once.
            tournament: parts that compete; more is greedier.
            blueprint_rate, module_rate: chances of a network to have a new one.
            crossover, mutation: chances of a new part.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        generational: bool = False
        population: int = Field(25, ge=2)
        blueprints: int = Field(15, ge=2)
        modules: int = Field(30, ge=2)
        tournament: int = Field(3, ge=1)
        blueprint_rate: float = Field(0.5, ge=0, le=1)
        module_rate: float = Field(0.5, ge=0, le=1)
        crossover: float = Field(0.5, ge=0, le=1)
        mutation: float = Field(0.9, ge=0, le=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: the space has no blueprints and modules, or more species than modules may live.
        """
        self._space = cast("Any", space)
        missing = [name for name in NEEDED if not hasattr(self._space, name)]
        if missing:
            raise ValueError(
                f"strategy co_deep_neat evolves blueprints and modules, and {type(space).__name__} has no "
                f"{', '.join(missing)}; set space.name to co_deep_neat"
            )
        self._options = options
        n_species: int = self._space.n_species
        if options.modules < n_species:
            raise ValueError(
                f"strategy co_deep_neat: {options.modules} modules are too few for {n_species} species; set "
                f"strategy.modules to {n_species} or more, or space.species lower"
            )
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._turns = Turns(population=options.population, generational=options.generational)
        self._blueprints = Parts(capacity=options.blueprints, n_groups=1)
        self._modules = Parts(capacity=options.modules, n_groups=n_species)
        self._pending: dict[int, _Network] = {}
        self._results: list[tuple[int, float, _Network]] = []  # of this generation
        self._n_learned = 0

    def ask(self, number: int) -> Proposal | Wait:
        self._turns.begin(number)
        if self._turns.over:
            if self._turns.pending:
                return Wait()
            for result in self._results:
                self._learn(*result)
            self._results = []
            self._turns.next_generation(self._options.population)
        sampling = self._turns.take(number, n_parents=min(self._n_learned, self._options.population))
        network = self._sampled() if sampling else self._combined()
        self._pending[number] = network
        blueprint, *modules = network
        return Proposal(
            self._space.assemble(blueprint.genotype, {module.group: module.genotype for module in modules}),
            parents=tuple(sorted({trial for part in network for trial in part.ancestors})),
        )

    def tell(self, finished: FinishedTrial) -> None:
        number, score = finished.trial.number, finished.score
        network = self._pending.pop(number, None) or self._foreign(finished.trial.genotype)
        completed = score is not None and math.isfinite(score)
        self._turns.tell(number, completed=completed)
        if score is None or not completed:
            return
        if self._options.generational:
            self._results.append((number, score, network))
        else:
            self._learn(number, score, network)

    def independent_asks(self) -> int:
        # Samples at first; later the networks of a generation, whose parts are settled before the first of them.
        return self._turns.left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "turns": self._turns.state_dict(),
            "blueprints": self._blueprints.state_dict(),
            "modules": self._modules.state_dict(),
            "pending": [[number, _to_json(network)] for number, network in sorted(self._pending.items())],
            "results": [[number, score, _to_json(network)] for number, score, network in self._results],
            "learned": self._n_learned,
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._turns.load_state_dict(state["turns"])
        self._blueprints.load_state_dict(state["blueprints"])
        self._modules.load_state_dict(state["modules"])
        self._pending = {number: _from_json(network) for number, network in state["pending"]}
        self._results = [(number, score, _from_json(network)) for number, score, network in state["results"]]
        self._n_learned = state["learned"]

    def _learn(self, number: int, score: float, network: _Network) -> None:
        """A score counts for all parts of its network."""
        for part, kind in zip(network, [self._blueprints, *[self._modules] * (len(network) - 1)], strict=True):
            kind.credit(part.key, part.genotype, group=part.group, trial=number, score=score)
        self._n_learned += 1
        if self._n_learned % self._options.population == 0:
            self._modules.regroup(self._space.modules.distance)

    def _foreign(self, genotype: Json) -> _Network:
        """The parts of a network that was not asked for."""
        blueprint, modules = self._space.parts(genotype)
        return (_Chosen(None, blueprint, 0), *(_Chosen(None, modules[species], species) for species in sorted(modules)))

    def _sampled(self) -> _Network:
        blueprint = self._space.blueprints.sample(self._rng)
        species = self._space.species_of(blueprint)
        return (
            _Chosen(None, blueprint, 0),
            *(_Chosen(None, self._space.modules.sample(self._rng), group) for group in species),
        )

    def _combined(self) -> _Network:
        """A network of which at least one part is new."""
        new_blueprint = self._rng.random() < self._options.blueprint_rate
        blueprint = self._part(self._space.blueprints, self._blueprints, group=0, new=new_blueprint)
        species = self._space.species_of(blueprint.genotype)
        new = [u < self._options.module_rate for u in self._rng.random(len(species)).tolist()]
        if not new_blueprint and not any(new):
            new[int(self._rng.random() * len(new))] = True
        modules = [
            self._part(self._space.modules, self._modules, group=group, new=is_new)
            for group, is_new in zip(species, new, strict=True)
        ]
        return (blueprint, *modules)

    def _part(self, space: Any, kind: Parts, *, group: int, new: bool) -> _Chosen:
        """A living part of a group, or a child of some; a sample where none lives."""
        living = kind.groups[group]
        if not living:
            return _Chosen(None, space.sample(self._rng), group)
        first = self._select(living)
        if not new:
            return _Chosen.of(first, group)
        relatives, genotype = [first], first.genotype
        if self._rng.random() < self._options.crossover:
            second = next((p for p in (self._select(living) for _ in range(PARTNER_ATTEMPTS)) if p is not first), None)
            if second is not None:
                relatives = sorted([first, second], key=lambda part: (-part.mean, part.key))
                genotype = space.crossover(relatives[0].genotype, relatives[1].genotype, self._rng)
        if self._rng.random() < self._options.mutation:
            genotype = space.mutate(genotype, self._rng)
        for _ in range(MUTATION_ATTEMPTS):
            if all(genotype != part.genotype for part in living):
                break
            genotype = space.mutate(genotype, self._rng)
        return _Chosen(None, genotype, group, tuple(parent.trial for parent in relatives))

    def _select(self, living: list[Part]) -> Part:
        """The best of a few; ties go to the oldest."""
        drawn = [living[int(u * len(living))] for u in self._rng.random(self._options.tournament).tolist()]
        return max(drawn, key=lambda part: (part.mean, -part.key))


def _to_json(network: _Network) -> Json:
    return [part.to_json() for part in network]


def _from_json(network: Json) -> _Network:
    return tuple(_Chosen(*part) for part in network)

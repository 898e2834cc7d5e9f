"""DeepNEAT: evolution of graphs in species, which share their fitness; on any space that can tell distances."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace, Wait
from nord_hpc.strategies.species import Member, Speciation, Species
from nord_hpc.strategies.turns import Turns
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

_Item = TypeVar("_Item")
_score = operator.itemgetter(0)

FITNESS_FLOOR = 0.2
"""Fitness of the worst member; that of the best is 1, and others lie between by their scores."""
STAGNANT_SHARE = 0.01
"""Of its fitness that a member keeps whose species has not improved for long; NEAT's penalty."""
CHAMPION_SIZE = 5
"""Members of a species from which on its best lives on in the next generation; NEAT's."""


class DeepNeat:
    """DeepNEAT; see `nord_hpc.interfaces.Strategy` for the contract.

    Miikkulainen et al., "Evolving Deep Neural Networks", 2017, arXiv 1703.00548, after Stanley and Miikkulainen,
    "Evolving Neural Networks through Augmenting Topologies", 2002 (NEAT). The steady state is that of Stanley et al.,
    "Real-Time Neuroevolution in the NERO Video Game", 2005.

    Genes, their innovation numbers, the compatibility distance and the crossover of genes by number are the space's;
    the space `deep_neat` has them, and any space with a distance will do.

    It begins with `population` samples. Members are grouped in species by their distance; about `species` of them are
    kept, by a threshold that adapts each time that `population` more have completed, when all are grouped again around
    the best of each species. A member shares its fitness with its species: fitness, scaled over the population from 0.2
    of the worst to 1 of the best, is divided by the species' size. A child's species is drawn with a chance in
    proportion to the sum of the shared fitness of its members, and its parents from the best `survival` of it. With a
    chance of `crossover` it is the crossover of two, the better one first, with a chance of `interspecies` the second
    from another species; then it is mutated with a chance of `mutation`, and in any case where it is equal to a parent.
    A species that has not become better for `stagnation` times the population has a hundredth of its fitness, unless it
    holds the best member of all.

    In the steady state each completed child enters at once, and the member of least shared fitness leaves, of equal
    ones the oldest. By generations, the children replace the population, but for the best of each species of at least
    5 members.

    Failed and infeasible trials never enter.
    """

    class Options(BaseModel):
        """Sizes and chances.

        Attributes:
            generational: by whole generations; else in the steady state.
            population: members that live at once.
            species: number that the threshold aims at.
            threshold: largest distance within a species to begin with; None finds one that gives this number.
            crossover, interspecies, mutation: chances.
            survival: share of a species, at least one of it, among which parents are drawn.
            stagnation: generations without a better score after which a species counts little.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        generational: bool = False
        population: int = Field(50, ge=2)
        species: int = Field(5, ge=1)
        threshold: float | None = Field(None, gt=0)
        crossover: float = Field(0.5, ge=0, le=1)
        interspecies: float = Field(0.01, ge=0, le=1)
        mutation: float = Field(0.9, ge=0, le=1)
        survival: float = Field(0.3, gt=0, le=1)
        stagnation: int = Field(15, ge=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: the space cannot tell distances.
        """
        distance: Any = getattr(space, "distance", None)
        if distance is None:
            raise ValueError(
                f"strategy deep_neat groups points by their distance, and {type(space).__name__} has no method "
                f"distance; set space.name to deep_neat, or to another space that has it"
            )
        self._options = options
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._turns = Turns(population=options.population, generational=options.generational)
        self._groups = Speciation(distance, target=options.species, threshold=options.threshold)
        self._children: list[Member] = []  # of this generation
        self._n_completed = 0

    def ask(self, number: int) -> Proposal | Wait:
        self._turns.begin(number)
        if self._turns.over:
            if self._turns.pending:
                return Wait()
            self._begin_generation()
            self._turns.next_generation(self._options.population)
        if self._turns.take(number, n_parents=self._groups.n_members):
            return Proposal(self._space.sample(self._rng))
        return self._child()

    def tell(self, finished: FinishedTrial) -> None:
        number, score = finished.trial.number, finished.score
        completed = score is not None and math.isfinite(score)
        self._turns.tell(number, completed=completed)
        if score is None or not completed:
            return
        self._n_completed += 1
        member = (score, number, finished.trial.genotype)
        if self._options.generational:
            self._children.append(member)
            return
        self._groups.place(member, now=self._n_completed)
        if self._groups.n_members > self._options.population:
            self._remove_worst()
        if self._n_completed % self._options.population == 0:
            members = [member for species in self._groups.species for member in species.members]
            self._groups.regroup(sorted(members, key=lambda member: member[1]), now=self._n_completed)

    def independent_asks(self) -> int:
        # Samples at first; later the children of a generation, whose parents are settled before the first of them.
        return self._turns.left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "turns": self._turns.state_dict(),
            "groups": self._groups.state_dict(),
            "children": [list(member) for member in self._children],
            "completed": self._n_completed,
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._turns.load_state_dict(state["turns"])
        self._groups.load_state_dict(state["groups"])
        self._children = [(score, number, genotype) for score, number, genotype in state["children"]]
        self._n_completed = state["completed"]

    def _begin_generation(self) -> None:
        """The children replace their parents, but for the champions of species that are large enough."""
        if not self._children:
            return
        champions = [species.champion() for species in self._groups.species if len(species.members) >= CHAMPION_SIZE]
        members = sorted([*champions, *self._children], key=lambda member: member[1])
        self._groups.regroup(members, now=self._n_completed)
        self._children = []

    def _remove_worst(self) -> None:
        """Of each species the worst member is the one in question, for all share by the same number."""
        worst_ones = [min(species.members, key=_score) for species in self._groups.species]
        shared = [
            (fitness / len(species.members), member[1])
            for fitness, member, species in zip(
                self._fitness(map(_score, worst_ones)), worst_ones, self._groups.species, strict=True
            )
        ]
        place = shared.index(min(shared))
        self._groups.remove(self._groups.species[place], worst_ones[place])

    def _fitness(self, scores: Iterable[float]) -> list[float]:
        """Fitness of one score of each species, before it is shared; that of a mean is the mean of the fitness."""
        groups = self._groups.species
        worst = min(min(species.members, key=_score)[0] for species in groups)
        best_ones = [max(species.members, key=_score)[0] for species in groups]
        best = max(best_ones)
        # Halves, as the difference of two finite numbers need not be finite.
        width = best / 2 - worst / 2
        oldest = self._n_completed - self._options.stagnation * self._options.population
        fitness = []
        for species, score, highest in zip(groups, scores, best_ones, strict=True):
            is_stagnant = species.improved_at < oldest and highest < best
            height = (score / 2 - worst / 2) / width if width > 0 else 0.0
            share = STAGNANT_SHARE if is_stagnant else 1.0
            fitness.append(share * (FITNESS_FLOOR + (1 - FITNESS_FLOOR) * height))
        return fitness

    def _child(self) -> Proposal:
        species = self._draw_species()
        breeders = self._breeders(species)
        first = self._one_of(breeders)
        relatives = [first]
        genotype = first[2]
        if self._rng.random() < self._options.crossover:
            second = self._partner(first, species, breeders)
            if second is not None:
                relatives = sorted([first, second], key=lambda member: (-member[0], member[1]))
                genotype = self._space.crossover(relatives[0][2], relatives[1][2], self._rng)
        # What is equal to a parent would be evaluated again for nothing.
        if self._rng.random() < self._options.mutation or any(genotype == parent[2] for parent in relatives):
            genotype = self._space.mutate(genotype, self._rng)
        return Proposal(genotype, parents=tuple(number for _, number, _ in relatives))

    def _draw_species(self) -> Species:
        means = [sum(map(_score, species.members)) / len(species.members) for species in self._groups.species]
        sums = list(itertools.accumulate(self._fitness(means)))
        place = bisect.bisect_right(sums, self._rng.random() * sums[-1])
        return self._groups.species[min(place, len(sums) - 1)]

    def _breeders(self, species: Species) -> list[Member]:
        """The best of a species, best first."""
        ordered = sorted(species.members, key=lambda member: (-member[0], member[1]))
        return ordered[: math.ceil(self._options.survival * len(ordered))]

    def _partner(self, first: Member, species: Species, breeders: list[Member]) -> Member | None:
        """Another breeder, now and then of another species; None where there is none."""
        others = [other for other in self._groups.species if other is not species]
        if others and self._rng.random() < self._options.interspecies:
            return self._one_of(self._breeders(self._one_of(others)))
        partners = [member for member in breeders if member is not first]
        return self._one_of(partners) if partners else None

    def _one_of(self, items: list[_Item]) -> _Item:
        return items[int(self._rng.random() * len(items))]

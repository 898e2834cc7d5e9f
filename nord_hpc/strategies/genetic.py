"""A genetic algorithm: selection, crossover and mutation, by whole generations or one child at a time."""

from __future__ import annotations

import bisect
import itertools
import math
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.interfaces import SearchSpace, Wait
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

Member = tuple[float, int, Json]
"""(score, trial number, genotype)."""


PARTNER_ATTEMPTS = 4
"""Draws of a second parent that is another one than the first."""


class Genetic:
    """A genetic algorithm; see `nord_hpc.interfaces.Strategy` for the contract.

    Holland, "Adaptation in Natural and Artificial Systems", 1975; steady state as in Whitley and Kauth, 1988.

    It begins with `population` samples. A child is, with a chance of `crossover`, the crossover of two selected
    parents, else a copy of one; it is then mutated with a chance of `mutation`, and in any case where it is equal to
    a parent, whose result is known.

    By generations, all children have the same generation of parents, and asks wait until the last result of a
    generation is told. The best `elites` of a generation go on into the next without a new evaluation. Of a generation
    in which nothing completes, the parents stay.

    In the steady state each completed child enters the population at once, and the worst member leaves it, of equal
    ones the oldest. No ask ever waits.

    Failed and infeasible trials are never parents. Results of other trials enter as if they were its own: those before
    the first ask stand for samples.
    """

    class Options(BaseModel):
        """Sizes, and how parents are selected.

        Attributes:
            generational: by whole generations; else in the steady state.
            population: members of a generation, elites included, or of the steady state.
            selection: `tournament`: the best of `tournament` members, drawn with replacement; `roulette`: with chances
                in proportion to how far a score is above the worst one.
            tournament: members that compete; more is greedier.
            crossover: chance of a child to have two parents.
            mutation: chance of a child to be mutated.
            elites: members that go on into the next generation.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        generational: bool = True
        population: int = Field(50, ge=2)
        selection: Literal["tournament", "roulette"] = "tournament"
        tournament: int = Field(3, ge=1)
        crossover: float = Field(0.5, ge=0, le=1)
        mutation: float = Field(0.9, ge=0, le=1)
        elites: int = Field(1, ge=0)

        @model_validator(mode="after")
        def _sizes_fit(self) -> Genetic.Options:
            if self.tournament > self.population:
                raise ValueError(
                    f"tournament {self.tournament} is larger than population {self.population}; "
                    f"set tournament to {self.population} or less"
                )
            if self.elites >= self.population:
                raise ValueError(
                    f"elites {self.elites} leave no room for children in a population of {self.population}; "
                    f"set elites to {self.population - 1} or less"
                )
            return self

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._options = options
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._began = False
        # Asks until the samples, or the children of this generation, are complete.
        self._n_left = options.population
        self._pending: set[int] = set()
        # Best first by generations, oldest first in the steady state.
        self._parents: list[Member] = []
        self._children: list[Member] = []  # of this generation, those that have completed

    def ask(self, number: int) -> Proposal | Wait:
        self._began = True
        if number in self._pending:  # it was dropped, and another child takes its place
            self._pending.discard(number)
            self._n_left += self._options.generational
        if self._options.generational and self._n_left == 0:
            if self._pending:
                return Wait()
            self._begin_generation()
        n_alive = len(self._parents) + len(self._pending)
        refilling = not self._options.generational and (self._n_left > 0 or n_alive < self._options.population)
        self._n_left = max(0, self._n_left - 1)
        self._pending.add(number)
        # While nothing has completed there is no parent, however many are pending.
        if refilling or not self._parents:
            return Proposal(self._space.sample(self._rng))
        return self._child()

    def tell(self, finished: FinishedTrial) -> None:
        number, score = finished.trial.number, finished.score
        self._pending.discard(number)
        if score is None or not math.isfinite(score):
            return
        if not self._began:
            self._n_left = max(0, self._n_left - 1)
        member = (score, number, finished.trial.genotype)
        if self._options.generational:
            self._children.append(member)
            return
        self._parents.append(member)
        if len(self._parents) > self._options.population:
            del self._parents[min(range(len(self._parents)), key=lambda index: self._parents[index][0])]

    def independent_asks(self) -> int:
        # Samples at first; later the children of a generation, whose parents are settled before the first of them.
        return self._n_left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "began": self._began,
            "left": self._n_left,
            "pending": sorted(self._pending),
            "parents": [list(member) for member in self._parents],
            "children": [list(member) for member in self._children],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._began = state["began"]
        self._n_left = state["left"]
        self._pending = set(state["pending"])
        self._parents = [(score, number, genotype) for score, number, genotype in state["parents"]]
        self._children = [(score, number, genotype) for score, number, genotype in state["children"]]

    def _begin_generation(self) -> None:
        """The children become the parents, with the elites of the parents before them."""
        elites = self._options.elites
        if self._children:
            pool = [*self._parents[:elites], *self._children]
            pool.sort(key=lambda member: (-member[0], member[1]))
            self._parents = pool[: self._options.population]
            self._children = []
        self._n_left = self._options.population - min(elites, len(self._parents))

    def _child(self) -> Proposal:
        first = self._select()
        relatives = [first]
        genotype = first[2]
        if self._rng.random() < self._options.crossover:
            second = self._select()
            for _ in range(PARTNER_ATTEMPTS):
                if second[1] != first[1]:
                    break
                second = self._select()
            if second[1] != first[1]:
                relatives.append(second)
                genotype = self._space.crossover(first[2], second[2], self._rng)
        # What is equal to a parent would be evaluated again for nothing.
        if self._rng.random() < self._options.mutation or any(genotype == parent[2] for parent in relatives):
            genotype = self._space.mutate(genotype, self._rng)
        return Proposal(genotype, parents=tuple(number for _, number, _ in relatives))

    def _select(self) -> Member:
        parents = self._parents
        n_parents = len(parents)
        if self._options.selection == "tournament":
            drawn = [parents[int(u * n_parents)] for u in self._rng.random(self._options.tournament).tolist()]
            return max(drawn, key=lambda member: (member[0], -member[1]))
        worst = min(member[0] for member in parents)
        sums = list(itertools.accumulate(member[0] - worst for member in parents))
        u = self._rng.random()
        if not 0 < sums[-1] < math.inf:
            return parents[int(u * n_parents)]
        return parents[min(bisect.bisect_right(sums, u * sums[-1]), n_parents - 1)]

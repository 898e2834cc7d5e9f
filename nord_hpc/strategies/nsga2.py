"""NSGA-II: evolution towards several objectives at once, in the steady state or by generations."""

from __future__ import annotations

import logging
import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace, Wait
from nord_hpc.strategies.dominance import Front, Fronts
from nord_hpc.strategies.objectives import DEFAULT_OBJECTIVES, Objective, Values, values_of
from nord_hpc.strategies.seen import Seen
from nord_hpc.strategies.turns import Turns
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

logger = logging.getLogger(__name__)

Member = tuple[int, Json]
"""(trial number, genotype)."""

PARTNER_ATTEMPTS = 4
"""Draws of a second parent that is another one than the first."""
CHILD_ATTEMPTS = 50
"""Children until one is new; after that, samples."""
SAMPLE_ATTEMPTS = 20
"""Samples until one is new; after that the space counts as exhausted, and points come again."""


class NSGA2:
    """NSGA-II; see `nord_hpc.interfaces.Strategy` for the contract.

    Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002; steady state as in Durillo et al.,
    "On the Effect of the Steady-State Selection Scheme in Multi-Objective Genetic Algorithms", 2009.

    It begins with `population` samples. Parents are the better of two members, drawn with replacement: that of the
    front before the other's, or with more room around it. A child is, with a chance of `crossover`, the crossover of
    two parents, else a copy of one; it is then mutated with a chance of `mutation`, and in any case where it is equal
    to a parent.

    In the steady state each completed child enters the population at once. By generations, asks wait until the last
    result of a generation is told, and its children enter then. Whenever there are more than `population`, the member
    of the last front with least room leaves, of equal ones the oldest; its front's rooms are measured again for the
    next.

    Trials without one of the objectives, or with one that is no finite number, rank behind all others. Failed and
    infeasible trials never enter.
    """

    class Options(BaseModel):
        """The objectives, sizes and chances.

        Attributes:
            objectives: two or three as a rule; by default the job's own against the number of parameters.
            generational: by whole generations; else in the steady state.
            population: members that live at once.
            crossover, mutation: chances.
            distinct: whether points that were asked before are avoided, as far as others can be found.
            memory: how many of the latest points are remembered for that.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        objectives: tuple[Objective, ...] = Field(DEFAULT_OBJECTIVES, min_length=1)
        generational: bool = False
        population: int = Field(30, ge=2)
        crossover: float = Field(0.5, ge=0, le=1)
        mutation: float = Field(0.9, ge=0, le=1)
        distinct: bool = True
        memory: int = Field(2000, ge=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._options = options
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._turns = Turns(population=options.population, generational=options.generational)
        self._seen = Seen(options.memory)
        self._fronts: Fronts[Member] = Fronts()
        # Those without all objectives, oldest first: they stand behind the last front.
        self._unranked: list[Member] = []
        self._children: list[tuple[Values | None, Member]] = []  # of this generation
        self._warned = False

    def ask(self, number: int) -> Proposal | Wait:
        self._turns.begin(number)
        if self._turns.over:
            if self._turns.pending:
                return Wait()
            for values, member in self._children:
                self._enter(values, member)
            self._children = []
            self._turns.next_generation(self._options.population)
        if self._turns.take(number, n_parents=self._n_parents):
            proposal = Proposal(self._new_sample())
        else:
            proposal = self._new_child()
        self._seen.add(proposal.genotype)
        return proposal

    def tell(self, finished: FinishedTrial) -> None:
        completed = finished.score is not None and math.isfinite(finished.score)
        number, genotype = finished.trial.number, finished.trial.genotype
        if not self._turns.began:
            self._seen.add(genotype)
        self._turns.tell(number, completed=completed)
        if not completed:
            return
        values = values_of(finished, self._options.objectives)
        if values is None:
            self._warn(finished)
        if self._options.generational:
            self._children.append((values, (number, genotype)))
        else:
            self._enter(values, (number, genotype))

    def independent_asks(self) -> int:
        # Samples at first; later the children of a generation, whose parents are settled before the first of them.
        return self._turns.left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "turns": self._turns.state_dict(),
            "seen": self._seen.state_dict(),
            "fronts": [
                [[values, *member] for values, member in zip(front.values_NM.tolist(), front.items, strict=True)]
                for front in self._fronts.levels
            ],
            "unranked": [list(member) for member in self._unranked],
            "children": [[values and list(values), *member] for values, member in self._children],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._turns.load_state_dict(state["turns"])
        self._seen.load_state_dict(state["seen"])
        self._fronts.levels = [
            Front(np.array([values for values, _, _ in front]), [(number, genotype) for _, number, genotype in front])
            for front in state["fronts"]
        ]
        self._unranked = [(number, genotype) for number, genotype in state["unranked"]]
        self._children = [
            (values and tuple(values), (number, genotype)) for values, number, genotype in state["children"]
        ]

    @property
    def _n_parents(self) -> int:
        return len(self._fronts) + len(self._unranked)

    def _enter(self, values: Values | None, member: Member) -> None:
        """Let a member in and, where there are too many, the worst one out."""
        if values is None:
            self._unranked.append(member)
        else:
            self._fronts.insert(values, member)
        if self._n_parents <= self._options.population:
            return
        if self._unranked:
            del self._unranked[0]
            return
        last = self._fronts.levels[-1]
        rooms = last.crowding_N.tolist()
        least = min(rooms)
        self._fronts.remove_last(min((last.items[i][0], i) for i, room in enumerate(rooms) if room == least)[1])

    def _new_sample(self) -> Json:
        genotype = self._space.sample(self._rng)
        for _ in range(SAMPLE_ATTEMPTS if self._options.distinct else 0):
            if genotype not in self._seen:
                break
            genotype = self._space.sample(self._rng)
        return genotype

    def _new_child(self) -> Proposal:
        child = self._child()
        if not self._options.distinct:
            return child
        for _ in range(CHILD_ATTEMPTS):
            if child.genotype not in self._seen:
                return child
            # What was asked before is a step on the way to what was not.
            child = Proposal(self._space.mutate(child.genotype, self._rng), parents=child.parents)
        sample = self._new_sample()
        return child if sample in self._seen else Proposal(sample)

    def _child(self) -> Proposal:
        first = self._select()
        relatives = [first]
        genotype = first[1]
        if self._rng.random() < self._options.crossover:
            second = self._select()
            for _ in range(PARTNER_ATTEMPTS):
                if second[0] != first[0]:
                    break
                second = self._select()
            if second[0] != first[0]:
                relatives.append(second)
                genotype = self._space.crossover(first[1], second[1], self._rng)
        # What is equal to a parent would be evaluated again for nothing.
        if self._rng.random() < self._options.mutation or any(genotype == parent[1] for parent in relatives):
            genotype = self._space.mutate(genotype, self._rng)
        return Proposal(genotype, parents=tuple(number for number, _ in relatives))

    def _select(self) -> Member:
        """The better of two members."""
        u_first, u_second = self._rng.random(2).tolist()
        return min(self._ranked(u_first), self._ranked(u_second), key=lambda ranked: ranked[0])[1]

    def _ranked(self, u: float) -> tuple[tuple[float, float, int], Member]:
        """A member, with what is smaller for the better one of two: front, less room, number."""
        index = int(u * self._n_parents) - len(self._fronts)
        if index >= 0:
            member = self._unranked[index]
            return (math.inf, 0.0, member[0]), member
        level, place = self._fronts.place(index + len(self._fronts))
        front = self._fronts.levels[level]
        member = front.items[place]
        return (level, -float(front.crowding_N[place]), member[0]), member

    def _warn(self, finished: FinishedTrial) -> None:
        if not self._warned:
            missing = [o.metric for o in self._options.objectives if o.value(finished) is None]
            logger.warning(
                "trial %d has no finite %s and ranks behind all that have; strategy.objectives names what the "
                "evaluator must measure",
                finished.trial.number,
                " and no ".join(missing),
            )
            self._warned = True

"""Regularized (ageing) evolution, as in Real et al. 2018: mutations of the best of a sample, and the oldest dies."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.interfaces import SearchSpace
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal


class RegularizedEvolution:
    """Regularized evolution; see `nord_hpc.interfaces.Strategy` for the contract.

    Real et al., "Regularized Evolution for Image Classifier Architecture Search", arXiv 1802.01548.

    Candidates are sampled from the space until `population` of them are good: completed, or still pending. From then on
    each is a mutation of the best of `sample` members, drawn with replacement; ties go to the lowest trial number. A
    completed trial enters the population, and the oldest member, by the order of telling, leaves it. Failed and
    infeasible trials never enter.
    """

    class Options(BaseModel):
        """Sizes of the population and of the tournament.

        Attributes:
            population: members that live at once.
            sample: members that compete to be the parent; more is greedier.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        population: int = Field(100, ge=2)
        sample: int = Field(25, ge=1)

        @model_validator(mode="after")
        def _sample_fits(self) -> RegularizedEvolution.Options:
            if self.sample > self.population:
                raise ValueError(
                    f"sample {self.sample} is larger than population {self.population}; "
                    f"set sample to {self.population} or less"
                )
            return self

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._options = options
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._n_asked = 0
        self._pending: set[int] = set()
        # (score, trial number, genotype), oldest first.
        self._population: list[tuple[float, int, Json]] = []

    def ask(self, number: int) -> Proposal:
        starting = len(self._population) + len(self._pending) < self._options.population
        self._n_asked += 1
        self._pending.add(number)
        # While nothing has completed there is no parent, however many are pending.
        if starting or not self._population:
            return Proposal(self._space.sample(self._rng))
        n_members = len(self._population)
        drawn = [self._population[int(u * n_members)] for u in self._rng.random(self._options.sample).tolist()]
        _, parent, genotype = max(drawn, key=lambda member: (member[0], -member[1]))
        return Proposal(self._space.mutate(genotype, self._rng), parents=(parent,))

    def tell(self, finished: FinishedTrial) -> None:
        self._pending.discard(finished.trial.number)
        if finished.score is None or not math.isfinite(finished.score):
            return
        self._population.append((finished.score, finished.trial.number, finished.trial.genotype))
        if len(self._population) > self._options.population:
            del self._population[0]

    def independent_asks(self) -> int:
        # The first `population` asks are samples whatever is told: failures only make more of them.
        return max(0, self._options.population - self._n_asked)

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "asked": self._n_asked,
            "pending": sorted(self._pending),
            "population": [list(member) for member in self._population],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._n_asked = state["asked"]
        self._pending = set(state["pending"])
        self._population = [(score, number, genotype) for score, number, genotype in state["population"]]

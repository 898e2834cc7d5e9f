"""AgEBO: ageing evolution of the network together with Bayesian optimization of how it is trained."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.forest import Forest
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

ARCHITECTURE, HYPERPARAMETERS = "architecture", "hyperparameters"
SEEDS = 2**31


class AgEBO:
    """Ageing evolution with Bayesian optimization; see `nord_hpc.interfaces.Strategy` for the contract.

    Egele et al., "AgEBO-Tabular: Joint Neural Architecture and Hyperparameter Search with Autotuned Data-Parallel
    Training for Tabular Data", 2021, arXiv 2010.16358.

    Networks evolve as in `regularized_evolution`: samples until `population` of them are good, completed or pending;
    then each is a mutation of the best of `sample` members, drawn without replacement; a completed trial enters, and
    the oldest member leaves.

    Its hyperparameters, learning rate, batch size and number of ranks above all, do not come from the parent. The first
    `initial` are samples. Then a random forest is fitted to the scores of the last `window` trials over their encoded
    hyperparameters, whatever their networks, and those of `candidates` samples are taken whose mean plus `kappa`
    deviations is highest. Trials in flight take part with a made-up score, the constant liar, and failed and infeasible
    ones with the worst of the window; both are the forest's alone and never a fitness.

    Set `linear_scaling` in the space's hyperparameters to let batch size and learning rate grow with the ranks, as in
    the paper.
    """

    class Options(BaseModel):
        """Sizes of evolution and optimization; population, sample, initial, kappa and liar as in the authors' code.

        Attributes:
            population: members that live at once.
            sample: members that compete to be the parent.
            initial: trials with sampled hyperparameters.
            kappa: how much uncertainty is worth; small values exploit.
            trees: of the forest.
            candidates: samples of hyperparameters among which an ask chooses.
            liar: the score of a trial in flight: the `max`, `mean` or `min` of those that are known.
            window: latest trials to which the forest is fitted, so that asks do not become slower for ever.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        population: int = Field(100, ge=2)
        sample: int = Field(10, ge=1)
        initial: int = Field(10, ge=1)
        kappa: float = Field(0.001, ge=0)
        trees: int = Field(10, ge=1)
        candidates: int = Field(500, ge=1)
        liar: Literal["max", "mean", "min"] = "max"
        window: int = Field(1000, ge=2)

        @model_validator(mode="after")
        def _sample_fits(self) -> AgEBO.Options:
            if self.sample > self.population:
                raise ValueError(
                    f"sample {self.sample} is larger than population {self.population}; "
                    f"set sample to {self.population} or less"
                )
            return self

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: points of the space are not pairs of a network and hyperparameters.
        """
        self._options = options
        parts: list[Any] = [getattr(space, name, None) for name in (ARCHITECTURE, HYPERPARAMETERS)]
        if None in parts or not hasattr(parts[1], "encode"):
            raise ValueError(
                f"strategy agebo needs a space of networks and hyperparameters, and {type(space).__name__} has not "
                f"these two parts, {ARCHITECTURE} and {HYPERPARAMETERS}; set space.name to joint"
            )
        self._networks, self._hyperparameters = parts
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._began = False
        self._networks_left = options.population
        self._samples_left = options.initial
        # Trial number to hyperparameters, of those in flight.
        self._pending: dict[int, Json] = {}
        # (score, trial number, network), oldest first.
        self._population: list[tuple[float, int, Json]] = []
        # (hyperparameters, score or None), of the latest trials, oldest first.
        self._seen: list[tuple[Json, float | None]] = []
        self._codes: list[list[float]] = []

    def ask(self, number: int) -> Proposal:
        self._began = True
        self._pending.pop(number, None)  # it was dropped
        network, parents = self._next_network()
        hyperparameters = self._next_hyperparameters()
        self._networks_left = max(0, self._networks_left - 1)
        self._samples_left = max(0, self._samples_left - 1)
        self._pending[number] = hyperparameters
        return Proposal({ARCHITECTURE: network, HYPERPARAMETERS: dict(hyperparameters)}, parents=parents)

    def tell(self, finished: FinishedTrial) -> None:
        number, genotype, score = finished.trial.number, finished.trial.genotype, finished.score
        self._pending.pop(number, None)
        if score is not None and not math.isfinite(score):
            score = None
        if not self._began:
            self._networks_left = max(0, self._networks_left - (score is not None))
            self._samples_left = max(0, self._samples_left - 1)
        self._see(genotype[HYPERPARAMETERS], score)
        if score is None:
            return
        self._population.append((score, number, genotype[ARCHITECTURE]))
        if len(self._population) > self._options.population:
            del self._population[0]

    def independent_asks(self) -> int:
        return min(self._networks_left, self._samples_left)

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "began": self._began,
            "networks_left": self._networks_left,
            "samples_left": self._samples_left,
            "pending": [[number, dict(self._pending[number])] for number in sorted(self._pending)],
            "population": [list(member) for member in self._population],
            "seen": [[dict(hyperparameters), score] for hyperparameters, score in self._seen],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._began = state["began"]
        self._networks_left, self._samples_left = state["networks_left"], state["samples_left"]
        self._pending = {number: dict(hyperparameters) for number, hyperparameters in state["pending"]}
        self._population = [(score, number, network) for score, number, network in state["population"]]
        self._seen, self._codes = [], []
        for hyperparameters, score in state["seen"]:
            self._see(dict(hyperparameters), score)

    def _see(self, hyperparameters: Json, score: float | None) -> None:
        self._seen.append((hyperparameters, score))
        self._codes.append(self._hyperparameters.encode(hyperparameters))
        if len(self._seen) > self._options.window:
            del self._seen[0], self._codes[0]

    def _next_network(self) -> tuple[Json, tuple[int, ...]]:
        """A network and the numbers of its parents."""
        n_members = len(self._population)
        starting = self._networks_left > 0 or n_members + len(self._pending) < self._options.population
        # While nothing has completed there is no parent, however many are pending.
        if starting or not self._population:
            return self._networks.sample(self._rng), ()
        drawn = self._rng.choice(n_members, size=min(self._options.sample, n_members), replace=False)
        _, parent, network = max(
            (self._population[index] for index in drawn.tolist()), key=lambda member: (member[0], -member[1])
        )
        return self._networks.mutate(network, self._rng), (parent,)

    def _next_hyperparameters(self) -> Json:
        scores = [score for _, score in self._seen if score is not None]
        if self._samples_left > 0 or not scores:
            return self._hyperparameters.sample(self._rng)
        worst = min(scores)
        known = [worst if score is None else score for _, score in self._seen]
        lie = {"max": max(scores), "mean": sum(scores) / len(scores), "min": worst}[self._options.liar]
        in_flight = [self._hyperparameters.encode(self._pending[number]) for number in sorted(self._pending)]
        forest = Forest(
            np.array([*self._codes, *in_flight]),
            np.array([*known, *[lie] * len(in_flight)]),
            trees=self._options.trees,
            seed=int(self._rng.integers(SEEDS)),
        )
        candidates = [self._hyperparameters.sample(self._rng) for _ in range(self._options.candidates)]
        mean_M, deviation_M = forest.predict(np.array([self._hyperparameters.encode(point) for point in candidates]))
        return candidates[int(np.argmax(mean_M + self._options.kappa * deviation_M))]

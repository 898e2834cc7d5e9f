"""A space, an evaluator and strategies that cost microseconds, for searches by the thousand on the simulated transport.

Job files name them as "light_parts.py:CLASS". They have what makes a schedule hard: candidates of several gang sizes,
equal and infeasible ones, rungs that are waited for, and an end that the strategy decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from nord_hpc.errors import Infeasible
from nord_hpc.interfaces import Done, SearchSpace, Wait
from nord_hpc.trial import Examination, Fidelity, FinishedTrial, Json, Proposal

FILE = Path(__file__)


class LightDescriptor:
    """A network that is nothing but its name."""

    layers = ()

    def __init__(self, genotype: Json) -> None:
        self._genotype = genotype

    def to_json(self) -> Json:
        return {"network": self._genotype}

    def canonical_hash(self) -> str:
        return hashlib.sha256(repr(self._genotype).encode()).hexdigest()


class LightSpace:
    """Genotypes are a size and a place in a gang table."""

    class Options(BaseModel):
        """`points`: different sizes. `gangs`: a candidate wants one of these numbers of ranks, and as many shards."""

        points: int = 1000
        gangs: tuple[int, ...] = ()

    def __init__(self, options: Options) -> None:
        self._options = options

    def sample(self, rng: np.random.Generator) -> Json:
        return [int(rng.random() * self._options.points), int(rng.random() * max(1, len(self._options.gangs)))]

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        size, gang = self.sample(rng)
        return [size, genotype[1]] if rng.random() < 0.5 else [genotype[0] + 1, gang]

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        return [first[0], second[1]]

    def contains(self, genotype: Json) -> bool:
        return isinstance(genotype, list) and len(genotype) == 2

    def to_descriptor(self, genotype: Json) -> LightDescriptor:
        return LightDescriptor(genotype)

    def settings(self, genotype: Json) -> dict[str, Json]:
        if not self._options.gangs:
            return {}
        gang = self._options.gangs[genotype[1]]
        return {"resources.gang": gang, "resources.shards": gang}


class LightEvaluator:
    """Costs are lognormal by descriptor; one network in nine is infeasible. Never evaluates."""

    class Options(BaseModel):
        """`seconds`: mean of the predicted time on one rank; `sigma`: of its logarithm."""

        seconds: float = 60.0
        sigma: float = 0.6
        infeasible: bool = True

    def __init__(self, options: Options, *, job: Any, folder: Path, weights_folder: Path) -> None:
        self._options = options

    def examine(
        self, descriptor: LightDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] | None = None
    ) -> Examination:
        digest = int(descriptor.canonical_hash()[:12], 16)
        if self._options.infeasible and digest % 9 == 0:
            raise Infeasible("this network is one of the ninth part")
        normal = math.sqrt(-2 * math.log((digest % 997 + 1) / 998)) * math.cos(digest)
        gang = 1 if settings is None else settings.get("resources.gang", 1)
        seconds = self._options.seconds * gang * fidelity.epochs * math.exp(self._options.sigma * normal)
        return Examination(cost=max(1, round(seconds * 1e6)))


class _Light:
    """What the strategies below share: samples of the space."""

    class Options(BaseModel):
        """`rungs`: after which the strategy is done; 0 for none."""

        rungs: int = 0

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._options = options
        self._space = space
        self._full = full_fidelity
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def independent_asks(self) -> int:
        return 0


class Rungs(_Light):
    """Six candidates of one epoch; when all are told, the best two go on to full fidelity; then the next six."""

    continues_trials = True
    WIDTH, PROMOTED = 6, 2

    def __init__(self, options: _Light.Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        super().__init__(options, space=space, seed=seed, full_fidelity=full_fidelity)
        self._asked = self._told = self._n_rungs = 0
        self._good: list[list[Any]] = []
        self._promoted: list[list[Any]] = []

    def ask(self, number: int) -> Proposal | Wait | Done:
        if self._promoted:
            _, base, genotype = self._promoted.pop(0)
            return Proposal(genotype, parents=(base,), continues=base)
        if self._asked == self.WIDTH:
            return Wait()
        if self._options.rungs and self._n_rungs >= self._options.rungs:
            return Done()
        self._asked += 1
        return Proposal(self._space.sample(self._rng), fidelity=Fidelity(1))

    def tell(self, finished: FinishedTrial) -> None:
        if finished.trial.fidelity == self._full:
            return
        self._told += 1
        if finished.score is not None:
            self._good.append([-finished.score, finished.trial.number, finished.trial.genotype])
        if self._told == self.WIDTH:
            self._promoted += sorted(self._good)[: self.PROMOTED]
            self._good, self._asked, self._told = [], 0, 0
            self._n_rungs += 1

    def state_dict(self) -> Json:
        rest = [self._asked, self._told, self._n_rungs, self._good, self._promoted]
        return json.loads(json.dumps({"rng": self._rng.bit_generator.state, "rest": rest}))

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._asked, self._told, self._n_rungs, self._good, self._promoted = state["rest"]


class Climber(_Light):
    """Changes the best that it knows, so that each proposal depends on all results before it."""

    def __init__(self, options: _Light.Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        super().__init__(options, space=space, seed=seed, full_fidelity=full_fidelity)
        self._best: list[Any] | None = None

    def ask(self, number: int) -> Proposal:
        if self._best is None:
            return Proposal(self._space.sample(self._rng))
        return Proposal(self._space.mutate(self._best[2], self._rng), parents=(-self._best[1],))

    def tell(self, finished: FinishedTrial) -> None:
        if finished.score is not None:
            found = [finished.score, -finished.trial.number, finished.trial.genotype]
            self._best = found if self._best is None else max(self._best, found)

    def state_dict(self) -> Json:
        return {"rng": self._rng.bit_generator.state, "best": self._best}

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._best = state["best"]

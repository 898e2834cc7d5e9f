"""A strategy that gives each good candidate of three epochs nine: the smallest that continues trials."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel

from nord_hpc.interfaces import SearchSpace
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal


class Climbing:
    """Promotes what scores above a half."""

    continues_trials = True

    class Options(BaseModel):
        """None."""

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._good: list[list[Any]] = []

    def ask(self, number: int) -> Proposal:
        if self._good:
            base, genotype = self._good.pop(0)
            return Proposal(genotype, parents=(base,), fidelity=Fidelity(9), continues=base)
        return Proposal(self._space.sample(self._rng), fidelity=Fidelity(3))

    def tell(self, finished: FinishedTrial) -> None:
        if finished.score is not None and finished.score > 0.5 and finished.trial.continues is None:
            self._good.append([finished.trial.number, finished.trial.genotype])

    def independent_asks(self) -> int:
        return 0

    def state_dict(self) -> Json:
        return {"rng": self._rng.bit_generator.state, "good": self._good}

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._good = list(state["good"])

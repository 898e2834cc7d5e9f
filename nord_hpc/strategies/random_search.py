"""Random search: every candidate is sampled on its own; the baseline of all other strategies."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.interfaces import SearchSpace
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

FOR_EVER = 2**31


class RandomSearch:
    """Samples of the space, without end. See `nord_hpc.interfaces.Strategy` for the contract."""

    class Options(BaseModel):
        """Random search has no options."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        self._space = space
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def ask(self, number: int) -> Proposal:
        return Proposal(self._space.sample(self._rng))

    def tell(self, finished: FinishedTrial) -> None:
        """Nothing is learned."""

    def independent_asks(self) -> int:
        return FOR_EVER

    def state_dict(self) -> Json:
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]

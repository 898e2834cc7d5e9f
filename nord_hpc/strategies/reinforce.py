"""REINFORCE: a policy over the decisions of a space that learns from the scores of what it chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.adam import Adam, Vector, from_text, to_text
from nord_hpc.strategies.factorized_policy import FactorizedPolicy
from nord_hpc.strategies.lstm_policy import LstmPolicy
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

LEARNING_RATES = {"factorized": 0.1, "lstm": 0.01}


class Policy(Protocol):
    """Probabilities over sequences of choices.

    Attributes:
        parameters: what is learned; changed in place.
    """

    parameters: Vector

    def sample(self, rng: np.random.Generator) -> list[int]:
        """One alternative of each decision, in their order."""

    def gradient(self, choices: Sequence[int]) -> Vector:
        """Of the logarithm of the probability of these choices, by the parameters."""


class Reinforce:
    """Policy gradients; see `nord_hpc.interfaces.Strategy` for the contract.

    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning" (1992). With
    `policy: factorized` as the benchmarks NAS-Bench-101 and NATS-Bench (arXiv 2009.00437) use it; with `policy: lstm`
    the controller of Zoph and Le, "Neural Architecture Search with Reinforcement Learning" (arXiv 1611.01578).

    Each completed trial moves the policy by one step of Adam along the gradient of the logarithm of its probability,
    times its score above the baseline: the moving average of the scores, this one included. The gradient is that of
    the policy as it is when the result is told; one trial at a time, that is the policy which proposed it.

    Failed trials teach nothing. Trials that were not asked for are no samples of the policy: they count in the baseline
    alone.
    """

    class Options(BaseModel):
        """How the policy learns.

        Attributes:
            policy: `factorized`: each decision by itself; `lstm`: each depends on those before it.
            lr: of Adam; None for 0.1 (factorized) and 0.01 (lstm). Zoph and Le had 0.0006, for 12,800 networks.
            baseline: weight of the past in the moving average.
            layers: of the LSTM.
            units: of each layer of the LSTM.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        policy: Literal["factorized", "lstm"] = "factorized"
        lr: float | None = Field(None, gt=0)
        baseline: float = Field(0.9, ge=0, lt=1)
        layers: int = Field(2, ge=1)
        units: int = Field(35, ge=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        missing = [name for name in ("decisions", "from_decisions") if not hasattr(space, name)]
        if missing:
            raise ValueError(
                f"reinforce needs a space whose points are sequences of decisions, and {type(space).__name__} has no "
                f"{'() and no '.join(missing)}(); set another strategy or space"
            )
        self._from_decisions = space.from_decisions  # type: ignore[attr-defined]
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._policy = self._made_policy(options, space)
        lr = LEARNING_RATES[options.policy] if options.lr is None else options.lr
        self._adam = Adam(len(self._policy.parameters), lr=lr)
        self._past = options.baseline
        # Sums of scores and of weights, both with the past weighed down; their quotient is the baseline.
        self._weighted_score, self._weight = 0.0, 0.0
        self._pending: dict[int, list[int]] = {}

    def ask(self, number: int) -> Proposal:
        choices = self._policy.sample(self._rng)
        self._pending[number] = choices
        return Proposal(self._from_decisions(choices))

    def tell(self, finished: FinishedTrial) -> None:
        choices = self._pending.pop(finished.trial.number, None)
        if finished.score is None or not math.isfinite(finished.score):
            return
        self._weighted_score = self._past * self._weighted_score + (1 - self._past) * finished.score
        self._weight = self._past * self._weight + (1 - self._past)
        if choices is None:
            return
        advantage = finished.score - self._weighted_score / self._weight
        self._adam.ascend(self._policy.parameters, advantage * self._policy.gradient(choices))

    def independent_asks(self) -> int:
        return 0

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "parameters": to_text(self._policy.parameters),
            "adam": self._adam.state_dict(),
            "baseline": [self._weighted_score, self._weight],
            "pending": [[number, list(choices)] for number, choices in sorted(self._pending.items())],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._policy.parameters[:] = from_text(state["parameters"])
        self._adam.load_state_dict(state["adam"])
        self._weighted_score, self._weight = state["baseline"]
        self._pending = {number: list(choices) for number, choices in state["pending"]}

    def _made_policy(self, options: Options, space: SearchSpace) -> Policy:
        decisions = space.decisions()  # type: ignore[attr-defined]
        if options.policy == "factorized":
            return FactorizedPolicy(decisions, rng=self._rng)
        skips = space.skips() if hasattr(space, "skips") else None
        return LstmPolicy(decisions, skips=skips, layers=options.layers, units=options.units, rng=self._rng)

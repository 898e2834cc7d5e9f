"""A policy whose decisions know nothing of one another: a softmax for each, over numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nord_hpc.strategies.adam import Vector

INITIAL_DEVIATION = 1e-3


class FactorizedPolicy:
    """Independent decisions.

    Args:
        decisions: number of alternatives of each.
        rng: draws the initial numbers, which are nearly zero: all alternatives are nearly alike.

    Attributes:
        parameters: of all decisions, one after the other.
    """

    def __init__(self, decisions: Sequence[int], *, rng: np.random.Generator) -> None:
        self._n_decisions, most = len(decisions), max(decisions, default=1)
        # Decisions as rows; what is beyond a decision's alternatives has no weight.
        self._exists_DA = np.arange(most) < np.array(decisions, dtype=int).reshape(-1, 1)
        self.parameters: Vector = INITIAL_DEVIATION * rng.standard_normal(int(self._exists_DA.sum()))

    def probabilities(self) -> Vector:
        """[decisions, most alternatives]; 0 where there is no such alternative."""
        logits_DA = np.full(self._exists_DA.shape, -np.inf)
        logits_DA[self._exists_DA] = self.parameters
        weights_DA = np.exp(logits_DA - logits_DA.max(axis=1, keepdims=True))
        found: Vector = weights_DA / weights_DA.sum(axis=1, keepdims=True)
        return found

    def sample(self, rng: np.random.Generator) -> list[int]:
        """One alternative of each decision."""
        cumulative_DA = self.probabilities().cumsum(axis=1)
        # Rounding may leave the last sum a little below 1.
        draws_D1 = rng.random((self._n_decisions, 1)) * cumulative_DA[:, -1:]
        choices: list[int] = (cumulative_DA <= draws_D1).sum(axis=1).tolist()
        return choices

    def gradient(self, choices: Sequence[int]) -> Vector:
        """Of the logarithm of the probability of these choices, by the parameters."""
        gradient_DA = -self.probabilities()
        gradient_DA[np.arange(self._n_decisions), choices] += 1
        found: Vector = gradient_DA[self._exists_DA]
        return found

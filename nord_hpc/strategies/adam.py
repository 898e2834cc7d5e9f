"""Adam on one vector of numbers, without torch: what learns the policies of strategies."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from nord_hpc.trial import Json

Vector = np.ndarray[Any, np.dtype[np.float64]]


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980), which climbs.

    Args:
        size: of the vector.
        lr: step size.
    """

    def __init__(
        self, size: int, *, lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        self._lr, self._beta1, self._beta2, self._epsilon = lr, beta1, beta2, epsilon
        self._mean = np.zeros(size)
        self._square = np.zeros(size)
        self._n_steps = 0

    def ascend(self, values: Vector, gradient: Vector) -> None:
        """Change `values` in place by one step along `gradient`."""
        self._n_steps += 1
        self._mean += (1 - self._beta1) * (gradient - self._mean)
        self._square += (1 - self._beta2) * (gradient * gradient - self._square)
        mean = self._mean / (1 - self._beta1**self._n_steps)
        root = np.sqrt(self._square / (1 - self._beta2**self._n_steps))
        values += self._lr * mean / (root + self._epsilon)

    def state_dict(self) -> Json:
        return {"steps": self._n_steps, "mean": to_text(self._mean), "square": to_text(self._square)}

    def load_state_dict(self, state: Json) -> None:
        self._n_steps = state["steps"]
        self._mean, self._square = from_text(state["mean"]), from_text(state["square"])


def to_text(values: Vector) -> str:
    """A vector as text that JSON takes, to the bit."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode("ascii")


def from_text(text: str) -> Vector:
    """The vector that `to_text` was given."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)

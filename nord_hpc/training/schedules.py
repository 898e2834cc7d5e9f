"""Learning-rate schedules: the factor of the job's learning rate at each step, a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}
"""Name to the factor at a share `done` of all steps, 0 to 1. Cosine: Loshchilov and Hutter 2017, arXiv 1608.03983."""


def factor(name: str, *, step: int, n_steps: int) -> float:
    """The factor of the learning rate at `step`, 0 .. n_steps - 1; 1 at the first."""
    return SCHEDULES[name](step / n_steps)

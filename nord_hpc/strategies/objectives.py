"""Several objectives of one trial as a vector that is minimized; how such vectors are ranked is left to `dominance`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.trial import FinishedTrial

FITNESS = "fitness"
OF_THE_TRIAL = ("n_parameters", "multiply_adds")
"""Objectives that are known before a trial is evaluated; they are minimized unless told otherwise."""

Values = tuple[float, ...]
"""One number for each objective, the smaller the better."""


class Objective(BaseModel):
    """One objective.

    Attributes:
        metric: `fitness`, the job's objective in the job's direction; `n_parameters` or `multiply_adds` of the network;
            or any number that the evaluator measures, such as latency_ms.
        direction: `maximize` or `minimize`; not for `fitness`, and of the network's sizes `minimize` unless set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1)
    direction: Literal["maximize", "minimize"] | None = None

    @model_validator(mode="after")
    def _direction_is_known(self) -> Objective:
        if self.metric == FITNESS and self.direction is not None:
            raise ValueError("the direction of fitness is the job's objective.direction; leave direction out here")
        if self.metric not in (FITNESS, *OF_THE_TRIAL) and self.direction is None:
            raise ValueError(f"whether {self.metric} is better large or small? set direction to maximize or minimize")
        return self

    def value(self, finished: FinishedTrial) -> float | None:
        """What is minimized; None where it is missing or no finite number."""
        if self.metric == FITNESS:
            measured, sign = finished.score, -1.0
        else:
            source = finished.outcome.metrics.get(self.metric)
            measured = getattr(finished.trial, self.metric) if self.metric in OF_THE_TRIAL else source
            sign = -1.0 if self.direction == "maximize" else 1.0
        if isinstance(measured, bool) or not isinstance(measured, int | float) or not math.isfinite(measured):
            return None
        return sign * measured


DEFAULT_OBJECTIVES = (Objective(metric=FITNESS), Objective(metric="n_parameters"))


def values_of(finished: FinishedTrial, objectives: Sequence[Objective]) -> Values | None:
    """The vector of a trial; None where one of its numbers is missing."""
    values = [objective.value(finished) for objective in objectives]
    present = tuple(value for value in values if value is not None)
    return present if len(present) == len(values) else None

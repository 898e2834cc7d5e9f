"""MO-ASHA: asynchronous successive halving towards several objectives; the rungs are kept by `halving`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.dominance import Floats, Fronts
from nord_hpc.strategies.halving import Halving, HalvingOptions
from nord_hpc.strategies.objectives import DEFAULT_OBJECTIVES, Objective, Values, values_of
from nord_hpc.trial import Fidelity, FinishedTrial, Json


class MoAshaOptions(HalvingOptions):
    """Rungs, and what counts in them.

    Attributes:
        objectives: two or three as a rule; by default the job's own against the number of parameters.
    """

    objectives: tuple[Objective, ...] = Field(DEFAULT_OBJECTIVES, min_length=1)


class MoAsha(Halving):
    """Multi-objective ASHA; see `nord_hpc.interfaces.Strategy` for the contract.

    Schmucker et al., "Multi-objective Asynchronous Successive Halving", 2021, arXiv 2106.12639.

    As `asha`, with another order of a rung: by non-dominated fronts, and within a front by an epsilon-net, that is the
    one farthest from all that stand before it, in units of the front's width in each objective; the first of a front is
    its best in the first objective. Ties go to the lower number. Trials without one of the objectives rank behind all
    others, and do not go on.
    """

    Options = MoAshaOptions
    continues_trials: ClassVar[bool] = True

    def __init__(self, options: MoAshaOptions, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        super().__init__(
            options,
            name="mo_asha",
            ranking=lambda: ByFronts(options.objectives),
            space=space,
            seed=seed,
            full_fidelity=full_fidelity,
        )


class ByFronts:
    """A rung in the order of fronts and epsilon-nets."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._fronts: Fronts[int] = Fronts()
        self._known: dict[int, Values] = {}
        self._waiting: set[int] = set()
        self._n_bad = 0
        self._order: list[int] = []  # the best of now, as far as they have been wanted

    def add(self, finished: FinishedTrial) -> bool:
        completed = finished.score is not None and math.isfinite(finished.score)
        values = values_of(finished, self._objectives) if completed else None
        if values is None:
            self._n_bad += 1
            return False
        self._add(finished.trial.number, values)
        self._waiting.add(finished.trial.number)
        return True

    def candidate(self, n: int) -> int | None:
        if len(self._order) < min(n, len(self._known)):
            self._order = []
            for front in self._fronts.levels:
                if len(self._order) >= n:
                    break
                numbers = np.array(front.items)
                by_number = numbers.argsort()  # in whatever order they came
                self._order += numbers[by_number[epsilon_net(front.values_NM[by_number])]].tolist()
        return next((number for number in self._order[:n] if number in self._waiting), None)

    def set_waiting(self, number: int, waits: bool) -> None:
        if waits:
            self._waiting.add(number)
        else:
            self._waiting.discard(number)

    def __len__(self) -> int:
        return len(self._known) + self._n_bad

    def state_dict(self) -> Json:
        known = [[number, *values] for number, values in self._known.items()]
        return {"known": known, "waiting": sorted(self._waiting), "bad": self._n_bad}

    def load_state_dict(self, state: Json) -> None:
        self._fronts, self._known, self._order = Fronts(), {}, []
        for number, *values in state["known"]:
            self._add(number, tuple(values))
        self._waiting = set(state["waiting"])
        self._n_bad = state["bad"]

    def _add(self, number: int, values: Values) -> None:
        self._known[number] = values
        self._fronts.insert(values, number)
        self._order = []


def epsilon_net(values_NM: Floats) -> list[int]:
    """An order in which each comes that is farthest from all before it; first the one that is best in the first column.

    Distances are Euclidean, in units of the width of each column.
    """
    width_M = np.ptp(values_NM, axis=0)
    scaled_NM = values_NM / np.where(width_M > 0, width_M, 1.0)
    order = [int(scaled_NM[:, 0].argmin())]
    distance_N = np.full(len(scaled_NM), np.inf)
    while len(order) < len(scaled_NM):
        distance_N = np.minimum(distance_N, np.square(scaled_NM - scaled_NM[order[-1]]).sum(axis=1))
        distance_N[order] = -1.0
        order.append(int(distance_N.argmax()))
    return order

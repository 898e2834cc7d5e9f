"""ASHA: asynchronous successive halving around any strategy; the rungs are kept by `halving`."""

from __future__ import annotations

import bisect
import math
from typing import ClassVar

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.halving import Halving, HalvingOptions
from nord_hpc.trial import Fidelity, FinishedTrial, Json


class Asha(Halving):
    """Asynchronous successive halving; see `nord_hpc.interfaces.Strategy` for the contract.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, arXiv 1810.05934.

    Each candidate of the inner strategy, by the paper a sample, is trained for the epochs of the lowest rung. Whenever
    a trial is asked for, it is the best of those which are among the best 1 / eta of the finished trials of their rung
    and have not gone on, of the highest rung that has one; it goes on from its trained state to the next rung. Without
    one, the inner strategy proposes a new candidate. So no ask waits for a rung.

    Of equal scores the lower number is better. Failed and infeasible trials count in their rung, as its worst.
    Candidates that the strategy did not propose take part in the rung of their epochs.

    A rung keeps the score of each of its trials and the genotype of each that has not gone on: as it grows, any of them
    may become one of its best.
    """

    Options = HalvingOptions
    continues_trials: ClassVar[bool] = True

    def __init__(self, options: HalvingOptions, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        super().__init__(options, name="asha", ranking=ByScore, space=space, seed=seed, full_fidelity=full_fidelity)


class ByScore:
    """A rung in the order of scores."""

    def __init__(self) -> None:
        # (minus the score, number), ascending: of all that completed, and of those that wait.
        self._ordered: list[tuple[float, int]] = []
        self._waiting: list[tuple[float, int]] = []
        self._keys: dict[int, tuple[float, int]] = {}
        self._n_bad = 0

    def add(self, finished: FinishedTrial) -> bool:
        if finished.score is None or not math.isfinite(finished.score):
            self._n_bad += 1
            return False
        key = (-finished.score, finished.trial.number)
        self._keys[key[1]] = key
        bisect.insort(self._ordered, key)
        bisect.insort(self._waiting, key)
        return True

    def candidate(self, n: int) -> int | None:
        if not self._waiting or bisect.bisect_left(self._ordered, self._waiting[0]) >= n:
            return None
        return self._waiting[0][1]

    def set_waiting(self, number: int, waits: bool) -> None:
        key = self._keys[number]
        if waits:
            bisect.insort(self._waiting, key)
        else:
            del self._waiting[bisect.bisect_left(self._waiting, key)]

    def __len__(self) -> int:
        return len(self._ordered) + self._n_bad

    def state_dict(self) -> Json:
        return {
            "ordered": [list(key) for key in self._ordered],
            "waiting": [number for _, number in self._waiting],
            "bad": self._n_bad,
        }

    def load_state_dict(self, state: Json) -> None:
        self._ordered = [(worse, number) for worse, number in state["ordered"]]
        self._keys = {key[1]: key for key in self._ordered}
        self._waiting = [self._keys[number] for number in state["waiting"]]
        self._n_bad = state["bad"]

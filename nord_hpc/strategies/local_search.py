"""Local search: go to a better neighbour until there is none, then begin anew from a sample."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.seen import Seen
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

ORDER_SEEDS = 2**31
MOST_REMEMBERED = 20_000
"""Points of one climb that are not proposed again."""

Place = tuple[float, int, Json]
"""Score, number and genotype of a completed trial."""


class LocalSearch:
    """Hill climbing with restarts; see `nord_hpc.interfaces.Strategy` for the contract.

    White et al., "Exploring the Loss Landscape in Neural Architecture Search", 2021, arXiv 2005.02960.

    A climb begins at a sample and proposes the neighbours of the point where it stands, in random order, each once in a
    climb. With `first` improvement it goes on from a neighbour as soon as that is better; with `steepest`, from the
    best of all when all are known. Where none is better the climb is over, and another begins.

    No ask waits: while the first results of a climb, or the last ones of a neighbourhood, are awaited, samples are
    proposed. The best of these is where the next climb begins; one at a time, there are none. Results that come late
    count wherever the climb stands by then; so do those of trials that the strategy did not propose. Failed and
    infeasible ones are never better.
    """

    class Options(BaseModel):
        """How a climb goes on.

        Attributes:
            improvement: `first` takes a better neighbour at once, `steepest` the best of all.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        improvement: Literal["first", "steepest"] = "first"

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: the space does not list the neighbours of a point.
        """
        if not hasattr(space, "neighbours"):
            raise ValueError(
                f"strategy local_search needs a space that lists the neighbours of a point, and {type(space).__name__} "
                "has no neighbours(); set another strategy.name or space.name"
            )
        self._steepest = options.improvement == "steepest"
        self._space: Any = space
        self._rng = np.random.Generator(np.random.PCG64(seed))
        # Where the climb stands, what is better for all that is known, and where the next one begins.
        self._here: Place | None = None
        self._better: Place | None = None
        self._next_start: Place | None = None
        self._proposed = Seen(MOST_REMEMBERED)
        # The neighbours of `here`, shuffled by a seed that stands for them in the state, and how many were taken.
        self._order_seed = 0
        self._n_taken = 0
        self._neighbours: list[Json] | None = None
        # Trial number to whether it is a neighbour; else it is a sample.
        self._pending: dict[int, bool] = {}

    def ask(self, number: int) -> Proposal:
        if number in self._pending:  # it was dropped, and will never be told
            del self._pending[number]
            self._go_on()
        neighbour = self._next_neighbour()
        if neighbour is not None:
            assert self._here is not None
            self._n_taken += 1
            self._proposed.add(neighbour)
            self._pending[number] = True
            return Proposal(neighbour, parents=(self._here[1],))
        self._pending[number] = False
        return Proposal(self._space.sample(self._rng))

    def tell(self, finished: FinishedTrial) -> None:
        trial, score = finished.trial, finished.score
        is_sample = self._pending.pop(trial.number, True) is False
        if score is not None and math.isfinite(score):
            self._learn((score, trial.number, trial.genotype), is_sample=is_sample)
        self._go_on()

    def independent_asks(self) -> int:
        # The first result may move the climb.
        return 0

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "here": self._here and list(self._here),
            "better": self._better and list(self._better),
            "next_start": self._next_start and list(self._next_start),
            "proposed": self._proposed.state_dict(),
            "order_seed": self._order_seed,
            "taken": self._n_taken,
            "pending": [[number, is_neighbour] for number, is_neighbour in sorted(self._pending.items())],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._here, self._better, self._next_start = (
            None if state[name] is None else tuple(state[name]) for name in ("here", "better", "next_start")
        )
        self._proposed.load_state_dict(state["proposed"])
        self._order_seed, self._n_taken = state["order_seed"], state["taken"]
        self._neighbours = None
        self._pending = {number: is_neighbour for number, is_neighbour in state["pending"]}

    def _learn(self, place: Place, *, is_sample: bool) -> None:
        """A point with a score: this climb begins there or goes on from it, or the next one begins there."""
        if self._here is None:
            self._stand(place)
        elif is_sample:
            if self._next_start is None or _is_above(place, self._next_start):
                self._next_start = place
        elif _is_above(place, self._better or self._here):
            self._better = place
            if not self._steepest:
                self._stand(place)

    def _go_on(self) -> None:
        """Where all neighbours are known: to the best of them if it is better, else to the start of the next climb."""
        # A climb is over only when its last neighbour is told, so that none comes late.
        if self._here is None or any(self._pending.values()) or self._next_neighbour() is not None:
            return
        if self._better is not None:
            self._stand(self._better)
            return
        self._here, start, self._next_start = None, self._next_start, None
        self._proposed = Seen(MOST_REMEMBERED)
        if start is not None:
            self._stand(start)

    def _stand(self, place: Place) -> None:
        """The climb is at `place`; its neighbours come next, in an order of their own."""
        self._here, self._better = place, None
        self._proposed.add(place[2])
        self._order_seed, self._n_taken = int(self._rng.integers(ORDER_SEEDS)), 0
        self._neighbours = None

    def _next_neighbour(self) -> Json | None:
        """The next neighbour that was not proposed in this climb; None where there is none, or no climb."""
        if self._here is None:
            return None
        if self._neighbours is None:
            every = list(self._space.neighbours(self._here[2]))
            order = np.random.Generator(np.random.PCG64(self._order_seed)).permutation(len(every))
            self._neighbours = [every[index] for index in order.tolist()]
        while self._n_taken < len(self._neighbours):
            neighbour = self._neighbours[self._n_taken]
            if neighbour not in self._proposed:
                return neighbour
            self._n_taken += 1
        return None


def _is_above(place: Place, other: Place) -> bool:
    """Whether a score is better; for an equal one no move is made, so that no climb goes round in circles."""
    return place[0] > other[0]

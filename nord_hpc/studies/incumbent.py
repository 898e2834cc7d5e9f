"""The best candidate so far of one search, along trials and time, and the result of the search as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from nord_hpc.job import Job
from nord_hpc.trial import Json, Outcome, Trial, TrialState


@dataclass(frozen=True, slots=True)
class RunResult:
    """One search.

    Attributes:
        n_trials: committed ones, without those that were infeasible.
        fitness: of the best trial of full fidelity; None if none completed.
        test: metrics of the best on the test part.
        trials, seconds, rank_seconds, values: the incumbent's curve: after so many trials, at that time, when all ranks
            together had evaluated for so long, the best fitness was that. Times are virtual where results are looked
            up, else measured.
        wall_seconds: that the search took here.
    """

    n_trials: int
    fitness: float | None
    test: Mapping[str, Json]
    trials: list[int]
    seconds: list[float]
    rank_seconds: list[float]
    values: list[float]
    history_sha256: str
    wall_seconds: float

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "test": dict(self.test)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> RunResult:
        return cls(**data)


@dataclass
class Incumbent:
    """Follows a search commit by commit."""

    job: Job
    best: Trial | None = None
    fitness: float | None = None
    n_trials: int = 0
    _seconds: float = 0.0
    _rank_seconds: float = 0.0
    _curve: list[tuple[int, float, float, float]] = field(default_factory=list)

    def add(self, trial: Trial, outcome: Outcome, *, seconds: float, rank_seconds: float) -> None:
        """Take in a committed trial. Ties stay with the earlier one.

        Args:
            seconds: since the search began, at the end of this trial.
            rank_seconds: that this trial cost.
        """
        self.n_trials += outcome.state is not TrialState.INFEASIBLE
        self._seconds = max(self._seconds, seconds)  # commits may come in another order than ends
        self._rank_seconds += rank_seconds
        if outcome.fitness is None or trial.fidelity != self.job.full_fidelity:
            return
        sign = 1.0 if self.job.objective.direction == "maximize" else -1.0
        if self.fitness is None or sign * outcome.fitness > sign * self.fitness:
            self.best, self.fitness = trial, outcome.fitness
            self._curve.append((self.n_trials, self._seconds, self._rank_seconds, outcome.fitness))

    def result(self, *, history_sha256: str, wall_seconds: float, test: Mapping[str, Json]) -> RunResult:
        columns = [list(column) for column in zip(*self._curve, strict=True)] or [[], [], [], []]
        return RunResult(
            n_trials=self.n_trials,
            fitness=self.fitness,
            test=test,
            trials=[int(n) for n in columns[0]],
            seconds=columns[1],
            rank_seconds=columns[2],
            values=columns[3],
            history_sha256=history_sha256,
            wall_seconds=wall_seconds,
        )

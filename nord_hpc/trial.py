"""A trial: one candidate with its fidelity, seed, state and fitness; and what becomes of it."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
"""A value that survives a round trip through JSON: a dict with str keys, list, str, int, float, bool or None."""


class TrialState(str, enum.Enum):
    """Where a trial stands. The last three are final."""

    RUNNING = "running"
    COMPLETED = "completed"
    INFEASIBLE = "infeasible"
    FAILED = "failed"


class FailureKind(str, enum.Enum):
    """Why a trial failed. The first three are properties of the candidate and are not tried again."""

    EXCEPTION = "exception"
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    LOST = "lost"


NOT_REPEATABLE = frozenset({FailureKind.OUT_OF_MEMORY, FailureKind.TIME_LIMIT, FailureKind.LOST})
"""Failures that depend on wall time or the machine: journaled and replayed, but outside the promise of one history."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of a full evaluation a trial gets.

    Attributes:
        epochs: passes over the training data, 0 or more (0: the untrained network is scored).
        fraction: share of the training data, above 0 and at most 1.
    """

    epochs: int
    fraction: float = 1.0

    def to_json(self) -> Json:
        return {"epochs": self.epochs, "fraction": self.fraction}


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a strategy asks to be evaluated.

    Attributes:
        genotype: a point of the search space, as JSON.
        parents: numbers of the trials that it came from.
        fidelity: None for the full fidelity of the job.
        continues: number of a trial of the same genotype and lower fidelity whose trained state this one goes on from;
            the strategy's class has an attribute `continues_trials` that is true.
    """

    genotype: Json
    parents: tuple[int, ...] = ()
    fidelity: Fidelity | None = None
    continues: int | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """What is known of a candidate before it is trained, from integer arithmetic alone.

    Attributes:
        cost: predicted cost in microseconds of virtual time, at least 1.
        n_parameters: trainable parameters.
        multiply_adds: per sample, forward.
        memory_bytes: estimated peak of one rank.
    """

    cost: int
    n_parameters: int = 0
    multiply_adds: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate, as proposed; it never changes.

    Attributes:
        number: from 0, in the order of proposals.
        genotype: the point of the search space.
        descriptor: the network, as the JSON form of a `NeuralDescriptor`.
        descriptor_hash: its canonical hash.
        seed: of everything random in its evaluation.
        shards: logical parts of each batch; the fitness depends on them.
        gang: the most ranks that may train it; the fitness does not depend on it.
        cost: predicted, in microseconds of virtual time.
        infeasible: the reason, where the candidate cannot be built or trained.
        settings: fields of the job that this candidate sets, by dotted name; shards and gang contain them already.
        continues: number of the trial whose trained state this one goes on from; it has that trial's seed.
        keeps_state: its trained state is kept, so that another may go on from it.
        reuses: number of an equal trial whose outcome this one takes over, without being evaluated.
        imported: where its outcome comes from, for trials that another run evaluated.
    """

    number: int
    genotype: Json
    parents: tuple[int, ...]
    descriptor: Json
    descriptor_hash: str
    fidelity: Fidelity
    seed: int
    shards: int = 1
    gang: int = 1
    cost: int = 1
    n_parameters: int = 0
    multiply_adds: int = 0
    memory_bytes: int = 0
    virtual_start: int = 0
    virtual_finish: int = 0
    infeasible: str | None = None
    settings: Mapping[str, Json] = field(default_factory=dict)
    continues: int | None = None
    keeps_state: bool = False
    reuses: int | None = None
    imported: str | None = None

    @property
    def runs(self) -> bool:
        """Whether ranks must evaluate it: its outcome is not known from its proposal on."""
        return self.infeasible is None and self.reuses is None and self.imported is None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial: the final state, and the fitness if and only if it completed.

    Attributes:
        fitness: the job's objective on the validation part; finite. None unless completed.
        metrics: everything measured, by name, JSON values.
        seconds: wall time of the evaluation, without waiting for it.
        failure: the kind, for failed trials.
        reason: one line, for failed and infeasible trials.
        traceback: of the rank that failed first, where there was one.
        rank, host: where that was, or the gang's first.
        provenance: backend, gang size and the like.
    """

    state: TrialState
    fitness: float | None = None
    metrics: Mapping[str, Json] = field(default_factory=dict)
    seconds: float = 0.0
    failure: FailureKind | None = None
    reason: str | None = None
    traceback: str | None = None
    rank: int | None = None
    host: str | None = None
    provenance: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        completed = self.state is TrialState.COMPLETED
        if completed != (self.fitness is not None and math.isfinite(self.fitness)):
            raise ValueError(
                f"an outcome has a finite fitness exactly when completed, not {self.state}, {self.fitness}"
            )


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial with its outcome, as it is told to a strategy.

    Attributes:
        score: the fitness, negated where the job minimizes: larger is better. None unless completed.
    """

    trial: Trial
    outcome: Outcome
    score: float | None


def gang_size(*, wanted: int, shards: int, n_workers: int) -> int:
    """Ranks for a trial: the largest divisor of its shards that is neither above what it wants nor what exists."""
    return max(n for n in range(1, min(wanted, n_workers, shards) + 1) if shards % n == 0)


def history_line(trial: Trial, outcome: Outcome) -> str:
    """The line of one trial in the history digest: number, parents, descriptor hash, fidelity, seed, state, fitness.

    Behind them what only some trials have: settings, the trial that is continued, the one that is reused.
    """
    fields: list[Json] = [
        trial.number,
        list(trial.parents),
        trial.descriptor_hash,
        trial.fidelity.to_json(),
        trial.seed,
        outcome.state.value,
        outcome.fitness,
    ]
    if trial.settings or trial.continues is not None or trial.reuses is not None:
        rare = {"settings": dict(trial.settings) or None, "continues": trial.continues, "reuses": trial.reuses}
        fields.append({name: value for name, value in rare.items() if value is not None})
    return json.dumps(fields, separators=(",", ":"), sort_keys=True) + "\n"


class HistoryDigest:
    """SHA-256 over the history lines of the trials in commit order; equal digests mean equal histories."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._sha256 = hashlib.sha256()
        for line in lines:
            self._sha256.update(line.encode())

    def add(self, trial: Trial, outcome: Outcome) -> None:
        self._sha256.update(history_line(trial, outcome).encode())

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

"""The records of a journal and the history that they tell: which trials there are, what became of them, in which order.

Written by the coordinator; read by a resume and by everything that lists, reports or checks a run. Record kinds:

- run: a life of the search begins (job, ranks, machine)
- proposed: a strategy asked for a trial; `after` is the number of trials committed before
- started: an attempt of a trial is about to leave for its ranks
- finished: an attempt ended with an outcome
- committed: the strategy has been told of these trials, in this order
- lost: a rank died; the attempt that ran on it counts against its trial
- progress: the master lives, and what it has cost so far
- test: the metrics of the best trial on the test part
- ended: this life of the search ends; finished, interrupted or error
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from nord_hpc.store import collector
from nord_hpc.trial import (
    NOT_REPEATABLE,
    FailureKind,
    Fidelity,
    HistoryDigest,
    Json,
    Outcome,
    Trial,
    TrialState,
)


def trial_to_json(trial: Trial) -> dict[str, Json]:
    return {
        "number": trial.number,
        "genotype": trial.genotype,
        "parents": list(trial.parents),
        "descriptor": trial.descriptor,
        "descriptor_hash": trial.descriptor_hash,
        "fidelity": trial.fidelity.to_json(),
        "seed": trial.seed,
        "shards": trial.shards,
        "gang": trial.gang,
        "cost": trial.cost,
        "n_parameters": trial.n_parameters,
        "multiply_adds": trial.multiply_adds,
        "memory_bytes": trial.memory_bytes,
        "virtual_start": trial.virtual_start,
        "virtual_finish": trial.virtual_finish,
        "infeasible": trial.infeasible,
        **_rare_fields(trial),
    }


def _rare_fields(trial: Trial) -> dict[str, Json]:
    """What most trials do not have, and then does not stand in their record."""
    if trial.runs and not trial.settings and trial.continues is None and not trial.keeps_state:
        return {}
    fields: dict[str, Json] = {
        "settings": dict(trial.settings) or None,
        "continues": trial.continues,
        "keeps_state": trial.keeps_state or None,
        "reuses": trial.reuses,
        "imported": trial.imported,
    }
    return {name: value for name, value in fields.items() if value is not None}


def trial_from_json(data: dict[str, Json]) -> Trial:
    return Trial(**{**data, "parents": tuple(data["parents"]), "fidelity": Fidelity(**data["fidelity"])})


def outcome_to_json(outcome: Outcome) -> dict[str, Json]:
    data: dict[str, Json] = {"state": outcome.state.value, "fitness": outcome.fitness, "seconds": outcome.seconds}
    if outcome.metrics:
        data["metrics"] = dict(outcome.metrics)
    if outcome.provenance:
        data["provenance"] = dict(outcome.provenance)
    if outcome.failure is not None:
        data["failure"] = outcome.failure.value
    for key in ("reason", "traceback", "rank", "host"):
        value = getattr(outcome, key)
        if value is not None:
            data[key] = value
    return data


def outcome_from_json(data: dict[str, Json]) -> Outcome:
    failure = data.get("failure")
    return Outcome(
        state=TrialState(data["state"]),
        fitness=data.get("fitness"),
        metrics=data.get("metrics", {}),
        seconds=data.get("seconds", 0.0),
        failure=None if failure is None else FailureKind(failure),
        reason=data.get("reason"),
        traceback=data.get("traceback"),
        rank=data.get("rank"),
        host=data.get("host"),
        provenance=data.get("provenance", {}),
    )


def infeasible_outcome(trial: Trial) -> Outcome:
    """The outcome of a trial that was never started."""
    return Outcome(state=TrialState.INFEASIBLE, reason=trial.infeasible)


def reused_outcome(trial: Trial, outcome: Outcome) -> Outcome:
    """The outcome that a trial takes over from an equal one: the same, marked, at no time."""
    return replace(outcome, seconds=0.0, provenance={**outcome.provenance, "reused_from": trial.reuses})


@dataclass(slots=True)
class Attempt:
    """One start of a trial: when, on which ranks, in which life of the search; and its end, if it had one.

    Attributes:
        place: among all starts of the search, in their order.
        world: of the ranks; see `Life`.
        communicator: number of the gang's communicator, where it is kept.
        lost: its ranks were lost while they worked on it.
    """

    life: int
    world: int
    place: int
    number: int
    ranks: tuple[int, ...]
    started_at: float
    communicator: int | None = None
    finished_at: float | None = None
    lost: bool = False


@dataclass(slots=True)
class Entry:
    """All that the journal says of one trial. `commit` is its place in commit order, from 0."""

    trial: Trial
    after: int
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome | None = None
    commit: int | None = None

    @property
    def state(self) -> str:
        """A `TrialState` value, or "waiting" for a proposed trial that no rank works on."""
        if self.outcome is not None:
            return self.outcome.state.value
        if self.attempts and self.attempts[-1].finished_at is None and not self.attempts[-1].lost:
            return TrialState.RUNNING.value
        return "waiting"

    @property
    def n_lost(self) -> int:
        return sum(attempt.lost for attempt in self.attempts)


@dataclass(slots=True)
class Life:
    """One uninterrupted run of a master.

    Attributes:
        world: number of the ranks that a launcher started together; masters that take over go on with those that are
            left of it.
        deaths: ranks that were lost in this life.
        commit: of the source that it ran.
    """

    began_at: float
    world: int
    ranks: int
    host: str
    machine: dict[str, Json]
    job: dict[str, Json]
    code: dict[str, str]
    evaluated_on: str
    last_at: float
    ended: str | None = None
    reason: str | None = None
    master_seconds: float = 0.0
    fsyncs: int = 0
    stall_seconds: float = 0.0
    stalled_most_by: int | None = None
    deaths: int = 0
    commit: str | None = None


class History:
    """What a journal tells, built record by record.

    Attributes:
        entries: by trial number.
        commit_order: trial numbers, as told to the strategy.
        lives: one for each start of the master.
        test: {"number": trial, "metrics": {...}} once the test part was scored.
    """

    def __init__(self, records: Iterable[Json] = ()) -> None:
        self.entries: dict[int, Entry] = {}
        self.commit_order: list[int] = []
        self.lives: list[Life] = []
        self.test: dict[str, Json] | None = None
        self._n_started = 0
        with collector.paused():
            for record in records:
                self.add(record)

    def add(self, record: Json) -> None:
        getattr(self, f"_add_{record['kind']}")(record)
        if self.lives and "at" in record:
            self.lives[-1].last_at = record["at"]

    @property
    def state(self) -> str:
        """running, finished, interrupted or error: as the newest life says."""
        return (self.lives[-1].ended or "running") if self.lives else "running"

    @property
    def history_sha256(self) -> str:
        digest = HistoryDigest()
        for number in self.commit_order:
            entry = self.entries[number]
            assert entry.outcome is not None
            digest.add(entry.trial, entry.outcome)
        return digest.hexdigest()

    @property
    def machines(self) -> list[dict[str, Json]]:
        """The different numeric environments that finished a trial; more than one makes the digest mixed."""
        used = {attempt.life for entry in self.entries.values() for attempt in entry.attempts if attempt.finished_at}
        different: list[dict[str, Json]] = []
        for index in sorted(used):
            if self.lives[index].machine not in different:
                different.append(self.lives[index].machine)
        return different

    @property
    def not_repeatable(self) -> list[int]:
        """Numbers of the trials whose outcome depended on wall time or on the machine."""
        return [n for n, e in self.entries.items() if e.outcome is not None and e.outcome.failure in NOT_REPEATABLE]

    def best(self, *, maximize: bool, fidelity: Fidelity | None = None) -> Entry | None:
        """The committed trial of best fitness (of that fidelity, if given); ties go to the lowest number."""
        sign = 1.0 if maximize else -1.0
        best: tuple[float, int] | None = None
        for number in self.commit_order:
            entry = self.entries[number]
            assert entry.outcome is not None
            if entry.outcome.fitness is None or (fidelity is not None and entry.trial.fidelity != fidelity):
                continue
            key = (sign * entry.outcome.fitness, -number)
            if best is None or key > best:
                best = key
        return None if best is None else self.entries[-best[1]]

    def _add_run(self, record: dict[str, Any]) -> None:
        at = record["at"]
        known = {key: record[key] for key in ("ranks", "host", "machine", "job", "code", "evaluated_on")}
        takes_over = bool(self.lives) and record.get("takeover", False)
        world = self.lives[-1].world + (not takes_over) if self.lives else 0
        self.lives.append(Life(began_at=at, last_at=at, world=world, commit=record.get("commit"), **known))

    def _add_proposed(self, record: dict[str, Any]) -> None:
        trial = trial_from_json(record["trial"])
        entry = Entry(trial=trial, after=record["after"])
        if trial.infeasible is not None:
            entry.outcome = infeasible_outcome(trial)
        elif "outcome" in record:
            entry.outcome = outcome_from_json(record["outcome"])
        self.entries[trial.number] = entry

    def _add_started(self, record: dict[str, Any]) -> None:
        attempts = self.entries[record["number"]].attempts
        life = len(self.lives) - 1
        attempts.append(
            Attempt(
                life=life,
                world=self.lives[life].world,
                place=self._n_started,
                number=record["attempt"],
                ranks=tuple(record["ranks"]),
                started_at=record["at"],
                communicator=record.get("communicator"),
            )
        )
        self._n_started += 1

    def _add_finished(self, record: dict[str, Any]) -> None:
        entry = self.entries[record["number"]]
        entry.outcome = outcome_from_json(record["outcome"])
        for attempt in entry.attempts:
            if attempt.number == record["attempt"]:
                attempt.finished_at = record["at"]

    def _add_committed(self, record: dict[str, Any]) -> None:
        for number in record["numbers"]:
            entry = self.entries[number]
            if entry.trial.reuses is not None:
                twin = self.entries[entry.trial.reuses].outcome
                assert twin is not None
                entry.outcome = reused_outcome(entry.trial, twin)
            entry.commit = len(self.commit_order)
            self.commit_order.append(number)

    def _add_lost(self, record: dict[str, Any]) -> None:
        """A rank died: of what it had, the attempt that began first was running, and is charged."""
        world = self.lives[-1].world
        self.lives[-1].deaths += 1
        open_attempts = [
            entry.attempts[-1] for entry in self.entries.values() if entry.outcome is None and entry.attempts
        ]
        had = [a for a in open_attempts if a.world == world and record["rank"] in a.ranks and not a.lost]
        if had:
            min(had, key=lambda attempt: attempt.place).lost = True

    def _add_test(self, record: dict[str, Any]) -> None:
        self.test = {"number": record["number"], "metrics": record["metrics"]}

    def _add_ended(self, record: dict[str, Any]) -> None:
        life = self.lives[-1]
        life.ended, life.reason = record["state"], record.get("reason")

    def _add_progress(self, record: dict[str, Any]) -> None:
        life = self.lives[-1]
        life.master_seconds, life.fsyncs = record["master_seconds"], record["fsyncs"]
        life.stall_seconds, life.stalled_most_by = record["stall_seconds"], record["stalled_most_by"]

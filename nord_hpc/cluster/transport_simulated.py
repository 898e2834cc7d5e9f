"""The simulated transport: virtual workers on a virtual clock, with seeded delays and faults, and a journal in memory.

The coordinator and the master's loop run on it unchanged, thousands of trials a second.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nord_hpc.cluster.coordinator import RankLost
from nord_hpc.cluster.messages import Hello, Report, Stop, Task, TestReport, TestTask
from nord_hpc.store import journal
from nord_hpc.trial import FailureKind, Json, Outcome, Trial, TrialState


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each per attempt unless said otherwise.

    Attributes:
        rank_lost: one member dies in the middle; its partners find the gang broken.
        gang_broken: the gang breaks, and all its members come back without a result.
        hang: the members never answer.
        crash: the master dies, at each sync of the journal.
        slowdown_sigma: of the logarithm of true over predicted time.
    """

    rank_lost: float = 0.0
    gang_broken: float = 0.0
    hang: float = 0.0
    crash: float = 0.0
    slowdown_sigma: float = 0.3


class SimulatedCrash(Exception):
    """The master died."""


class SimulatedJournal:
    """A journal in memory that loses at a crash what was not synced, except for a random number of bytes."""

    def __init__(self, durable: bytes = b"", *, rng: random.Random | None = None, crash: float = 0.0) -> None:
        self.durable = durable
        self.n_syncs = 0
        self._pending = b""
        self._rng = rng or random.Random(0)
        self._crash = crash

    @property
    def records(self) -> list[Json]:
        return [record for record, _ in journal.parse(self.durable)]

    def append(self, record: Mapping[str, Json]) -> None:
        self._pending += journal.frame(record)

    def sync(self) -> None:
        if not self._pending:
            return
        if self._rng.random() < self._crash:
            self.durable += self._pending[: self._rng.randrange(len(self._pending) + 1)]
            raise SimulatedCrash
        self.durable += self._pending
        self._pending = b""
        self.n_syncs += 1

    def whole(self) -> bytes:
        """The durable bytes without a torn tail: what a recovery finds."""
        end = 0
        for _, end in journal.parse(self.durable):  # noqa: B007
            pass
        return self.durable[:end]


class SimulatedTransport:
    """Virtual workers. See `nord_hpc.interfaces.Transport`.

    Attributes:
        alive: ranks that have not died or hung.
        stopped: ranks that were told to stop.
        started: numbers of the trials whose evaluation began, in order, once for each attempt.
    """

    def __init__(
        self,
        n_workers: int,
        *,
        rng: random.Random,
        faults: Faults,
        outcome: Callable[[Trial], Outcome],
        began_at: float = 0.0,
    ) -> None:
        """
        Args:
            outcome: what becomes of a trial whose evaluation is not disturbed; a function of the trial alone.
            began_at: the time on the virtual clock, in seconds.
        """
        self.started: list[int] = []
        self.stopped: set[int] = set()
        self._rng = rng
        self._faults = faults
        self._outcome = outcome
        self._now = began_at
        self._ranks = tuple(range(1, n_workers + 1))
        self.alive = set(self._ranks)
        self._gathering: dict[tuple[int, int], set[int]] = {}
        self._busy: dict[int, dict[int, Task]] = {}
        self._free_at: dict[int, float] = {}
        self._dies_at: dict[int, float] = {}
        self._events: list[tuple[float, int, int, Any]] = []
        self._count = 0
        for rank in self._ranks:
            self._at(began_at + rng.random(), rank, Hello(rank, f"host{rank % 4}", {}))

    def worker_ranks(self) -> tuple[int, ...]:
        return self._ranks

    def now(self) -> float:
        return self._now

    def send(self, rank: int, message: Any) -> None:
        if rank not in self.alive:
            return
        match message:
            case Task():
                self._gather(rank, message)
            case TestTask():
                number = message.trial.number
                self._at(self._now + 1.0, rank, TestReport(message.epoch, rank, number, {"accuracy": 0.5}))
            case Stop():
                self.stopped.add(rank)
                for task in self._busy.get(rank, {}).values():
                    stopped = Report(task.epoch, rank, task.trial.number, task.attempt, None, stopped=True)
                    self._at(self._now + self._rng.random(), rank, stopped)

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        if not self._events or self._events[0][0] > self._now + timeout_seconds:
            self._now += timeout_seconds
            return
        self._now = max(self._now, self._events[0][0])
        while self._events and self._events[0][0] <= self._now:
            _, _, rank, message = heapq.heappop(self._events)
            if isinstance(message, Report):
                self._busy.get(rank, {}).pop(message.number, None)
            if isinstance(message, RankLost):
                self.alive.discard(rank)
                yield rank, message
            elif rank in self.alive:
                yield rank, message

    def _gather(self, rank: int, task: Task) -> None:
        """A gang begins when its last member has the task."""
        key = (task.trial.number, task.attempt)
        present = self._gathering.setdefault(key, set())
        present.add(rank)
        self._busy.setdefault(rank, {})[task.trial.number] = task
        if present == set(task.ranks):
            del self._gathering[key]
            self._begin(task)

    def _begin(self, task: Task) -> None:
        """Decide what will become of a task; it begins when its ranks are done with those that they have before it."""
        begins = max(self._now, *(self._free_at.get(rank, 0.0) for rank in task.ranks))
        if any(begins >= self._dies_at.get(rank, math.inf) for rank in task.ranks):
            return
        self.started.append(task.trial.number)
        predicted = task.trial.cost / 1e6 / len(task.ranks)
        ends = begins + predicted * math.exp(self._rng.gauss(0.0, self._faults.slowdown_sigma))
        for rank in task.ranks:
            self._free_at[rank] = ends
        draw = self._rng.random()
        for fault, probability in self._fault_table():
            if draw < probability:
                fault(task, begins, ends)
                return
            draw -= probability
        self._succeed(task, ends)

    def _fault_table(self) -> list[tuple[Callable[[Task, float, float], None], float]]:
        faults = self._faults
        return [(self._die, faults.rank_lost), (self._break, faults.gang_broken), (self._hang, faults.hang)]

    def _succeed(self, task: Task, ends: float) -> None:
        outcome = self._outcome(task.trial)
        for index, rank in enumerate(task.ranks):
            report = Report(task.epoch, rank, task.trial.number, task.attempt, outcome if index == 0 else None)
            self._at(ends + self._rng.random() * 0.01, rank, report)

    def _die(self, task: Task, begins: float, ends: float) -> None:
        victim = self._rng.choice(task.ranks)
        at = self._rng.uniform(begins, ends)
        self._dies_at[victim] = at
        self._at(at, victim, RankLost(victim, f"rank {victim} died"))
        self._broken(task, at, [rank for rank in task.ranks if rank != victim])

    def _break(self, task: Task, begins: float, ends: float) -> None:
        self._broken(task, ends, list(task.ranks))

    def _hang(self, task: Task, begins: float, ends: float) -> None:
        for rank in task.ranks:
            self._dies_at[rank] = begins

    def _broken(self, task: Task, at: float, ranks: list[int]) -> None:
        for rank in ranks:
            report = Report(task.epoch, rank, task.trial.number, task.attempt, None, broken="the gang broke")
            self._at(at + self._rng.random(), rank, report)

    def _at(self, at: float, rank: int, message: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, rank, message))


def failed(reason: str) -> Outcome:
    """The outcome of a candidate that raises."""
    return Outcome(state=TrialState.FAILED, failure=FailureKind.EXCEPTION, reason=reason)

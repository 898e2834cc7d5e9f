"""The simulated transport: virtual workers on a virtual clock, with seeded delays and faults, and a journal in memory.

The coordinator and the master's loop run on it unchanged, thousands of trials a second.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nord_hpc.cluster.events import RankLost
from nord_hpc.cluster.messages import Hello, Report, Stop, Task, TestReport, TestTask
from nord_hpc.store import journal
from nord_hpc.trial import FailureKind, Json, Outcome, Trial, TrialState

NOTICE_SECONDS = 1.0
"""Until partners or the master find out that a rank is gone, at most."""

LATE_SECONDS = 20.0
HOSTS = 4


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each per attempt unless said otherwise.

    Attributes:
        rank_lost: one member dies in the middle; its partners find the gang broken.
        gang_lost: all members die at once.
        gang_broken: the gang breaks, and all its members come back without a result.
        hang: the members answer long after their limit, or never.
        mortal: a rank dies at some time of its own, whatever it does then; per rank.
        idle_death_seconds: within which such ranks die.
        late: a message is delayed by up to 20 seconds, so that those of other ranks overtake it; per message.
        resent: a report arrives twice; per report.
        crash: the master dies; at each sync of the journal, in the middle of its bytes, and a tenth of that at each
            message, so that a gang may have its task in part.
        slowdown_sigma: of the logarithm of true over predicted time.
    """

    rank_lost: float = 0.0
    gang_lost: float = 0.0
    gang_broken: float = 0.0
    hang: float = 0.0
    mortal: float = 0.0
    idle_death_seconds: float = 600.0
    late: float = 0.0
    resent: float = 0.0
    crash: float = 0.0
    slowdown_sigma: float = 0.3


class SimulatedCrash(Exception):
    """The master died."""


class SimulatedJournal:
    """A journal in memory that loses at a crash what was not synced, except for a random number of bytes.

    Attributes:
        n_syncs: number of syncs so far.
        crash: probability that the master dies at a sync.
    """

    def __init__(self, durable: bytes = b"", *, rng: random.Random | None = None, crash: float = 0.0) -> None:
        self.n_syncs = 0
        self.crash = crash
        self._durable = bytearray(durable)
        self._pending = bytearray()
        self._rng = rng or random.Random(0)

    @property
    def durable(self) -> bytes:
        return bytes(self._durable)

    @property
    def records(self) -> list[Json]:
        return [record for record, _ in journal.parse(self.durable)]

    def append(self, record: Mapping[str, Json]) -> None:
        self._pending += journal.frame(record)

    def sync(self) -> None:
        if not self._pending:
            return
        if self.crash and self._rng.random() < self.crash:
            # Cut anywhere, and more often than by chance behind the last byte: durable, but nobody was told.
            cut = self._rng.randrange(len(self._pending) + 1) if self._rng.random() < 0.8 else len(self._pending)
            self._durable += self._pending[:cut]
            raise SimulatedCrash
        self._durable += self._pending
        self._pending.clear()
        self.n_syncs += 1

    def whole(self) -> bytes:
        """The durable bytes without a torn tail: what a recovery finds."""
        end = 0
        durable = self.durable
        for _, end in journal.parse(durable):  # noqa: B007
            pass
        return durable[:end]


@dataclass(slots=True, eq=False)
class Evaluation:
    """A task in the hands of its gang. Times are in seconds of the virtual clock.

    Attributes:
        present: members that have the task; it begins when all have.
        begins, ends: infinite until it begins; `ends` is earlier than planned where it was broken.
        hangs: no member comes back from it.
    """

    task: Task
    present: set[int] = field(default_factory=set)
    begins: float = math.inf
    ends: float = math.inf
    hangs: bool = False
    broken: bool = False


class _Death(NamedTuple):
    """Event: a rank dies."""

    rank: int


class _Departure(NamedTuple):
    """Event: a rank sends a message, if it is alive and its evaluation has not been broken before."""

    rank: int
    message: Any
    evaluation: Evaluation | None = None


class _Return(NamedTuple):
    """Event: a rank says hello to a master that took over."""

    rank: int


class _Arrival(NamedTuple):
    """Event: a message reaches the master."""

    rank: int
    message: Any


_Event = _Death | _Departure | _Return | _Arrival


class SimulatedTransport:
    """Virtual workers. See `nord_hpc.interfaces.Transport`.

    Attributes:
        alive: ranks that have not died, those that hang included.
        stopped: ranks that were told to stop.
        started: numbers of the trials whose evaluation began, in order, once for each attempt.
        evaluations: all that began, in order.
        serves: the ranks know the run, so that they can go on with it when their master dies.
    """

    def __init__(
        self,
        n_workers: int,
        *,
        rng: random.Random,
        faults: Faults,
        outcome: Callable[[Trial], Outcome],
        began_at: float = 0.0,
        nap_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            outcome: what becomes of a trial whose evaluation is not disturbed; a function of the trial alone.
            began_at: the time on the virtual clock, in seconds.
            nap_seconds: how long a wait for messages lasts where nothing arrives, if longer than asked for: the clock
                then moves in fewer steps.
        """
        self.started: list[int] = []
        self.evaluations: list[Evaluation] = []
        self.stopped: set[int] = set()
        self.serves = False
        self._rng = rng
        self._faults = faults
        self._outcome = outcome
        self._now = began_at
        self._nap_seconds = nap_seconds
        self._ranks = tuple(range(1, n_workers + 1))
        self.alive = set(self._ranks)
        self._has: dict[int, list[Evaluation]] = {rank: [] for rank in self._ranks}
        self._reported: dict[int, list[Report]] = {rank: [] for rank in self._ranks}
        self._last_arrival: dict[int, float] = {}
        self._gathering: dict[tuple[int, int], Evaluation] = {}
        self._events: list[tuple[float, int, _Event]] = []
        self._count = 0
        for rank in self._ranks:
            self._push(began_at + rng.random(), _Departure(rank, Hello(rank, _host(rank), {})))
            if rng.random() < faults.mortal:
                self._push(began_at + rng.uniform(0.0, faults.idle_death_seconds), _Death(rank))

    def worker_ranks(self) -> tuple[int, ...]:
        return self._ranks

    def now(self) -> float:
        return self._now

    def send(self, rank: int, message: Any) -> None:
        if self._faults.crash and self._rng.random() < self._faults.crash / 10:
            raise SimulatedCrash
        match message:
            case Task():
                self._hand_over(rank, message)
            case TestTask() if rank in self.alive:
                number = message.trial.number
                report = TestReport(message.epoch, rank, number, {"accuracy": 0.5})
                self._push(self._now + 1.0, _Departure(rank, report))
                if self._rng.random() < self._faults.rank_lost:
                    self._push(self._now + self._rng.random(), _Death(rank))
            case Stop() if rank in self.alive:
                self._stop(rank)

    def expel(self, rank: int) -> None:
        """Half of the ranks are out of reach, as those of other hosts are: they may go on unheard."""
        if rank in self.alive and self._rng.random() < 0.5:
            self._push(self._now, _Death(rank))

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        wait = max(timeout_seconds, self._nap_seconds)
        if not self._events or self._events[0][0] > self._now + wait:
            self._now += wait
            return
        self._now = max(self._now, self._events[0][0])
        while self._events and self._events[0][0] <= self._now:
            arrived = self._happen(*heapq.heappop(self._events))
            if arrived is not None:
                yield arrived

    def take_over(self) -> bool:
        """The master died, and an idle rank, else the lowest, is the next one; the others go on, and say so to it.

        Returns:
            Whether a rank was left to be the master and another to work.
        """
        self._now += self._rng.uniform(0.5, 3.0)
        while self._events and self._events[0][0] <= self._now:
            self._happen(*heapq.heappop(self._events))  # nobody hears of it
        self._events = [item for item in self._events if not self._is_for_the_master(item[2])]
        heapq.heapify(self._events)
        self.alive -= self.stopped  # these have left
        if len(self.alive) < 2:
            return False
        idle = [rank for rank in sorted(self.alive) if not self._has[rank]]
        master = idle[0] if idle else min(self.alive)
        self.alive.discard(master)
        for evaluation in self._at_work(master):
            self._break(evaluation, self._now)
        self._ranks = tuple(sorted(self.alive))
        self.stopped.clear()
        for rank in self._ranks:
            self._last_arrival.pop(rank, None)
            self._push(self._returns_at(rank), _Return(rank))
        return True

    # Tasks

    def _hand_over(self, rank: int, task: Task) -> None:
        """A gang begins when its last member has the task."""
        key = (task.trial.number, task.attempt)
        evaluation = self._gathering.setdefault(key, Evaluation(task))
        if rank in evaluation.present:
            return
        evaluation.present.add(rank)
        if rank in self.alive:
            self._has[rank].append(evaluation)
        if evaluation.present == set(task.ranks):
            del self._gathering[key]
            self._begin(evaluation)

    def _begin(self, evaluation: Evaluation) -> None:
        """Decide what will become of a task; it begins when its ranks are done with those that they have before it."""
        task = evaluation.task
        if evaluation.broken:
            return
        if not self.alive.issuperset(task.ranks):
            self._break(evaluation, self._now)
            return
        before = [other.ends for rank in task.ranks for other in self._has[rank] if other is not evaluation]
        begins = max(self._now, *before) if before else self._now
        if not math.isfinite(begins):
            return
        self.started.append(task.trial.number)
        self.evaluations.append(evaluation)
        predicted = task.trial.cost / 1e6 / len(task.ranks)
        ends = begins + predicted * math.exp(self._rng.gauss(0.0, self._faults.slowdown_sigma))
        evaluation.begins, evaluation.ends = begins, ends
        draw = self._rng.random()
        for fault, probability in self._fault_table():
            if draw < probability:
                fault(evaluation)
                return
            draw -= probability
        self._succeed(evaluation, ends)

    def _fault_table(self) -> list[tuple[Callable[[Evaluation], None], float]]:
        faults = self._faults
        return [
            (self._lose_rank, faults.rank_lost),
            (self._lose_gang, faults.gang_lost),
            (self._break_at_its_end, faults.gang_broken),
            (self._hang, faults.hang),
        ]

    def _succeed(self, evaluation: Evaluation, ends: float) -> None:
        task = evaluation.task
        outcome = self._outcome(task.trial)
        for index, rank in enumerate(task.ranks):
            report = Report(task.epoch, rank, task.trial.number, task.attempt, outcome if index == 0 else None)
            self._push(ends + self._rng.random() * 0.01, _Departure(rank, report, evaluation))

    def _lose_rank(self, evaluation: Evaluation) -> None:
        at = self._rng.uniform(evaluation.begins, evaluation.ends)
        self._push(at, _Death(self._rng.choice(evaluation.task.ranks)))
        self._succeed(evaluation, evaluation.ends)

    def _lose_gang(self, evaluation: Evaluation) -> None:
        at = self._rng.uniform(evaluation.begins, evaluation.ends)
        for rank in evaluation.task.ranks:
            self._push(at, _Death(rank))
        self._succeed(evaluation, evaluation.ends)

    def _break_at_its_end(self, evaluation: Evaluation) -> None:
        self._break(evaluation, evaluation.ends)

    def _hang(self, evaluation: Evaluation) -> None:
        """Stopped members go on in the end, when nobody expects them any more; or they do not."""
        late = evaluation.task.limit_seconds * self._rng.uniform(1.5, 3.0)
        if self._rng.random() < 0.5:
            evaluation.ends = evaluation.begins + late
            self._succeed(evaluation, evaluation.ends)
        else:
            evaluation.ends, evaluation.hangs = math.inf, True

    def _break(self, evaluation: Evaluation, at: float) -> None:
        """The members that are left come back without a result."""
        evaluation.broken, evaluation.ends = True, at
        task = evaluation.task
        for rank in task.ranks:
            if rank in self.alive and rank in evaluation.present:
                report = Report(task.epoch, rank, task.trial.number, task.attempt, None, broken="the gang broke")
                self._push(at + self._rng.random() * NOTICE_SECONDS, _Departure(rank, report))

    def _die(self, rank: int, at: float) -> None:
        if rank not in self.alive:
            return
        self.alive.discard(rank)
        reason = f"rank {rank} died"
        self._push(at + self._rng.random() * NOTICE_SECONDS, _Arrival(rank, RankLost(rank, reason)))
        for evaluation in self._at_work(rank, at):
            if not evaluation.broken and not evaluation.hangs:
                self._break(evaluation, at)

    def _stop(self, rank: int) -> None:
        self.stopped.add(rank)
        at_work = self._at_work(rank)
        if any(evaluation.hangs for evaluation in at_work):
            return
        for evaluation in at_work:
            task = evaluation.task
            if not evaluation.broken:  # partners that are not told find that this one has left
                self._break(evaluation, self._now)
            report = Report(task.epoch, rank, task.trial.number, task.attempt, None, stopped=True)
            self._push(self._now, _Departure(rank, report))

    def _at_work(self, rank: int, at: float | None = None) -> list[Evaluation]:
        """What a rank has that has not ended."""
        now = self._now if at is None else at
        return [evaluation for evaluation in self._has[rank] if evaluation.ends > now]

    # Events

    def _happen(self, at: float, _: int, event: _Event) -> tuple[int, Any] | None:
        """What reaches the master by this event, if anything does."""
        match event:
            case _Arrival():
                return event.rank, event.message
            case _Death():
                self._die(event.rank, at)
            case _Return():
                self._return(event.rank, at)
            case _Departure():
                evaluation = event.evaluation
                lost = evaluation is not None and evaluation.broken and evaluation.ends < at
                if event.rank in self.alive and not lost:
                    return self._depart(event.rank, event.message, at)
        return None

    def _depart(self, rank: int, message: Any, at: float) -> tuple[int, Any] | None:
        """Send a message, which arrives at once or late, but never before an earlier one of its rank."""
        arrives = max(at, self._last_arrival.get(rank, at))
        if self._faults.late and self._rng.random() < self._faults.late:
            arrives += self._rng.uniform(0.0, LATE_SECONDS)
        self._last_arrival[rank] = arrives
        if isinstance(message, Report):
            self._reported[rank].append(message)
            self._has[rank] = [e for e in self._has[rank] if not _is_about(message, e.task)]
            if self._faults.resent and self._rng.random() < self._faults.resent:
                self._push(arrives + self._rng.uniform(0.0, LATE_SECONDS), _Arrival(rank, message))
        if arrives <= self._now:
            return rank, message
        self._push(arrives, _Arrival(rank, message))
        return None

    def _return(self, rank: int, at: float) -> None:
        """All that was reported to the master before, again, and then what the rank still has."""
        if rank not in self.alive:
            return
        reports, self._reported[rank] = self._reported[rank], []
        busy = tuple((e.task.trial.number, e.task.attempt) for e in self._has[rank])
        for message in [*reports, Hello(rank, _host(rank), {}, busy)]:
            self._push(at, _Departure(rank, message))

    def _returns_at(self, rank: int) -> float:
        """When a rank hears of a new master: soon, or only after the evaluation that it is in, or never."""
        at_work = self._at_work(rank)
        if any(evaluation.hangs for evaluation in at_work):
            return math.inf
        begun = [evaluation.ends for evaluation in at_work if evaluation.begins <= self._now]
        soon = self._now + self._rng.random()
        return max([soon, *begun]) if self._rng.random() < 0.3 else soon

    @staticmethod
    def _is_for_the_master(event: _Event) -> bool:
        """What was under way to a master that died."""
        hello = isinstance(event, _Departure) and isinstance(event.message, Hello)
        return hello or isinstance(event, _Arrival | _Return)

    def _push(self, at: float, event: _Event) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, event))


def _is_about(report: Report, task: Task) -> bool:
    return (report.epoch, report.number, report.attempt) == (task.epoch, task.trial.number, task.attempt)


def _host(rank: int) -> str:
    return f"host{rank % HOSTS}"


def failed(reason: str, kind: FailureKind = FailureKind.EXCEPTION) -> Outcome:
    """The outcome of a candidate that raises."""
    return Outcome(state=TrialState.FAILED, failure=kind, reason=reason)

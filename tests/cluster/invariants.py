"""What must hold after every step of a search, whatever happens to it: a model of its own watches all that passes.

The watch sees the records, the messages in both directions and what the strategy is told, and knows nothing of how the
coordinator comes to them. A violation is an `AssertionError` that says what is wrong.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.events import Action, StopRequested
from nord_hpc.cluster.gangs import WAITING_SECONDS
from nord_hpc.cluster.messages import Hello, Report, Stop, Task, TestTask
from nord_hpc.cluster.transport_simulated import SimulatedJournal, SimulatedTransport
from nord_hpc.interfaces import Done, Wait
from nord_hpc.job import Job
from nord_hpc.store.history import History, outcome_to_json
from nord_hpc.trial import FailureKind, FinishedTrial, Json, Proposal, Trial, gang_size, history_line

MOST_SECONDS_WITHOUT_A_RECORD = 50_000.0
"""Of virtual time: twice the limit of a trial, for ranks that hang."""


@dataclass(frozen=True)
class World:
    """What a life of the search has: ranks, how many of them work at a time, and whether a master died before it."""

    ranks: tuple[int, ...]
    n_active: int
    takes_over: bool = False


class Watch:
    """The model of a search through all its lives.

    Attributes:
        history: of all that was recorded, durable or not.
        told: trial numbers that the strategy was told, for each life.
        lines: history lines in commit order.
    """

    def __init__(self, job: Job, *, outcome: Any, reference: list[str] | None = None) -> None:
        """
        Args:
            outcome: what becomes of an undisturbed trial; a function of it.
            reference: history lines of an undisturbed search that this one must follow; None in arrival order.
        """
        self.history = History()
        self.told: list[list[int]] = []
        self.lines: list[str] = []
        self._job = job
        self._outcome_of = outcome
        self._reference = reference
        self._virtual = job.order.mode == "virtual"
        self._dropped: set[int] = set()
        self._acknowledged: dict[int, Json] = {}
        self._unsynced = False
        self._durable: set[tuple[int, int]] = set()
        self._begin_life([])

    # Lives

    def life_begins(self, records: list[Json], world: World) -> None:
        """A master comes up with what was durable; the records are those before its own."""
        self._begin_life(records)
        self._world = world
        for number, outcome in self._acknowledged.items():
            entry = self.history.entries.get(number)
            kept = entry is not None and entry.outcome is not None
            assert kept, f"the acknowledged result of trial {number} is lost"
            assert outcome_to_json(entry.outcome) == outcome, f"the result of trial {number} changed"  # type: ignore[union-attr, arg-type]
        for number, entry in self.history.entries.items():
            for attempt in entry.attempts:
                self._durable.add((number, attempt.number))
            if entry.outcome is not None or not entry.attempts or not world.takes_over:
                continue
            last = entry.attempts[-1]
            same_world = last.world == self.history.lives[-1].world
            if same_world and not last.lost and set(last.ranks) <= set(world.ranks):
                self._running[number] = set(last.ranks)

    def _begin_life(self, records: list[Json]) -> None:
        self.history = History(records)
        self.lines = []
        for number in self.history.commit_order:
            self._note_line(number)
        self.told.append([])
        self._n_committed = len(self.history.commit_order)
        self._counted = sum(_counts(entry.trial) for entry in self.history.entries.values())
        self._open = {number for number, entry in self.history.entries.items() if entry.commit is None}
        self._queue: list[tuple[int, int]] = []
        for number in self._open:
            self._enqueue(self.history.entries[number].trial)
        self._world = World((), 0)
        self._n_gone = 0
        self._has: dict[int, set[int]] = {}
        self._running: dict[int, set[int]] = {}
        self._first: tuple[int, float, int] | None = None
        self._to_send: dict[int, set[int]] = {}
        self._last_answer: Any = None
        self._stopping = False
        self._unsynced = False
        self._recorded_at = math.inf

    # What passes

    def event(self, message: Any) -> None:
        match message:
            case Hello():
                numbers = {number for number, ranks in self._running.items() if message.rank in ranks}
                self._has[message.rank] = numbers
            case Report():
                self._on_report(message)
            case StopRequested():
                self._stopping = True

    def _on_report(self, report: Report) -> None:
        ranks = self._running.get(report.number)
        entry = self.history.entries.get(report.number)
        last = entry.attempts[-1] if entry is not None and entry.attempts else None
        stale = last is None or report.attempt != last.number
        if not stale or ranks is None or last is None or report.rank not in last.ranks:
            self._has.get(report.rank, set()).discard(report.number)
        if ranks is None or stale:
            return
        ranks.discard(report.rank)
        if report.outcome is not None or report.stopped or not ranks:
            del self._running[report.number]

    def record(self, record: Mapping[str, Json]) -> None:
        self._unsynced = True
        kind = record["kind"]
        if kind != "progress":
            self._recorded_at = record["at"]
        check = getattr(self, f"_check_{kind}", None)
        if check is not None:
            check(record)
        self.history.add(record)
        after = getattr(self, f"_after_{kind}", None)
        if after is not None:
            after(record)

    def synced(self) -> None:
        if not self._unsynced:
            return
        self._unsynced = False
        for number in self._open:
            entry = self.history.entries[number]
            if entry.outcome is not None and entry.attempts:
                self._acknowledged.setdefault(number, outcome_to_json(entry.outcome))
            for attempt in entry.attempts[-1:]:
                self._durable.add((number, attempt.number))
        self._open -= set(self.history.commit_order[self._n_committed :])
        self._n_committed = len(self.history.commit_order)

    def sent(self, rank: int, message: Any) -> None:
        assert not self._unsynced, (
            f"a {type(message).__name__} left before the records that it follows from were synced"
        )
        match message:
            case Task():
                self._check_task(rank, message)
            case TestTask():
                assert self.history.test is None, "the test part is scored twice"
            case Stop():
                pass

    def answered(self, answer: Any) -> None:
        self._last_answer = answer

    def was_told(self, finished: FinishedTrial) -> None:
        number, told = finished.trial.number, self.told[-1]
        assert number not in told, f"trial {number} was told twice in one life"
        sign = 1.0 if self._job.objective.direction == "maximize" else -1.0
        fitness = finished.outcome.fitness
        assert finished.score == (None if fitness is None else sign * fitness), f"trial {number} was told a wrong score"
        told.append(number)

    def dropped(self, number: int) -> None:
        self._dropped.add(number)

    # Records

    def _check_proposed(self, record: Mapping[str, Json]) -> None:
        number = record["trial"]["number"]
        assert number == len(self.history.entries), f"trial {number} is proposed as number {len(self.history.entries)}"

    def _after_proposed(self, record: Mapping[str, Json]) -> None:
        trial = self.history.entries[record["trial"]["number"]].trial
        self._open.add(trial.number)
        self._counted += _counts(trial)
        budget = self._job.budget.trials
        assert budget is None or self._counted <= budget, f"{self._counted} trials of {budget} are proposed"
        self._enqueue(trial)

    def _enqueue(self, trial: Trial) -> None:
        if trial.runs:
            heapq.heappush(self._queue, (trial.virtual_finish if self._virtual else 0, trial.number))

    def _check_started(self, record: Mapping[str, Json]) -> None:
        number, ranks = record["number"], record["ranks"]
        entry = self.history.entries[number]
        assert entry.trial.runs, f"trial {number} is started, but needs no evaluation"
        assert entry.outcome is None, f"trial {number} is started although it has its final state"
        assert number not in self._running, f"trial {number} is started while it runs"
        last = entry.attempts[-1].number if entry.attempts else 0
        assert record["attempt"] == last + 1, f"trial {number}: attempt {record['attempt']} follows attempt {last}"
        assert len(ranks) == len(set(ranks)) == self._size(entry.trial), f"trial {number} has the gang {ranks}"
        assert self._n_lost(number) < self._job.limits.attempts, f"trial {number} is started after its last attempt"
        for rank in ranks:
            self._check_free(rank, entry.trial, len(ranks))
        self._check_overtaking(number, at=record["at"])

    def _check_overtaking(self, number: int, *, at: float) -> None:
        """Later trials may start before the first one, but the ranks that it waits for must come free in the end.

        Backfilling starts only what ends before the first can begin, or needs none of its ranks. So that one waits for
        the trials that run when it becomes the first, at most, and for those that were expected to end before them.
        """
        first = next(self._waiting(), None)
        if first is None or first.number == number:
            return
        if self._first is None or (self._first[0], self._first[2]) != (first.number, self._n_gone):
            self._first = (first.number, at, self._n_gone)
        waited = at - self._first[1]
        most = 3 * self._longest_seconds(at) + 60.0
        assert waited <= most, f"trial {first.number} has waited for {waited:.0f} s while later ones start"

    def _longest_seconds(self, at: float) -> float:
        """Of an attempt, as predicted or as seen."""
        longest = 0.0
        for entry in self.history.entries.values():
            longest = max(longest, entry.trial.cost / 1e6)
            for attempt in entry.attempts:
                longest = max(longest, (attempt.finished_at or at) - attempt.started_at)
        return longest

    def _after_started(self, record: Mapping[str, Json]) -> None:
        number, ranks = record["number"], set(record["ranks"])
        self._running[number] = set(ranks)
        self._to_send[number] = set(ranks)
        for rank in ranks:
            self._has[rank].add(number)

    def _check_free(self, rank: int, trial: Trial, size: int) -> None:
        assert rank in self._has, f"trial {trial.number} is given to rank {rank}, which is not there"
        had = self._has[rank]
        if had:
            assert size == 1, f"rank {rank} belongs to trials {sorted(had)} and to the gang of trial {trial.number}"
            seconds = sum(self.history.entries[number].trial.cost / 1e6 for number in had)
            assert seconds < WAITING_SECONDS, f"trial {trial.number} waits at rank {rank} behind {seconds:.3g} s"

    def _check_finished(self, record: Mapping[str, Json]) -> None:
        number = record["number"]
        entry = self.history.entries[number]
        assert entry.outcome is None, f"trial {number} has a second final state"
        assert (number, record["attempt"]) in self._durable, f"trial {number} ends without a durable start"
        outcome = record["outcome"]
        if outcome.get("failure") == FailureKind.LOST.value:
            lost, most = self._n_lost(number), self._job.limits.attempts
            assert lost >= most, f"trial {number} is given up after {lost} of {most} attempts"
        else:
            expected = outcome_to_json(self._outcome_of(entry.trial))
            assert outcome == expected, f"trial {number} has another outcome than its gang gave"

    def _after_finished(self, record: Mapping[str, Json]) -> None:
        self._running.pop(record["number"], None)

    def _check_committed(self, record: Mapping[str, Json]) -> None:
        for number in record["numbers"]:
            entry = self.history.entries[number]
            assert entry.commit is None, f"trial {number} is committed twice"

    def _after_committed(self, record: Mapping[str, Json]) -> None:
        for number in record["numbers"]:
            self._note_line(number)

    def _note_line(self, number: int) -> None:
        entry = self.history.entries[number]
        assert entry.outcome is not None, f"trial {number} is committed without a final state"
        line = history_line(entry.trial, entry.outcome)
        place = len(self.lines)
        self.lines.append(line)
        if self._reference is not None:
            expected = self._reference[place] if place < len(self._reference) else "nothing"
            assert line == expected, f"the history differs at place {place}: {line} instead of {expected}"

    def _check_test(self, record: Mapping[str, Json]) -> None:
        assert self.history.test is None, "the test part was scored twice"

    # Messages

    def _check_task(self, rank: int, task: Task) -> None:
        number = task.trial.number
        assert (number, task.attempt) in self._durable, f"trial {number} left before its start was durable"
        assert rank in task.ranks, f"rank {rank} gets a task of the gang {task.ranks}"
        assert number in self._has.get(rank, ()), f"rank {rank} gets trial {number}, which it was not given"
        if number in self._to_send:
            self._to_send[number].discard(rank)

    # Between two rounds

    def between_rounds(self, coordinator: Coordinator, *, at: float) -> None:
        """What must hold when all actions of a step have been carried out."""
        assert at - self._recorded_at < MOST_SECONDS_WITHOUT_A_RECORD, "nothing happens any more"
        assert self.told[-1] == self.history.commit_order, "what the strategy was told is not what was committed"
        for number, ranks in self._to_send.items():
            left = ranks if number in self._running else ()
            assert not left, f"ranks {sorted(left)} did not get trial {number}"
        self._to_send.clear()
        for rank, numbers in self._has.items():
            sizes = [len(self.history.entries[number].attempts[-1].ranks) for number in numbers & self._running.keys()]
            assert len(sizes) < 2 or max(sizes) == 1, f"rank {rank} belongs to the gangs of trials {sorted(numbers)}"
        if coordinator.ended is None and not self._stopping and not self._stops_dispatching(coordinator):
            self._check_work_is_given_out(coordinator)

    def forget_lost(self, coordinator: Coordinator) -> None:
        """Ranks that the coordinator counts as gone have nothing any more."""
        self._n_gone = len(coordinator._gone)
        for rank in [rank for rank in self._has if rank not in coordinator.pool]:
            for number in self._has.pop(rank):
                if rank in self.history.entries[number].attempts[-1].ranks:
                    self._running.pop(number, None)
        for number, ranks in list(self._running.items()):
            gone = [rank for rank in ranks if rank not in self._has and rank in coordinator._gone]
            if gone:
                del self._running[number]

    @staticmethod
    def _stops_dispatching(coordinator: Coordinator) -> bool:
        return coordinator._out_of_hours or coordinator._too_few()

    def _check_work_is_given_out(self, coordinator: Coordinator) -> None:
        active = sorted(self._has)[: self._world.n_active]
        n_idle = sum(not self._has[rank] for rank in active)
        first = next(self._waiting(), None)
        if first is not None:
            size = self._size(first)
            assert size > n_idle, f"{n_idle} ranks idle while trial {first.number} waits for {size}"
        asks = not isinstance(self._last_answer, Wait | Done) and self._last_answer is not None
        over = self._job.budget.trials is not None and self._counted >= self._job.budget.trials
        if self._virtual:
            self._check_commits(coordinator)
            if asks and not over and self._job.budget.simulated_seconds is None:
                wanted = self._job.order.virtual_gangs
                assert len(self._open) >= wanted, f"{len(self._open)} trials are open in a window of {wanted}"
        elif asks and not over and coordinator.scheduler.ledger.hopeless is None:
            resources = self._job.resources
            n_left = min(self._n_left(), self._world.n_active)
            gang = gang_size(wanted=resources.gang, shards=resources.shards, n_workers=n_left)
            n_wanted = sum(max(gang, self._size(trial)) for trial in self._waiting())
            assert n_idle - n_wanted < gang, f"{n_idle} ranks idle and nothing more is proposed"

    def _check_commits(self, coordinator: Coordinator) -> None:
        """The first in virtual time is committed as soon as its outcome is known."""
        if not self._open:
            return
        trials = [self.history.entries[number].trial for number in self._open]
        first = min(trials, key=lambda trial: (trial.virtual_finish, trial.number))
        known = self.history.entries[first.number].outcome is not None
        assert not known, f"trial {first.number} is the next in virtual order, and is not told"

    def _waiting(self) -> Iterator[Trial]:
        """Trials that are ready for ranks, in the order in which they should start."""
        entries = self.history.entries
        while self._queue and entries[self._queue[0][1]].outcome is not None:
            heapq.heappop(self._queue)
        for _, number in sorted(self._queue):
            entry = entries[number]
            if entry.outcome is None and number not in self._running:
                yield entry.trial

    def _size(self, trial: Trial) -> int:
        n_workers = min(self._n_left(), self._world.n_active)
        return gang_size(wanted=trial.gang, shards=trial.shards, n_workers=n_workers)

    def _n_left(self) -> int:
        return len(self._world.ranks) - self._n_gone

    def _n_lost(self, number: int) -> int:
        return self.history.entries[number].n_lost

    # The end

    def check_end(self) -> None:
        """What must hold when the search has come to its end."""
        history, job = self.history, self._job
        assert history.state == "finished"
        for number, entry in history.entries.items():
            ended = job.budget.hours is not None and entry.outcome is None
            assert ended or entry.state in ("completed", "failed", "infeasible"), f"trial {number} is {entry.state}"
            n_ends = sum(attempt.finished_at is not None for attempt in entry.attempts)
            assert n_ends == (entry.trial.runs and entry.outcome is not None), f"trial {number} ended {n_ends} times"
        if job.budget.hours is None:
            assert sorted(history.commit_order) == sorted(history.entries), "not all trials are committed"
            done = isinstance(self._last_answer, Done)
            assert done or job.budget.trials in (None, self._counted), f"{self._counted} of {job.budget.trials} trials"
            assert self._reference is None or self.lines == self._reference, "the history ended early"
        self._check_weights()

    def _check_weights(self) -> None:
        scored = [
            (entry.outcome.fitness, -number)
            for number, entry in self.history.entries.items()
            if entry.commit is not None
            and entry.trial.runs
            and entry.outcome is not None
            and entry.outcome.fitness is not None
            and entry.trial.fidelity == self._job.full_fidelity
        ]
        best = {-number for _, number in sorted(scored, reverse=True)[: self._job.checkpoint.keep_weights]}
        assert not best & self._dropped, f"the weights of trials {sorted(best & self._dropped)} were dropped"
        assert not scored or self.history.test is not None, "the best trial was never scored on the test part"


def _counts(trial: Trial) -> bool:
    return trial.infeasible is None and trial.imported is None


class WatchedJournal(SimulatedJournal):
    """Tells the watch what is appended and what is durable."""

    def __init__(self, durable: bytes, *, rng: random.Random, crash: float, watch: Watch) -> None:
        super().__init__(durable, rng=rng, crash=crash)
        self._watch = watch

    def append(self, record: Mapping[str, Json]) -> None:
        super().append(record)
        self._watch.record(record)

    def sync(self) -> None:
        super().sync()
        self._watch.synced()


class WatchedTransport:
    """Tells the watch what is sent, and when a round is over."""

    def __init__(self, transport: SimulatedTransport, watch: Watch, coordinator: Coordinator) -> None:
        self._transport = transport
        self._watch = watch
        self._coordinator = coordinator

    def worker_ranks(self) -> tuple[int, ...]:
        return self._transport.worker_ranks()

    def now(self) -> float:
        return self._transport.now()

    def send(self, rank: int, message: Any) -> None:
        self._watch.sent(rank, message)
        self._transport.send(rank, message)

    def expel(self, rank: int) -> None:
        self._transport.expel(rank)

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        self._watch.between_rounds(self._coordinator, at=self._transport.now())
        return self._transport.receive(timeout_seconds)


class WatchedCoordinator:
    """Tells the watch of all events before the coordinator hears of them."""

    def __init__(self, coordinator: Coordinator, watch: Watch) -> None:
        self._coordinator = coordinator
        self._watch = watch

    def handle(self, event: Any, *, at: float) -> None:
        self._watch.event(event)
        self._coordinator.handle(event, at=at)

    def step(self, *, at: float) -> list[Action]:
        actions = self._coordinator.step(at=at)
        self._watch.forget_lost(self._coordinator)
        return actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)


class WatchedStrategy:
    """A strategy whose answers and tellings are watched, around a real one."""

    def __init__(self, strategy: Any, watch: Watch) -> None:
        self._strategy = strategy
        self._watch = watch

    def ask(self, number: int) -> Proposal | Wait | Done:
        answer = self._strategy.ask(number)
        self._watch.answered(answer)
        return answer

    def tell(self, finished: FinishedTrial) -> None:
        self._watch.was_told(finished)
        self._strategy.tell(finished)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

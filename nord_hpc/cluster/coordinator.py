"""The coordinator: a pure state machine that turns events into actions. It has no clock, no MPI, no files.

Events carry their time. Actions are carried out by the master in order, with all records durable before anything is
sent. The simulated transport runs it through thousands of random faults.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from nord_hpc.cluster.events import Action, DropWeights, End, Event, Expel, RankLost, Record, Send, StopRequested, Tick
from nord_hpc.cluster.gangs import RankPool
from nord_hpc.cluster.messages import Hello, Report, Stop, StopWish, Task, TestReport, TestTask, ToWorker
from nord_hpc.cluster.scheduler import Scheduler, Step
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.store.history import History, outcome_to_json, trial_to_json
from nord_hpc.trial import FailureKind, Fidelity, FinishedTrial, Json, Outcome, Trial, TrialState, gang_size

HANG_GRACE_SECONDS = 30.0
"""Beyond a trial's own limit, which its ranks check between steps, before they are taken to hang."""

PARTNER_SECONDS = 60.0
"""For the partners of a rank that died to come back, before they are taken to hang."""

MOST_PASSED = 64
"""Waiting trials that are looked at, behind one that waits for ranks, for such as fill the gap."""

TEST_LIMIT_SECONDS = 1800.0


@dataclass(slots=True)
class Running:
    """An attempt that ranks work on.

    Attributes:
        epoch: of the master that started it.
        silent: ranks that have not reported.
        communicator: see `Task`.
    """

    trial: Trial
    attempt: int
    ranks: tuple[int, ...]
    epoch: int
    silent: set[int]
    communicator: int | None = None
    keep_above: float | None = None


@dataclass(slots=True)
class Best:
    """The best committed trials of full fidelity by score, for the weights to keep; ties go to the lower number."""

    keep: int
    full_fidelity: Fidelity
    heap: list[tuple[float, int]] = field(default_factory=list)
    top: FinishedTrial | None = None

    def add(self, finished: FinishedTrial) -> int | None:
        """Take note of a committed trial; returns the number of a trial that is not among the best."""
        number = finished.trial.number
        if finished.score is None or finished.trial.fidelity != self.full_fidelity:
            return number
        heapq.heappush(self.heap, (finished.score, -number))
        if self.top is None or max(self.heap)[1] == -number:
            self.top = finished
        return -heapq.heappop(self.heap)[1] if len(self.heap) > self.keep else None

    def threshold(self) -> float | None:
        """The score below which weights are not worth keeping; None while there is room."""
        return self.heap[0][0] if len(self.heap) >= self.keep else None


class Coordinator:
    """Trials, ranks and the order of results, in one place.

    Attributes:
        n_finished: trials whose results came in during this life.
        ended: the last action, once the search has ended.
        stalls: number of the trial that others waited for in virtual order, to idle rank-seconds.
    """

    def __init__(
        self,
        job: Job,
        *,
        scheduler: Scheduler,
        epoch: int,
        ranks: tuple[int, ...],
        seconds_left: float | None,
        n_active: int | None = None,
        fewest_workers: int = 1,
    ) -> None:
        """A coordinator for a search that has not begun; `restore` makes it continue one.

        Args:
            epoch: of this master, one more than the last one's.
            ranks: of the workers that exist, whether they have said hello or not.
            seconds_left: of the hours budget, or None.
            n_active: workers that evaluate at a time, by whose number gangs are sized; the others are spares.
            fewest_workers: with fewer left, the search ends as lost, to be started again with all of them.
        """
        self.job = job
        self.scheduler = scheduler
        self.pool = RankPool(n_active)
        self.running: dict[int, Running] = {}
        self.best = Best(job.checkpoint.keep_weights, job.full_fidelity)
        self.n_finished = 0
        self.ended: End | None = None
        self._epoch = epoch
        self._ranks = ranks
        self._gone: set[int] = set()
        self._expected: dict[int, float] = {}  # ranks that must say hello to a master that took over, and by when
        self._n_active = len(ranks) if n_active is None else n_active
        self._fewest_workers = fewest_workers
        self._without_weights: set[int] = set()
        self._communicators: dict[tuple[int, ...], int] = {}
        self._n_communicators = 0
        self._keeps_communicators = False
        self._slowness = 1.0  # true over predicted time, as far as is known; only the packing of gangs depends on it
        self._seconds_left = seconds_left
        self._began_at: float | None = None
        self._virtual = job.order.mode == "virtual"
        self._actions: list[Action] = []
        self._waiting: list[tuple[int, int, Trial]] = []
        self.stalls: dict[int, float] = {}
        self._stepped_at: float | None = None
        self._n_committed = 0
        self._attempts: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._stopping: str | None = None
        self._stop_deadline = 0.0
        self._out_of_hours = False
        self._tested = False
        self._test_rank: int | None = None

    @property
    def _n_workers(self) -> int:
        """Workers that can be at work at a time."""
        return min(len(self._ranks) - len(self._gone), self._n_active)

    def restore(self, history: History, state: Json | None, *, at: float, takes_over: bool = False) -> None:
        """Go on from a recorded history: results are kept, trials that were running wait to be started again.

        Args:
            state: of the scheduler at some point of that history, from a snapshot; None to go through all of it.
            takes_over: the ranks are those of the master before, which died; what they work on goes on.
        """
        self._keeps_communicators = takes_over
        for number, entry in history.entries.items():
            if entry.outcome is None:
                self._attempts[number] = max((attempt.number for attempt in entry.attempts), default=0)
                self._lost[number] = entry.n_lost
        self._tested = history.test is not None
        self._n_committed = len(history.commit_order)
        open_trials, steps = self.scheduler.restore(history, state)
        new: list[Step] = []
        n_told = 0
        for step in [*open_trials, *steps]:
            if isinstance(step, FinishedTrial):
                n_told += 1
                if n_told <= len(history.commit_order):
                    self._rank_by_score(step)
                else:
                    new.append(step)
            elif step.number not in history.entries:
                new.append(step)
            elif history.entries[step.number].outcome is not None or not step.runs:
                pass
            elif not (takes_over and self._adopt(step, history)):
                self._wait_or_give_up(step, reason="its ranks were lost", at=at)
        self._take_note(new, at=at)
        if takes_over:
            self._expect_hellos(history, at=at)

    def _expect_hellos(self, history: History, *, at: float) -> None:
        """One that is in the middle of an evaluation may speak only after it, and one that hangs never does."""
        open_trials = [entry.trial for entry in history.entries.values() if entry.outcome is None and entry.attempts]
        limit = max((self._limit_seconds(trial) for trial in open_trials), default=0.0)
        self._expected = dict.fromkeys(self._ranks, at + limit + HANG_GRACE_SECONDS)

    def _adopt(self, trial: Trial, history: History) -> bool:
        """Take a trial over from the master before, if all ranks that it was given to are still there."""
        attempts = history.entries[trial.number].attempts
        if not attempts or attempts[-1].lost or attempts[-1].world != history.lives[-1].world:
            return False
        last = attempts[-1]
        if not set(last.ranks) <= set(self._ranks):
            return False
        self.running[trial.number] = Running(
            trial, last.number, last.ranks, last.life + 1, set(last.ranks), last.communicator
        )
        return True

    def handle(self, event: Event, *, at: float) -> None:
        """Take in one event. `at` is in seconds and never falls."""
        if self._began_at is None:
            self._began_at = at
        match event:
            case Report():
                self._on_report(event, at=at)
            case Hello():
                self._on_hello(event, at=at)
            case TestReport():
                self._on_test_report(event, at=at)
            case RankLost():
                self._on_lost(event.rank, event.reason, at=at)
            case StopRequested() | StopWish():
                self._on_stop(event.reason, at=at)
            case Tick():
                self._on_tick(at=at)

    def step(self, *, at: float) -> list[Action]:
        """What follows from the events so far: commits, proposals, dispatch, the end. For each batch of events."""
        self._count_stall(at)
        if self.ended is None:
            if self._stopping is not None:
                if not self._busy() or at > self._stop_deadline:
                    self._end("interrupted", self._stopping, at=at)
            elif self._out_of_hours:
                if not self.running:
                    self._finish("the hours budget is used up", at=at)
            else:
                self._advance(at=at)
                self._dispatch(at=at)
                if self.scheduler.finished:
                    self._finish(None, at=at)
                elif not self.running and self._too_few():
                    self._abandon()
        return self.take_actions()

    def take_actions(self) -> list[Action]:
        """The actions that nobody has carried out yet. After an exception in `step`, its records are still true."""
        actions, self._actions = self._actions, []
        return actions

    # Events

    def _on_hello(self, hello: Hello, *, at: float) -> None:
        """A rank is there. What the master before gave to it goes on; what never reached it is sent again."""
        if hello.rank in self._gone:
            return
        self._expected.pop(hello.rank, None)
        self.pool.add(hello.rank, hello.host)
        for number, running in sorted(self.running.items()):
            if hello.rank not in running.silent:
                continue
            limit = self._limit_seconds(running.trial)
            seconds = running.trial.cost / 1e6 / len(running.ranks)
            limit_seconds = limit + HANG_GRACE_SECONDS
            self.pool.assign(hello.rank, number, seconds=seconds, limit_seconds=limit_seconds, at=at)
            if (number, running.attempt) not in hello.busy:
                self._send(hello.rank, self._task(running, limit))

    def _on_report(self, report: Report, *, at: float) -> None:
        running = self.running.get(report.number)
        current = running is not None and (report.epoch, report.attempt) == (running.epoch, running.attempt)
        # Not for an earlier attempt of a trial that the rank has again.
        if current or running is None or report.rank not in running.ranks:
            self.pool.release(report.rank, report.number, at=at)
        if report.bad_input is not None:
            raise BadInput(report.bad_input)
        if running is None or not current:
            return
        running.silent.discard(report.rank)
        if report.outcome is not None:
            self._on_outcome(running, report.outcome, at=at)
        elif report.stopped:
            del self.running[report.number]
            if self._stopping is None:  # the master before had said stop
                self._wait(running.trial)
        elif not running.silent and self._stopping is None:
            self._on_broken(running, report.broken or "no member of the gang gave a result", at=at)

    def _on_outcome(self, running: Running, outcome: Outcome, *, at: float) -> None:
        number = running.trial.number
        del self.running[number]
        self.n_finished += 1
        predicted = running.trial.cost / 1e6 / len(running.ranks)
        first = running.attempt == 1  # an earlier one may have left weights before its ranks were lost
        if first and running.keep_above is not None and not self._may_be_kept(outcome, running.keep_above):
            self._without_weights.add(number)
        self._slowness += 0.1 * (min(outcome.seconds / predicted, 1e3) - self._slowness)
        fields = {"number": number, "attempt": running.attempt, "outcome": outcome_to_json(outcome)}
        self._record({"kind": "finished", **fields}, at=at)
        self.scheduler.finish(number, outcome)

    def _may_be_kept(self, outcome: Outcome, keep_above: float) -> bool:
        """Whether the evaluator may have left weights in the run folder."""
        if outcome.fitness is None:
            return True
        score = outcome.fitness if self.job.objective.direction == "maximize" else -outcome.fitness
        return score >= keep_above

    def _on_broken(self, running: Running, reason: str, *, at: float) -> None:
        """All members are back without a result: an attempt is used up, whoever was to blame."""
        number = running.trial.number
        del self.running[number]
        self._communicators.pop(running.ranks, None)
        self._record({"kind": "lost", "rank": running.ranks[0], "reason": reason}, at=at)
        self._lost[number] = self._lost.get(number, 0) + 1
        self._wait_or_give_up(running.trial, reason=reason, at=at)

    def _on_lost(self, rank: int, reason: str, *, at: float) -> None:
        if rank in self._gone or rank not in self._ranks:
            return
        self._gone.add(rank)
        self._keeps_communicators = True
        self._communicators = {ranks: number for ranks, number in self._communicators.items() if rank not in ranks}
        self._actions.append(Expel(rank))
        said_hello = rank in self.pool
        assigned = self.pool.remove(rank)
        if not said_hello:  # it died before this master heard of it
            assigned = [number for number, running in self.running.items() if rank in running.ranks]
        self._record({"kind": "lost", "rank": rank, "reason": reason}, at=at)
        if rank == self._test_rank:
            self._test_rank = None
        for place, number in enumerate(assigned):
            running = self.running.get(number)
            if running is None or rank not in running.ranks:  # other ranks have a later attempt of it
                continue
            del self.running[number]
            if place == 0:  # the others only waited at that rank
                self._lost[number] = self._lost.get(number, 0) + 1
            for partner in set(running.ranks) - {rank}:
                self.pool.expect_back(partner, by=at + PARTNER_SECONDS)
            if self._stopping is None:
                self._wait_or_give_up(running.trial, reason=reason, at=at)

    def _on_test_report(self, report: TestReport, *, at: float) -> None:
        self.pool.release(report.rank, report.number, at=at)
        if report.epoch != self._epoch or report.rank != self._test_rank:
            return
        self._test_rank = None
        self._tested = True
        metrics = report.metrics if report.metrics is not None else {"error": report.error}
        self._record({"kind": "test", "number": report.number, "metrics": metrics}, at=at)

    def _on_stop(self, reason: str, *, at: float) -> None:
        if self._stopping is None and self.ended is None:
            self._stopping = reason
            self._stop_deadline = at + self.job.limits.grace_seconds
            self._stop_all()

    def _on_tick(self, *, at: float) -> None:
        for rank in self.pool.overdue(at):
            self._on_lost(rank, f"rank {rank} has not answered within the limit of its trial", at=at)
        for rank in [rank for rank, by in self._expected.items() if at > by]:
            del self._expected[rank]
            self._on_lost(rank, f"rank {rank} has not come back to the master that took over", at=at)
        if self._seconds_left is not None and self._began_at is not None and at - self._began_at >= self._seconds_left:
            self._out_of_hours = True

    # Steps

    def _count_stall(self, at: float) -> None:
        """Charge the idle time since the last step to the trial that keeps everything waiting, if one does."""
        since, self._stepped_at = self._stepped_at, at
        blocking = self.scheduler.blocking()
        if since is None or blocking is None or self._waiting or self._stopping or self.scheduler.ledger.over:
            return
        idle_seconds = self.pool.n_idle() * (at - since)
        if idle_seconds > 0:
            self.stalls[blocking] = self.stalls.get(blocking, 0.0) + idle_seconds

    def progress(self) -> dict[str, Json]:
        """What the master knows of its own work, for the journal."""
        worst = max(self.stalls, key=lambda number: self.stalls[number], default=None)
        return {"stall_seconds": sum(self.stalls.values()), "stalled_most_by": worst}

    def _advance(self, *, at: float) -> None:
        resources = self.job.resources
        smallest = 1 if resources.gang == "auto" else resources.gang
        gang = gang_size(wanted=smallest, shards=resources.shards, n_workers=max(1, self._n_workers))
        room = self.pool.n_idle() // gang - len(self._waiting)
        self._take_note(self.scheduler.advance(room=room), at=at)
        if self.scheduler.ledger.hopeless is not None:
            raise BadInput(self.scheduler.ledger.hopeless)

    def _take_note(self, steps: list[Step], *, at: float) -> None:
        """Record what the scheduler did, in its order, and queue what can be trained."""
        told: list[int] = []
        for step in steps:
            if isinstance(step, FinishedTrial):
                told.append(step.trial.number)
                self._rank_by_score(step)
                continue
            self._record_committed(told, at=at)
            fields = {"trial": trial_to_json(step), "after": self._n_committed}
            if step.imported is not None:
                imported = self.scheduler.ledger.known_outcome(step)
                assert imported is not None
                fields["outcome"] = outcome_to_json(imported)
            self._record({"kind": "proposed", **fields}, at=at)
            if step.runs:
                self._wait(step)
        self._record_committed(told, at=at)

    def _record_committed(self, numbers: list[int], *, at: float) -> None:
        """One record for commits that follow each other; empties `numbers`."""
        if numbers:
            self._record({"kind": "committed", "numbers": list(numbers)}, at=at)
            self._n_committed += len(numbers)
            numbers.clear()

    def _rank_by_score(self, finished: FinishedTrial) -> None:
        self._attempts.pop(finished.trial.number, None)
        self._lost.pop(finished.trial.number, None)
        if not finished.trial.runs:
            return  # there are no weights of its own
        dropped = self.best.add(finished)
        if dropped in self._without_weights:
            self._without_weights.discard(dropped)
        elif dropped is not None:
            self._actions.append(DropWeights(dropped))

    def _wait(self, trial: Trial) -> None:
        heapq.heappush(self._waiting, (trial.virtual_finish if self._virtual else 0, trial.number, trial))

    def _wait_or_give_up(self, trial: Trial, *, reason: str, at: float) -> None:
        n_lost = self._lost.get(trial.number, 0)
        if n_lost < self.job.limits.attempts:
            self._wait(trial)
            return
        text = f"{reason}; given up after {n_lost} attempts (limits.attempts)"
        outcome = Outcome(state=TrialState.FAILED, failure=FailureKind.LOST, reason=text)
        fields = {"number": trial.number, "attempt": self._attempts[trial.number], "outcome": outcome_to_json(outcome)}
        self._record({"kind": "finished", **fields}, at=at)
        self.scheduler.finish(trial.number, outcome)

    def _dispatch(self, *, at: float) -> None:
        """Start what waits, in its order; where the first one waits for ranks, later ones fill the gap until then."""
        passed: list[tuple[int, int, Trial]] = []
        first_size = 0
        while self._waiting and len(passed) < MOST_PASSED and not self._too_few():
            trial = self._waiting[0][2]
            size = gang_size(wanted=trial.gang, shards=trial.shards, n_workers=self._n_workers)
            limit = self._limit_seconds(trial)
            seconds = trial.cost / 1e6 / size * self._slowness
            if passed and not self.pool.may_overtake(size, seconds=seconds, first_size=first_size, at=at):
                passed.append(heapq.heappop(self._waiting))
                continue
            ranks = self.pool.take(size, trial.number, seconds=seconds, limit_seconds=limit + HANG_GRACE_SECONDS, at=at)
            if ranks is None and not self.pool.n_idle():
                break
            item = heapq.heappop(self._waiting)
            if ranks is not None:
                self._start(trial, ranks, limit, at=at)
                continue
            first_size = first_size or size
            passed.append(item)
        for item in passed:
            heapq.heappush(self._waiting, item)

    def _start(self, trial: Trial, ranks: tuple[int, ...], limit_seconds: float, *, at: float) -> None:
        attempt = self._attempts.get(trial.number, 0) + 1
        self._attempts[trial.number] = attempt
        communicator = self._communicator(ranks)
        running = Running(trial, attempt, ranks, self._epoch, set(ranks), communicator, self.best.threshold())
        self.running[trial.number] = running
        kept = {} if communicator is None else {"communicator": communicator}
        fields = {"number": trial.number, "attempt": attempt, "ranks": list(ranks), **kept}
        self._record({"kind": "started", **fields}, at=at)
        task = self._task(running, limit_seconds)
        for rank in ranks:
            self._send(rank, task)

    def _task(self, running: Running, limit_seconds: float) -> Task:
        return Task(
            running.epoch,
            running.trial,
            running.attempt,
            running.ranks,
            limit_seconds,
            running.keep_above,
            running.communicator,
        )

    def _communicator(self, ranks: tuple[int, ...]) -> int | None:
        """Once a rank has died, communicators are costly to make, so gangs of the same ranks keep theirs."""
        if len(ranks) == 1 or not self._keeps_communicators:
            return None
        if ranks not in self._communicators:
            self._n_communicators += 1
            self._communicators[ranks] = self._epoch * 10**6 + self._n_communicators
        return self._communicators[ranks]

    def _limit_seconds(self, trial: Trial) -> float:
        if self.job.limits.trial_seconds is not None:
            return self.job.limits.trial_seconds
        return 60.0 + 30.0 * trial.cost / 1e6

    def _finish(self, reason: str | None, *, at: float) -> None:
        """The budget is used up: score the best on the test part, once, then end."""
        best = self.best.top
        if best is None or self._tested or not self.job.objective.test:
            self._end("finished", reason, at=at)
        elif self._test_rank is None and self._too_few():
            self._abandon()
        elif self._test_rank is None:
            limit = TEST_LIMIT_SECONDS
            ranks = self.pool.take(1, best.trial.number, seconds=limit, limit_seconds=limit, at=at)
            if ranks is not None:
                self._test_rank = ranks[0]
                self._send(ranks[0], TestTask(self._epoch, best.trial))

    def _end(self, state: str, reason: str | None, *, at: float) -> None:
        self._stop_all()
        self._record({"kind": "ended", "state": state, "reason": reason}, at=at)
        self.ended = End(state, reason)
        self._actions.append(self.ended)

    def _too_few(self) -> bool:
        return len(self._ranks) - len(self._gone) < self._fewest_workers

    def _abandon(self) -> None:
        """End without an end mark in the journal: whoever starts the ranks again continues."""
        left = len(self._ranks) - len(self._gone)
        self._stop_all()
        self.ended = End("lost", f"{left} of {len(self._ranks)} workers are left")
        self._actions.append(self.ended)

    def _stop_all(self) -> None:
        """To every rank, also those that have not said hello yet: one that is missed would wait for ever."""
        for rank in self._ranks:
            self._send(rank, Stop(self._epoch))

    def _busy(self) -> bool:
        return self.pool.n_busy() > 0

    def _record(self, record: dict[str, Json], *, at: float) -> None:
        self._actions.append(Record({**record, "at": at}))

    def _send(self, rank: int, message: ToWorker) -> None:
        self._actions.append(Send(rank, message))

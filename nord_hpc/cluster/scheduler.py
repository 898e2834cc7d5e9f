"""In which order results reach the strategy, and so when it is asked: virtual order and arrival order.

Knows neither ranks nor time; the coordinator asks it what to run and hands it what became of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.ledger import Dropped, Ledger
from nord_hpc.cluster.trial_maker import TrialMaker
from nord_hpc.interfaces import Strategy
from nord_hpc.job import Job
from nord_hpc.store.history import History
from nord_hpc.trial import FinishedTrial, Json, Outcome, Trial

Step = Trial | FinishedTrial
"""What a scheduler does: it proposes a trial, or commits a finished one."""


class Scheduler(Protocol):
    """What the coordinator needs of an order.

    Attributes:
        uncommitted: proposed trials that are not committed, by number.
        finished: nothing is uncommitted and nothing more will be proposed.
    """

    uncommitted: dict[int, Trial]
    ledger: Ledger

    @property
    def finished(self) -> bool: ...

    def blocking(self) -> int | None:
        """The uncommitted trial whose result must come in before anything else can be proposed; None if none must."""

    def advance(self, *, room: int) -> list[Step]:
        """Commit and propose all that can be now; the commits and proposals in the order in which they were made.

        Args:
            room: how many more trials the ranks could take at once.
        """

    def finish(self, number: int, outcome: Outcome) -> None:
        """The final outcome of an uncommitted trial."""

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        """Be where a recorded history ends: from a saved state on, or all over again.

        Returns:
            Trials that were uncommitted in that state; and the steps, from the first commit on without the proposals
            before that state, that lead to where the record ends and as far beyond as can be.
        """

    def state_dict(self) -> Json:
        """All that is needed to go on later, strategy included, beside the history itself."""


class VirtualOrder:
    """Results are told in the order of predicted finish on a virtual cluster of V gangs, whatever the real one does.

    At each virtual finish the result is committed and the freed virtual gang asks for its next trial. The history is
    thus a function of the job alone. Where the next asks depend on no result, they are made before the commits that
    virtual time puts before them, up to `run_ahead` beyond V.
    """

    def __init__(self, ledger: Ledger, *, virtual_gangs: int, run_ahead: int) -> None:
        self.ledger = ledger
        self.uncommitted: dict[int, Trial] = {}
        self._virtual_gangs = virtual_gangs
        self._limit = virtual_gangs + run_ahead
        self._outcomes: dict[int, Outcome] = {}
        self._now = 0
        self._free = virtual_gangs
        self._retired = 0
        self._to_commit: list[tuple[int, int]] = []
        self._to_free: list[tuple[int, int]] = []

    @property
    def finished(self) -> bool:
        over = self.ledger.over or self.ledger.done or self._retired == self._virtual_gangs
        return not self.uncommitted and over

    def finish(self, number: int, outcome: Outcome) -> None:
        self._outcomes[number] = outcome

    def advance(self, *, room: int) -> list[Step]:
        steps: list[Step] = []
        self._fill(steps)
        while True:
            if self._to_commit and self._has_outcome(self._to_commit[0][1]):
                event = heapq.heappop(self._to_commit)
                steps.append(self._commit(event[1]))
                if self._to_free and self._to_free[0] == event:
                    heapq.heappop(self._to_free)
                    self._pass(event)
                self._fill(steps)
            elif self._may_run_ahead():
                self._pass(heapq.heappop(self._to_free))
                self._fill(steps)
            else:
                break
        if self._free and self._free + self._retired == self._virtual_gangs:
            self.ledger.check_not_stuck(self.uncommitted)
        return steps

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        told = self.ledger.restore(history, state)
        if state is not None:
            self._now, self._free, self._retired = state["now"], state["free"], state["retired"]
            self._to_commit = [(finish, number) for finish, number in state["to_commit"]]
            self._to_free = [(finish, number) for finish, number in state["to_free"]]
            self.uncommitted = {number: history.entries[number].trial for _, number in sorted(self._to_commit)}
        known = {finished.trial.number for finished in told}
        self._outcomes = {n: e.outcome for n, e in history.entries.items() if e.outcome is not None and n not in known}
        open_trials = list(self.uncommitted.values())
        steps = self.advance(room=0)
        self.ledger.check_replayed()
        return open_trials, [*told, *steps]

    def blocking(self) -> int | None:
        return self._to_commit[0][1] if self._to_commit else None

    def state_dict(self) -> Json:
        places = {"now": self._now, "free": self._free, "retired": self._retired}
        return {**self.ledger.state_dict(), **places, "to_commit": self._to_commit, "to_free": self._to_free}

    def _has_outcome(self, number: int) -> bool:
        """Whether the outcome is there, or can be had from an equal trial, which is committed by now."""
        if number not in self._outcomes and not self.uncommitted[number].runs:
            known = self.ledger.known_outcome(self.uncommitted[number])
            if known is not None:
                self._outcomes[number] = known
        return number in self._outcomes

    def _commit(self, number: int) -> FinishedTrial:
        return self.ledger.commit(self.uncommitted.pop(number), self._outcomes.pop(number))

    def _pass(self, event: tuple[int, int]) -> None:
        self._now = event[0]
        self._free += 1

    def _may_run_ahead(self) -> bool:
        within = bool(self._to_free) and len(self.uncommitted) < self._limit
        return within and self.ledger.independent_asks() > self._free

    def _fill(self, steps: list[Step]) -> None:
        """Let the free virtual gangs ask, at the present virtual time."""
        while self._free and len(self.uncommitted) < self._limit:
            trial = self.ledger.ask(virtual_start=self._now)
            if isinstance(trial, Dropped):
                self._free -= 1
                self._retired += 1
                continue
            if not isinstance(trial, Trial):
                return
            self._free -= 1
            self.uncommitted[trial.number] = trial
            event = (trial.virtual_finish, trial.number)
            heapq.heappush(self._to_commit, event)
            heapq.heappush(self._to_free, event)
            steps.append(trial)


class ArrivalOrder:
    """Results are told as they come in, and asks are made when ranks are free: not repeatable, except in a resume."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.uncommitted: dict[int, Trial] = {}
        self._arrived: list[tuple[int, Outcome]] = []
        self._replaying = False

    @property
    def finished(self) -> bool:
        return not self.uncommitted and (self.ledger.over or self.ledger.done)

    def finish(self, number: int, outcome: Outcome) -> None:
        self._arrived.append((number, outcome))

    def advance(self, *, room: int) -> list[Step]:
        steps: list[Step] = [*self._commit_arrived()]
        while room > 0:
            trial = self._ask()
            if trial is None:
                self.ledger.check_not_stuck(self.uncommitted)
                break
            steps.append(trial)
            known = self.ledger.known_outcome(trial)
            if trial.runs:
                room -= 1
            elif known is not None:
                self.finish(trial.number, known)
                steps += self._commit_arrived()
        return steps

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        """Asks and tells in the recorded order; results that were not committed are committed by number after that."""
        steps: list[Step] = [*self.ledger.restore(history, state)]
        if state is not None:
            self.uncommitted = {number: history.entries[number].trial for number in state["uncommitted"]}
        open_trials = list(self.uncommitted.values())
        self._replaying = True
        for number in range(self.ledger.n_proposed, len(history.entries)):
            self._replay_commits(history, history.entries[number].after, steps)
            trial = self._ask()
            if trial is None:
                break
            steps.append(trial)
        self.ledger.check_replayed()
        self._replay_commits(history, len(history.commit_order), steps)
        self._replaying = False
        for number in sorted(self.uncommitted):
            outcome = history.entries[number].outcome
            if outcome is not None:
                self.finish(number, outcome)
        return open_trials, [*steps, *self._commit_arrived()]

    def blocking(self) -> int | None:
        return None

    def state_dict(self) -> Json:
        return {**self.ledger.state_dict(), "uncommitted": sorted(self.uncommitted)}

    def _replay_commits(self, history: History, stop: int, steps: list[Step]) -> None:
        for number in history.commit_order[self.ledger.n_committed : stop]:
            outcome = history.entries[number].outcome
            assert outcome is not None
            self.finish(number, outcome)
            steps += self._commit_arrived()

    def _ask(self) -> Trial | None:
        trial = self.ledger.ask(virtual_start=0)
        if not isinstance(trial, Trial):
            return None
        self.uncommitted[trial.number] = trial
        return trial

    def _commit_arrived(self) -> list[FinishedTrial]:
        """Commit what has arrived, and then what takes its outcome over."""
        committed: list[FinishedTrial] = []
        while self._arrived:
            committed += [self.ledger.commit(self.uncommitted.pop(n), outcome) for n, outcome in self._arrived]
            self._arrived.clear()
            if not self._replaying:
                for trial in self.uncommitted.values():
                    known = None if trial.runs else self.ledger.known_outcome(trial)
                    if known is not None:
                        self._arrived.append((trial.number, known))
        return committed


def make_scheduler(
    job: Job, *, strategy: Strategy, maker: TrialMaker, first: Sequence[FirstCandidate] = ()
) -> Scheduler:
    """The order that the job asks for."""
    ledger = Ledger(job, strategy=strategy, maker=maker, first=first)
    if job.order.mode == "arrival":
        return ArrivalOrder(ledger)
    return VirtualOrder(ledger, virtual_gangs=job.order.virtual_gangs, run_ahead=job.order.run_ahead)

"""The invariants bite: faults planted in the coordinator and its parts are each found by random schedules."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import pytest
from cluster import schedules

from nord_hpc.cluster import master
from nord_hpc.cluster.coordinator import Best, Coordinator
from nord_hpc.cluster.events import Record, Send
from nord_hpc.cluster.gangs import RankPool
from nord_hpc.cluster.ledger import Ledger
from nord_hpc.cluster.scheduler import VirtualOrder

MOST_SCHEDULES = 500
Patch = Callable[[pytest.MonkeyPatch], None]


def around(cls: type, name: str, change: Callable[..., Any]) -> Patch:
    """Replaces a method by `change`, which gets the original one before its own arguments."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, *args, **kwargs: change(original, self, *args, **kwargs))

    return plant


def sends_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    original = master._carry_out

    def carry_out(actions: list[Any], journal: Any, transport: Any, drop_weights: Any) -> Any:
        for action in actions:
            if isinstance(action, Record):
                journal.append(action.record)
            if isinstance(action, Send):
                transport.send(action.rank, action.message)
        rest = [action for action in actions if not isinstance(action, Record | Send)]
        return original(rest, journal, transport, drop_weights)

    monkeypatch.setattr(master, "_carry_out", carry_out)


def tells_twice(commit: Any, self: Ledger, trial: Any, outcome: Any) -> Any:
    finished = commit(self, trial, outcome)
    if trial.number % 8 == 7:
        self._strategy.tell(finished)
    return finished


def counts_too_few(ask: Any, self: Ledger, **kwargs: Any) -> Any:
    answer = ask(self, **kwargs)
    self.counted -= getattr(answer, "number", None) == 5
    return answer


def keeps_a_rank_busy(release: Any, self: RankPool, rank: int, number: int, **kwargs: Any) -> None:
    if number % 5:
        release(self, rank, number, **kwargs)


def takes_a_busy_rank(take: Any, self: RankPool, size: int, number: int, **kwargs: Any) -> Any:
    ranks = take(self, size, number, **kwargs)
    busy = [rank for rank, worker in self._workers.items() if worker.assigned and rank not in (ranks or ())]
    return (*ranks[:-1], busy[0]) if ranks and size > 1 and busy else ranks


def commits_out_of_order(advance: Any, self: VirtualOrder, **kwargs: Any) -> Any:
    steps = advance(self, **kwargs)
    ready = [event for event in sorted(self._to_commit) if event[1] in self._outcomes]
    for event in ready[:1]:
        self._to_commit.remove(event)
        heapq.heapify(self._to_commit)
        steps.append(self._commit(event[1]))
    return steps


def keeps_the_window_small(advance: Any, self: VirtualOrder, **kwargs: Any) -> Any:
    self._limit = self._virtual_gangs - 1
    return advance(self, **kwargs)


def runs_results_again(restore: Any, self: Coordinator, history: Any, state: Any, **kwargs: Any) -> None:
    restore(self, history, state, **kwargs)
    for entry in history.entries.values():
        if entry.outcome is not None and entry.commit is None and entry.trial.runs:
            self._wait(entry.trial)


def forgets_the_trial_of_a_dead_rank(wait: Any, self: Coordinator, trial: Any, *, reason: str, at: float) -> None:
    if "died" not in reason:
        wait(self, trial, reason=reason, at=at)


def gives_up_too_early(wait: Any, self: Coordinator, trial: Any, *, reason: str, at: float) -> None:
    self._lost[trial.number] = self._lost.get(trial.number, 0) + 1
    wait(self, trial, reason=reason, at=at)
    if trial.number in self._lost:
        self._lost[trial.number] -= 1


def drops_the_best(add: Any, self: Best, finished: Any) -> int | None:
    dropped = add(self, finished)
    return dropped if dropped is None or len(self.heap) < 2 else -max(self.heap)[1]


def forgets_a_rank_at_the_end(stop_all: Any, self: Coordinator) -> None:
    stop_all(self)
    last = max(index for index, action in enumerate(self._actions) if isinstance(action, Send))
    del self._actions[last]


def believes_earlier_attempts(on_report: Any, self: Coordinator, report: Any, **kwargs: Any) -> None:
    running = self.running.get(report.number)
    if running is not None and report.broken:
        running.attempt = report.attempt
    on_report(self, report, **kwargs)


FAULTS: dict[str, Patch] = {
    "tasks leave before their records are durable": sends_before_the_sync,
    "one trial in eight is told twice": around(Ledger, "commit", tells_twice),
    "one trial does not count in the budget": around(Ledger, "ask", counts_too_few),
    "ranks that are done with one trial in five stay busy": around(RankPool, "release", keeps_a_rank_busy),
    "a gang gets a rank that has a trial": around(RankPool, "take", takes_a_busy_rank),
    "results are told before those that virtual time puts first": around(VirtualOrder, "advance", commits_out_of_order),
    "the virtual window is one too small": around(VirtualOrder, "advance", keeps_the_window_small),
    "a resume runs again what was finished but not told": around(Coordinator, "restore", runs_results_again),
    "the trial of a dead rank is forgotten": around(Coordinator, "_wait_or_give_up", forgets_the_trial_of_a_dead_rank),
    "a trial is given up one attempt too early": around(Coordinator, "_wait_or_give_up", gives_up_too_early),
    "a report of an earlier attempt is taken for one of the present": around(
        Coordinator, "_on_report", believes_earlier_attempts
    ),
    "the weights of the best are dropped": around(Best, "add", drops_the_best),
    "the last rank is not told to stop": around(Coordinator, "_stop_all", forgets_a_rank_at_the_end),
}


@pytest.fixture(scope="module", autouse=True)
def references() -> None:
    """Histories of undisturbed searches, made before anything is planted."""
    for kind in schedules.JOBS:
        schedules.undisturbed(kind)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    for number in range(MOST_SCHEDULES):
        try:
            schedules.run(number)
        except AssertionError:
            return
    pytest.fail(f"{MOST_SCHEDULES} schedules did not find that {fault}")

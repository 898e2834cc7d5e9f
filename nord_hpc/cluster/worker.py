"""What a worker does with a task: evaluates it as a member of its gang, and turns whatever happens into a report.

Where tasks come from and reports go is left to the transports, whose mirror this is.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from nord_hpc.cluster.messages import Report, Task, TestReport, TestTask
from nord_hpc.errors import BadInput, GangBroken, Infeasible, SearchStopped, TrialFailed
from nord_hpc.interfaces import Control, DataParallel, Evaluator, Gang
from nord_hpc.trial import FailureKind, Outcome, TrialState

log = logging.getLogger(__name__)


class Connect(Protocol):
    """Opens the data-parallel backend of a gang."""

    def prepare(self, size: int) -> None:
        """Do beforehand what takes long and needs no partners, for a gang of that size."""

    def __call__(self, gang: Any) -> DataParallel:
        """Open it; the members call it together."""


class WorkerControl:
    """The `Control` of one attempt: its time limit, and whether the search stops."""

    def __init__(self, limit_seconds: float, stopped: Callable[[], bool]) -> None:
        self._limit_seconds = limit_seconds
        self._ends = time.monotonic() + limit_seconds
        self._stopped = stopped

    def check(self) -> None:
        if self._stopped():
            raise SearchStopped
        if time.monotonic() > self._ends:
            raise TrialFailed(
                f"it took more than {self._limit_seconds:g} s (limits.trial_seconds)", kind=FailureKind.TIME_LIMIT.value
            )


def evaluate(task: Task, *, evaluator: Evaluator, gang: Gang, control: Control, rank: int, host: str) -> Report:
    """Evaluate a task as one member of its gang. Never raises an `Exception`."""
    outcome: Outcome | None = None
    broken: str | None = None
    started = time.perf_counter()
    try:
        result = evaluator.evaluate(task.trial, gang=gang, control=control, keep_above=task.keep_above)
        outcome = result if gang.rank == 0 else None
    except SearchStopped:
        return stopped(task, rank=rank)
    except GangBroken as error:
        broken = f"the gang broke: {error}"
    except BadInput as error:
        return Report(task.epoch, rank, task.trial.number, task.attempt, None, bad_input=str(error))
    except Infeasible as error:
        outcome = _failed(error, FailureKind.EXCEPTION, error.reason, started=started, rank=rank, host=host)
    except TrialFailed as error:
        outcome = _failed(error, FailureKind(error.kind), str(error), started=started, rank=rank, host=host)
    except MemoryError as error:
        outcome = _failed(error, FailureKind.OUT_OF_MEMORY, "out of memory", started=started, rank=rank, host=host)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome = _failed(error, FailureKind.EXCEPTION, reason, started=started, rank=rank, host=host)
    return Report(task.epoch, rank, task.trial.number, task.attempt, outcome, broken)


def stopped(task: Task, *, rank: int) -> Report:
    """The report of a task that was left, or not begun, because the search stops."""
    return Report(task.epoch, rank, task.trial.number, task.attempt, None, stopped=True)


def test(task: TestTask, *, evaluator: Evaluator, control: Control, rank: int) -> TestReport:
    """Score the best trial on the test part. Never raises an `Exception`."""
    try:
        metrics = evaluator.test(task.trial, control=control)
    except Exception as error:
        log.exception("trial %d could not be scored on the test part", task.trial.number)
        return TestReport(task.epoch, rank, task.trial.number, None, f"{type(error).__name__}: {error}")
    return TestReport(task.epoch, rank, task.trial.number, metrics)


def _failed(error: Exception, kind: FailureKind, reason: str, *, started: float, rank: int, host: str) -> Outcome:
    log.info("a trial failed on rank %d: %s", rank, reason)
    return Outcome(
        state=TrialState.FAILED,
        failure=kind,
        reason=reason,
        traceback="".join(traceback.format_exception(error)),
        seconds=time.perf_counter() - started,
        rank=rank,
        host=host,
    )

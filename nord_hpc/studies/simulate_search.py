"""One search in this process, in virtual time, with the scheduler of every search; the parts are handed in, made.

For evaluators that look a candidate up in a table or compute it: there is no journal, no rank and no run folder, and
the history is that of a run with these. Trials are evaluated one after the other, each when its result is waited for.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nord_hpc.cluster import worker
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.messages import Task
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_inline import InlineGang
from nord_hpc.cluster.trial_maker import TrialMaker
from nord_hpc.errors import BadInput, NordError, SearchStopped
from nord_hpc.interfaces import DataParallel, Evaluator, Strategy
from nord_hpc.job import Job
from nord_hpc.studies.incumbent import Incumbent, RunResult
from nord_hpc.trial import FinishedTrial, Outcome, Trial

RANK = 1
UNLIMITED_SECONDS = 1e9


def simulate(
    job: Job,
    *,
    strategy: Strategy,
    maker: TrialMaker,
    evaluator: Evaluator,
    first: Sequence[FirstCandidate] = (),
    stopped: Callable[[], bool] = lambda: False,
    on_commit: Callable[[FinishedTrial], None] = lambda finished: None,
) -> RunResult:
    """Run a search to the end of its budget.

    Args:
        maker: makes trials for `evaluator`.
        first: candidates that come before the strategy's own.
        stopped: says whether to leave, between two trials.
        on_commit: called for each trial, in commit order.

    Raises:
        BadInput: the job has no budget that ends in virtual time, or too many candidates in a row are infeasible.
        SearchStopped: `stopped` said so.
        StrategyStuck: the strategy waits for results although none is outstanding.
    """
    if job.budget.trials is None and job.budget.simulated_seconds is None:
        raise BadInput("budget.hours: is wall time, which a simulated search has none of; set trials or " + SIMULATED)
    if job.order.mode != "virtual":
        raise BadInput("order.mode: arrival depends on wall time; set virtual for a simulated search")
    scheduler = make_scheduler(job, strategy=strategy, maker=maker, first=first)
    incumbent = Incumbent(job)
    evaluate = _Evaluation(evaluator, stopped)
    began = time.perf_counter()
    while not scheduler.finished:
        for step in scheduler.advance(room=job.order.virtual_gangs):
            if isinstance(step, FinishedTrial):
                incumbent.add(step.trial, step.outcome, seconds=step.trial.virtual_finish / 1e6)
                on_commit(step)
        if scheduler.ledger.hopeless is not None:
            raise BadInput(scheduler.ledger.hopeless)
        number = scheduler.blocking()
        if number is not None:
            scheduler.finish(number, evaluate(scheduler.uncommitted[number]))
        elif not scheduler.finished:
            raise NordError(f"the search cannot go on after {scheduler.ledger.n_committed} trials")
    test = {} if incumbent.best is None else evaluator.test(incumbent.best, control=evaluate.control)
    return incumbent.result(
        history_sha256=scheduler.ledger.digest.hexdigest(),
        wall_seconds=time.perf_counter() - began,
        test=test,
    )


SIMULATED = "simulated_seconds"


class _Evaluation:
    """Evaluates trials in this process as a worker would, failures and all."""

    def __init__(self, evaluator: Evaluator, stopped: Callable[[], bool]) -> None:
        self.control = worker.WorkerControl(UNLIMITED_SECONDS, stopped)
        self._evaluator = evaluator
        self._gang = InlineGang(_refuse)
        self._host = socket.gethostname()

    def __call__(self, trial: Trial) -> Outcome:
        task = Task(epoch=0, attempt=1, trial=trial, ranks=(RANK,), limit_seconds=UNLIMITED_SECONDS, keep_above=None)
        report = worker.evaluate(
            task, evaluator=self._evaluator, gang=self._gang, control=self.control, rank=RANK, host=self._host
        )
        if report.bad_input is not None:
            raise BadInput(report.bad_input)
        if report.outcome is None:
            raise SearchStopped
        return report.outcome


def _refuse(gang: Any) -> DataParallel:
    raise BadInput("this evaluator trains, which a simulated search cannot; set compare.runs to folders")


def keeps_nothing(job: Job) -> Path:
    """Where an evaluator of a simulated search would keep weights, which tables have none of."""
    return job.folder

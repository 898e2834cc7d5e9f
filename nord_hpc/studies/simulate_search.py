"""One search in this process, in virtual time, with the scheduler of every search; the parts are handed in, made.

For evaluators that look a candidate up in a table or compute it: there is no journal, no rank and no run folder, and
the history is that of a run with these. Trials are evaluated one after the other, each when its result is waited for.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from nord_hpc.cluster import worker
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.messages import Task
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_inline import InlineGang
from nord_hpc.cluster.trial_maker import TrialMaker
from nord_hpc.errors import BadInput, SearchStopped
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
    """Run a search to the end of its budget, which is one of trials or of virtual time.

    Args:
        maker: makes trials for `evaluator`.
        first: candidates that come before the strategy's own.
        stopped: says whether to leave, between two trials.
        on_commit: called for each trial, in commit order.

    Raises:
        BadInput: too many candidates in a row are infeasible, or the evaluator trains.
        SearchStopped: `stopped` said so.
        StrategyStuck: the strategy waits for results although none is outstanding.
    """
    scheduler = make_scheduler(job, strategy=strategy, maker=maker, first=first)
    incumbent = Incumbent(job)
    evaluate = _Evaluation(evaluator, stopped)
    began = time.perf_counter()
    while not scheduler.finished:
        for step in scheduler.advance(room=job.order.virtual_gangs):
            if isinstance(step, FinishedTrial):
                trial = step.trial
                rank_seconds = trial.cost / 1e6 * trial.runs
                incumbent.add(trial, step.outcome, seconds=trial.virtual_finish / 1e6, rank_seconds=rank_seconds)
                on_commit(step)
        if scheduler.ledger.hopeless is not None:
            raise BadInput(scheduler.ledger.hopeless)
        number = scheduler.blocking()
        if number is not None:
            scheduler.finish(number, evaluate(scheduler.uncommitted[number]))
    best = incumbent.best if job.objective.test else None
    test = {} if best is None else evaluator.test(best, control=evaluate.control)
    return incumbent.result(
        history_sha256=scheduler.ledger.digest.hexdigest(),
        wall_seconds=time.perf_counter() - began,
        test=test,
    )


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
    raise BadInput("this evaluator trains, which a search in virtual time cannot")

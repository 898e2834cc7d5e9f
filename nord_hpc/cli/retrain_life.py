"""One life of a retraining, on one process or on the ranks of a world: train from the newest state on, test, record.

What is trained, and whether another life follows a lost one, is left to `retrain`.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nord_hpc import __version__
from nord_hpc.cli import wiring
from nord_hpc.cli.machine import fingerprint, source_commit
from nord_hpc.cluster import parts, worker
from nord_hpc.cluster.messages import Report, Setup, Stop, Task
from nord_hpc.cluster.polling import wait_until
from nord_hpc.cluster.transport_inline import InlineGang
from nord_hpc.errors import SearchStopped
from nord_hpc.interfaces import Control, Evaluator
from nord_hpc.job import Job
from nord_hpc.logs import log_to_file
from nord_hpc.store.retrain_folder import RetrainFolder
from nord_hpc.trial import Json, Outcome, TrialState

if TYPE_CHECKING:
    from nord_hpc.cluster.transport_mpi import Mailbox, World

LEADER = 0
REPORT_SECONDS = 30.0
"""From the leader's own report until those of its partners are given up."""

FINISHED, STOPPED, FAILED, REFUSED, BROKEN = "finished", "stopped", "failed", "refused", "broken"
"""How a life ends, if nothing kills it: with a result; on request; by the network's fault; by the job's or the
machine's; because a partner is gone, which another life may mend."""


def run_inline(folder: RetrainFolder, *, on_tick: Callable[[], None]) -> str:
    """Live in this process alone; returns how it ended."""
    signals = wiring.StopSignals()
    job, evaluator = _prepare(folder, rank=0)
    os.environ.setdefault("OMP_NUM_THREADS", str(job.resources.threads))
    life = _begin(folder, job, ranks=1)
    control = worker.WorkerControl(math.inf, _ticking(signals, on_tick))
    task = _task(folder, life=life, size=1)
    gang = InlineGang(wiring.Connector(job))
    report = worker.evaluate(
        task, evaluator=evaluator, gang=gang, control=control, rank=LEADER, host=socket.gethostname()
    )
    return _end(folder, job, [report], evaluator=evaluator, control=control)


def run_leader(world: World, mailbox: Mailbox, folder: RetrainFolder, *, on_tick: Callable[[], None]) -> str:
    """Live as the first rank of a world; returns how it ended."""
    signals = wiring.StopSignals()
    job, evaluator = _prepare(folder, rank=LEADER)
    life = _begin(folder, job, ranks=world.size)
    others = range(1, world.size)
    for rank in others:
        mailbox.send(rank, Setup(life, str(folder.path.resolve())))
    try:
        control = worker.WorkerControl(math.inf, _ticking(signals, on_tick))
        reports = [_take_part(world, folder, job, evaluator, control, life=life)]
        ends = time.monotonic() + REPORT_SECONDS
        while len(reports) < world.size - len(world.failed) and wait_until(mailbox.arrived, ends - time.monotonic()):
            reports += [message for _, message in mailbox.receive_all()]
        return _end(folder, job, reports, evaluator=evaluator, control=control)
    finally:
        for rank in others:
            mailbox.send(rank, Stop(life))
        mailbox.flush(5.0)


def refuse(world: World, mailbox: Mailbox) -> None:
    """Tell the other ranks that there is nothing to do."""
    for rank in range(1, world.size):
        mailbox.send(rank, Setup(0, None))
    mailbox.flush(5.0)


def run_partner(world: World, mailbox: Mailbox) -> None:
    """Live as another rank of a world, until the leader says stop."""
    setup = _next(world, mailbox)
    if setup is None or setup.folder is None:
        return
    signals = wiring.StopSignals()
    folder = RetrainFolder(Path(setup.folder))
    job, evaluator = _prepare(folder, rank=world.rank)
    control = worker.WorkerControl(math.inf, signals.stopped)
    mailbox.send(LEADER, _take_part(world, folder, job, evaluator, control, life=setup.epoch))
    while not isinstance(_next(world, mailbox), Stop | None):
        pass


def _prepare(folder: RetrainFolder, *, rank: int) -> tuple[Job, Evaluator]:
    job = folder.run.job()
    log_to_file(folder.run.logs / f"rank-{rank}.log")
    return job, parts.make_evaluator(job, folder.run.weights)


def _take_part(
    world: World, folder: RetrainFolder, job: Job, evaluator: Evaluator, control: Control, *, life: int
) -> Report:
    from nord_hpc.cluster.transport_mpi import MpiGang

    task = _task(folder, life=life, size=world.size)
    gang = MpiGang(world, task, wiring.Connector(job), control)
    return worker.evaluate(
        task, evaluator=evaluator, gang=gang, control=control, rank=world.rank, host=socket.gethostname()
    )


def _task(folder: RetrainFolder, *, life: int, size: int) -> Task:
    return Task(life, folder.plan().trial, attempt=1, ranks=tuple(range(size)), limit_seconds=math.inf, keep_above=None)


def _begin(folder: RetrainFolder, job: Job, *, ranks: int) -> int:
    """Record that a life begins; returns its number, from 1."""
    life: int = 1 + sum(record["kind"] == "began" for record in folder.lives())
    record = {
        "kind": "began",
        "life": life,
        "at": time.time(),
        "ranks": ranks,
        "host": socket.gethostname(),
        "machine": fingerprint(job),
        "commit": source_commit(),
        "after_epoch": len(folder.curve()),
    }
    folder.add_life(record)
    return life


def _end(folder: RetrainFolder, job: Job, reports: list[Report], *, evaluator: Evaluator, control: Control) -> str:
    """Test what has been trained and leave the result, or record why there is none."""
    how, reason = _how(reports)
    if how == FINISHED:
        outcome = next(report.outcome for report in reports if report.outcome is not None)
        try:
            test = evaluator.test(folder.plan().trial, control=control)
            folder.finish(_result(folder, job, outcome, test))
        except SearchStopped:
            how = STOPPED
    folder.add_life({"kind": how, "at": time.time(), "reason": reason})
    return how


def _how(reports: list[Report]) -> tuple[str, str | None]:
    """How a life ended, from what its ranks say: a cause counts before its consequences."""
    for report in reports:
        if report.bad_input is not None:
            return REFUSED, report.bad_input
    failed = [report.outcome for report in reports if report.outcome and report.outcome.state is TrialState.FAILED]
    if failed:
        return FAILED, failed[0].reason
    if any(report.stopped for report in reports):
        return STOPPED, None
    if any(report.outcome for report in reports):
        return FINISHED, None
    return BROKEN, next(report.broken for report in reports)


def _result(folder: RetrainFolder, job: Job, outcome: Outcome, test: dict[str, Json]) -> dict[str, Any]:
    plan = folder.plan()
    metrics = {name: value for name, value in outcome.metrics.items() if name != "curve"}
    weights = folder.weights_file
    return {
        "trial": plan.trial.number,
        "source": plan.source,
        "dataset": job.dataset.name,
        "space": job.space.name,
        "epochs": plan.trial.fidelity.epochs,
        "seed": plan.trial.seed,
        "descriptor_hash": plan.trial.descriptor_hash,
        "n_parameters": plan.trial.n_parameters,
        "multiply_adds": plan.trial.multiply_adds,
        "metric": job.objective.metric,
        "validation": metrics,
        "test": test,
        "curve": outcome.metrics["curve"],
        "weights": str(weights.relative_to(folder.path)),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "lives": [record for record in folder.lives() if record["kind"] == "began"],
        "seconds": _seconds(folder, now=time.time()),
        "provenance": {**outcome.provenance, "machine": fingerprint(job), "commit": source_commit()},
        "version": __version__,
    }


def _seconds(folder: RetrainFolder, *, now: float) -> float:
    """From the beginning of each life to its end; those that were killed left none and do not count."""
    total, began = 0.0, None
    for record in [*folder.lives(), {"kind": FINISHED, "at": now}]:
        if record["kind"] == "began":
            began = record["at"]
        elif began is not None:
            total += record["at"] - began
            began = None
    return total


def _ticking(signals: wiring.StopSignals, on_tick: Callable[[], None]) -> Callable[[], bool]:
    def stopped() -> bool:
        on_tick()
        return signals.stopped()

    return stopped


def _next(world: World, mailbox: Mailbox) -> Any:
    """The next message, however long it takes; None where the leader has died."""
    while LEADER not in world.failed:
        if wait_until(mailbox.arrived, 1.0):
            for _, message in mailbox.receive_all():
                return message
    return None

"""Wires the parts of a search together, for one process or for the ranks of a world, and runs it to an exit code."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nord_hpc import registry
from nord_hpc.cli.machine import fingerprint, source_commit
from nord_hpc.cluster import first_candidates, launch
from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.events import End
from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.messages import Setup, Stop
from nord_hpc.cluster.parts import make_evaluator, make_maker, make_space
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_inline import InlineTransport
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.interfaces import DataParallel, Evaluator, Transport
from nord_hpc.job import Job
from nord_hpc.logs import log_to_file
from nord_hpc.store import snapshot
from nord_hpc.store.history import History
from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import RunFolder, changed_fields
from nord_hpc.store.snapshot import Snapshots
from nord_hpc.trial import gang_size

if TYPE_CHECKING:
    from nord_hpc.cluster.transport_mpi import MpiTransport, World
    from nord_hpc.data_parallel import Backend

log = logging.getLogger(__name__)

Prepare = Callable[[int], RunFolder]
"""Makes or opens the run folder for a number of workers; raises `BadInput` before anything is written."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3
LEAVE_SECONDS = 20.0
"""From the end of the search until a rank that is stuck in leaving is ended."""


class StopSignals:
    """Remembers that the user or the batch system wants the search to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"signal {signal.Signals(number).name}"

    def stopped(self) -> bool:
        return self.reason is not None


def check(job: Job, *, n_workers: int = 0) -> None:
    """Refuse what cannot work before anything is written: parts that do not fit, data that are not there.

    Args:
        n_workers: that will be there; 0 where this is not known.

    Raises:
        BadInput: one line that says what to set.
    """
    try:
        make_maker(job, make_evaluator(job, job.folder))
        first_candidates.gather(job, make_space(job))
    except ValueError as error:
        raise BadInput(str(error)) from error
    file = registry.plugin_file(job.resources.backend)
    for missing in [name for name in (*job.code, file) if name is not None and not (job.folder / name).is_file()]:
        raise BadInput(f"code: there is no file {job.folder / missing}")
    if n_workers:
        check_gang(job, n_workers)


def check_resumable(folder: RunFolder, job: Job, *, accept_changes: bool) -> None:
    """Refuse a changed job that the recorded history does not fit, before the change is saved.

    Raises:
        BadInput: one line that names what changed, or what to set.
    """
    history = folder.history()
    check_unchanged(history, folder, job, accept_changes=accept_changes)
    try:
        evaluator = make_evaluator(job, folder.weights)
        _make_coordinator(folder, job, evaluator, history, ranks=(1,)).restore(history, None, at=0.0)
    except StoreError as error:
        raise BadInput(f"{folder.path}: {error}") from error


class Connector:
    """Opens the job's data-parallel backend for a gang."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def prepare(self, size: int) -> None:
        """Import what a gang of that size needs, which takes seconds the first time."""
        self._backend(size)

    def __call__(self, gang: Any) -> DataParallel:
        from nord_hpc.data_parallel import GangPlace

        place = GangPlace(
            rank=gang.rank,
            size=gang.size,
            key=getattr(gang, "key", "inline"),
            communicator=getattr(gang, "communicator", None),
        )
        return self._backend(gang.size).open(place)

    def _backend(self, size: int) -> Backend:
        from nord_hpc.data_parallel import choose

        return choose(self._job.resources.backend, size=size, folder=self._job.folder)


def check_gang(job: Job, n_workers: int) -> None:
    """Fewer ranks than a gang wants are fine where the fitness does not depend on them.

    Raises:
        BadInput: it does.
    """
    resources = job.resources
    n_workers = _n_active(job, n_workers)
    size = gang_size(wanted=resources.largest_gang, shards=resources.shards, n_workers=n_workers)
    _advise_virtual_gangs(job, n_workers // size)
    if size == resources.largest_gang:
        return
    if resources.exact:
        if n_workers > 1:
            log.warning(
                "resources: a trial may want %d ranks, but there are %d workers: gangs of at most %d are used",
                resources.largest_gang,
                n_workers,
                size,
            )
        return
    raise BadInput(
        f"resources.gang is {resources.gang}, but there are {n_workers} workers, and with the fast reduction the "
        f"fitness would depend on it; start {resources.largest_gang + 1} ranks or more, or set resources.gang={size} "
        f"or resources.reduction=exact"
    )


def _advise_virtual_gangs(job: Job, gangs: int) -> None:
    """Virtual order keeps real gangs busy only while there are clearly more virtual ones."""
    wanted = math.ceil(1.5 * gangs)
    if job.order.mode == "virtual" and job.order.virtual_gangs < wanted:
        log.warning(
            "%d gangs will wait for each other: order.virtual_gangs is %d, and %d or more keep them busy",
            gangs,
            job.order.virtual_gangs,
            wanted,
        )


def run_inline(folder: RunFolder, *, on_tick: Callable[[], None], accept_changes: bool = False) -> int:
    """Run or continue a search in this process alone; returns the exit code."""
    signals = StopSignals()
    job = folder.job()
    log_to_file(folder.logs / "rank-0.log")
    os.environ.setdefault("OMP_NUM_THREADS", str(job.resources.threads))
    evaluator = make_evaluator(job, folder.weights)
    transport = InlineTransport(evaluator, connect=Connector(job), machine=fingerprint(job), stopped=signals.stopped)
    return _master(
        folder, job, evaluator, transport, signals=signals, ranks=1, on_tick=on_tick, accept_changes=accept_changes
    )


def run_ranks(
    world: World,
    prepare: Prepare,
    *,
    on_tick: Callable[[], None],
    accept_changes: bool = False,
) -> int:
    """Be one rank of a search: rank 0 is the master, the others are workers; returns the exit code of this rank.

    Args:
        prepare: makes or opens the run folder; called on rank 0 alone.
    """
    if world.rank == 0:
        return _master_rank(world, prepare, on_tick=on_tick, accept_changes=accept_changes)
    return _worker_rank(world)


def _master_rank(world: World, prepare: Prepare, *, on_tick: Callable[[], None], accept_changes: bool) -> int:
    from nord_hpc.cluster.transport_mpi import MpiTransport

    transport = MpiTransport(world)
    signals = StopSignals()
    with _stops_the_others(world, transport):
        folder = prepare(world.size - 1)
        job = folder.job()
        log_to_file(folder.logs / "rank-0.log")
        return _master(
            folder,
            job,
            make_evaluator(job, folder.weights),
            transport,
            signals=signals,
            ranks=world.size,
            on_tick=on_tick,
            accept_changes=accept_changes,
        )


@contextlib.contextmanager
def _stops_the_others(world: World, transport: MpiTransport) -> Iterator[None]:
    """However the master's side ends, the workers end, too."""
    try:
        yield
    except (BadInput, StoreError):
        for rank in transport.worker_ranks():
            transport.send(rank, Setup(0, None))
            transport.send(rank, Stop(0))
        transport.flush(5.0)
        raise
    except Exception:
        _say_rank(world.rank)
        for rank in transport.worker_ranks():
            transport.send(rank, Stop(0))
        transport.flush(1.0)
        world.abort(FAILED)
        raise
    transport.flush(5.0)


def _worker_rank(world: World) -> int:
    from nord_hpc.cluster.transport_mpi import MasterLost, MpiWorker

    worker = MpiWorker(world)
    for number in STOP_SIGNALS:  # the master decides what a signal means, and tells all
        signal.signal(number, lambda n, _: worker.wish_to_stop(f"signal {signal.Signals(n).name} on rank {world.rank}"))
    setup = worker.setup()
    if setup.folder is None:
        return BAD_INPUT
    try:
        folder = RunFolder(Path(setup.folder))
        job = folder.job()
        log_to_file(folder.logs / f"rank-{world.rank}.log")
        evaluator = make_evaluator(job, folder.weights)
        n_active = _n_active(job, world.size - 1)
        worker.serve(evaluator, connect=Connector(job), machine=fingerprint(job), n_active=n_active)
    except MasterLost:
        worker.expel_master()
        return _succeed(world, folder, job, evaluator)
    except Exception:
        _say_rank(world.rank)
        world.abort(FAILED)
        raise
    return DONE


def _succeed(world: World, folder: RunFolder, job: Job, evaluator: Evaluator) -> int:
    """Go on as the master, from the journal, after the one before has died."""
    from nord_hpc.cluster.transport_mpi import MpiTransport

    log.warning("the master has died; rank %d takes its place", world.rank)
    transport = MpiTransport(world)
    signals = StopSignals()
    with _stops_the_others(world, transport):
        return _master(
            folder,
            job,
            evaluator,
            transport,
            signals=signals,
            ranks=world.size,
            on_tick=lambda: None,
            accept_changes=True,  # as far as they were accepted at the start of these ranks
            takes_over=True,
            rank=world.rank,
        )


def _n_active(job: Job, n_workers: int) -> int:
    """Workers that are no spares."""
    return max(1, n_workers - job.resources.spares)


def _master(
    folder: RunFolder,
    job: Job,
    evaluator: Evaluator,
    transport: Transport,
    *,
    signals: StopSignals,
    ranks: int,
    on_tick: Callable[[], None],
    accept_changes: bool,
    takes_over: bool = False,
    rank: int = 0,
) -> int:
    """Run the master's side to its end; whatever happens, the journal says how it ended.

    Args:
        ranks: that the launcher started.
        rank: of this master.
        takes_over: the master before has died, and what the workers have in hand goes on.
    """
    with Journal(folder.journal_file) as journal:
        history = History(journal.records)
        epoch = len(history.lives) + 1
        if takes_over and history.state != "running":  # it had come to its end
            for rank in transport.worker_ranks():
                transport.send(rank, Setup(epoch, str(folder.path.resolve())))
                transport.send(rank, Stop(epoch))
            return DONE if history.state == "finished" else INTERRUPTED
        check_unchanged(history, folder, job, accept_changes=accept_changes)
        coordinator = _make_coordinator(
            folder, job, evaluator, history, ranks=transport.worker_ranks(), n_active=_n_active(job, max(1, ranks - 1))
        )
        begin = {
            "kind": "run",
            "epoch": epoch,
            "ranks": ranks,
            "host": socket.gethostname(),
            "machine": fingerprint(job),
            "job": job.to_json(),
            "code": folder.code_digests(),
            "commit": source_commit(),
            "evaluated_on": evaluator.describe(),
            "takeover": takes_over,
            "master": rank,
        }
        # First what may be refused; nothing is written before it.
        state = snapshot.resume_state(folder.snapshot_file, history)
        coordinator.restore(history, state, at=transport.now(), takes_over=takes_over)
        if hasattr(evaluator, "data"):
            folder.keep_data(evaluator.data(), accept_changes=accept_changes)
        del history, state
        journal.append({**begin, "at": transport.now()})
        journal.sync()
        meter = MasterMeter()
        try:
            for rank in transport.worker_ranks():
                transport.send(rank, Setup(epoch, str(folder.path.resolve())))
            scheduler = coordinator.scheduler
            snapshots = Snapshots(folder, state=scheduler.state_dict, n_trials=lambda: scheduler.ledger.n_proposed)
            end = run_master(
                coordinator,
                transport=transport,
                journal=journal,
                meter=meter,
                drop_weights=folder.drop_weights,
                stop_reason=lambda: signals.reason,
                on_tick=_both(snapshots.on_tick, on_tick),
            )
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            journal.append({"kind": "ended", "state": "error", "reason": reason, "at": transport.now()})
            journal.sync()
            raise
        snapshots.write()
    return _exit_code(end)


def _make_coordinator(
    folder: RunFolder,
    job: Job,
    evaluator: Evaluator,
    history: History,
    *,
    ranks: tuple[int, ...],
    n_active: int | None = None,
) -> Coordinator:
    strategy, maker = make_maker(job, evaluator)
    first = first_candidates.load(folder.first_candidates_file)
    used = sum(life.last_at - life.began_at for life in history.lives)
    return Coordinator(
        job,
        scheduler=make_scheduler(job, strategy=strategy, maker=maker, first=first),
        epoch=len(history.lives) + 1,
        ranks=ranks,
        seconds_left=None if job.budget.hours is None else max(0.0, job.budget.hours * 3600.0 - used),
        n_active=n_active,
        fewest_workers=math.ceil((n_active or 1) / 2) if launch.supervised() else 1,
    )


def check_unchanged(history: History, folder: RunFolder, job: Job, *, accept_changes: bool) -> None:
    """Refuse to continue a run with another job or other plug-in files, unless told to accept."""
    if not history.lives:
        return
    first = history.lives[0]
    changed = changed_fields(first.job, job.to_json())
    changed += [f"code/{name}" for name in changed_fields(first.code, folder.code_digests())]
    if changed and not accept_changes:
        raise BadInput(
            f"{folder.path}: the job is not the one that was started: {', '.join(changed)} changed; "
            f"restore it, start a new run, or accept with --accept-changes"
        )
    machine = fingerprint(job)
    if machine != history.lives[-1].machine:
        names = ", ".join(changed_fields(history.lives[-1].machine, machine))
        log.warning(
            "this run continues on another machine (%s): trials may differ from the first machine's to the bit", names
        )


def _exit_code(end: End) -> int:
    return DONE if end.state == "finished" else INTERRUPTED


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


def _say_rank(rank: int) -> None:
    error = sys.exc_info()[1]
    text = traceback.format_exc()
    log.info("rank %d ends: %s", rank, text)  # to its log file; people get it once, below
    sys.stderr.write(f"rank {rank} on {socket.gethostname()}: {type(error).__name__}\n{text}")
    sys.stderr.flush()


@dataclass(slots=True)
class Leaving:
    """The exit code with which the process leaves."""

    code: int = FAILED


@contextlib.contextmanager
def bounded_exit() -> Iterator[Leaving]:
    """After the body, the process ends within `LEAVE_SECONDS`, even if MPI_Finalize or a thread of the user hangs."""
    leaving = Leaving()
    yield leaving
    if launch.survives_deaths():  # MPI_Finalize may hang after a death, and ranks need not have heard of one
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()
        os._exit(leaving.code)

    def leave() -> None:
        log.warning("leaving took more than %.0f s; the process ends now", LEAVE_SECONDS)
        os._exit(leaving.code)

    timer = threading.Timer(LEAVE_SECONDS, leave)
    timer.daemon = True
    timer.start()
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()  # here, where the timer still runs, and not at the interpreter's very end


def on_stop_signals(call: Callable[[], None]) -> None:
    """Call this for each request of the user or the batch system to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: call())

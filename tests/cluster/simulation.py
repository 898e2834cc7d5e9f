"""A whole search on the simulated transport, through any number of lives, with its invariants checked."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from cluster.invariants import Watch, WatchedCoordinator, WatchedJournal, WatchedStrategy, WatchedTransport, World

from nord_hpc import job as jobs
from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.events import End
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_simulated import (
    Evaluation,
    Faults,
    SimulatedCrash,
    SimulatedJournal,
    SimulatedTransport,
    failed,
)
from nord_hpc.cluster.trial_maker import TrialMaker
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.interfaces import NO_SETTINGS
from nord_hpc.job import Job
from nord_hpc.seeding import derived_seed
from nord_hpc.store.history import History
from nord_hpc.store.journal import parse
from nord_hpc.trial import Examination, FailureKind, Fidelity, Json, Outcome, Trial, TrialState

MAX_LIVES = 300


def make_job(**changes: Any) -> Job:
    """A small synthetic job; `changes` are sections that replace its own."""
    data: dict[str, Any] = {
        "name": "simulated",
        "seed": 3,
        "space": {"name": "conv_graph", "max_layers": 3},
        "strategy": {"name": "regularized_evolution", "population": 6, "sample": 3},
        "evaluator": {"name": "synthetic", "seconds": 60.0},
        "training": {"epochs": 1},
        "budget": {"trials": 24},
        "resources": {"shards": 2, "gang": 2},
        "order": {"virtual_gangs": 5, "run_ahead": 3},
        "limits": {"attempts": 1000, "trial_seconds": 5000.0},
    }
    return jobs.from_mapping({**data, **changes}, folder=Path())


@dataclass
class Simulation:
    """What happened: the history, the trials told to the strategy in each life, and the attempts that began."""

    history: History = field(default_factory=History)
    told: list[list[int]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    lives: int = 0
    takeovers: int = 0
    stops: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Circumstances:
    """What a search meets, beside the faults of its workers.

    Attributes:
        n_workers: ranks beside the master's, at each start.
        n_spares: of these, those that wait for the death of another.
        take_over: probability that another rank goes on when the master dies, instead of a start of all ranks.
        stop: probability that a signal ends a life of the search.
        nap_seconds: see `SimulatedTransport`.
    """

    n_workers: int
    n_spares: int = 0
    faults: Faults = field(default_factory=Faults)
    take_over: float = 0.0
    stop: float = 0.0
    nap_seconds: float = 5.0


class Choosy:
    """An evaluator that finds one network in nine infeasible, around a real one."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        if int(descriptor.canonical_hash()[:8], 16) % 9 == 0:
            raise Infeasible("this network is one of the ninth part")
        examination: Examination = self._evaluator.examine(descriptor, fidelity)
        return examination


def candidate_outcome(trial: Trial) -> Outcome:
    """A function of the trial alone: some candidates fail by themselves, in each of the ways."""
    seconds = trial.cost / 1e6 / trial.gang
    if trial.seed % 11 == 0:
        outcome = failed("this candidate always fails", list(FailureKind)[trial.seed // 11 % 4])
        return replace(outcome, seconds=seconds)
    return Outcome(state=TrialState.COMPLETED, fitness=(trial.seed % 9973) / 9973, seconds=seconds)


def simulate(
    job: Job,
    *,
    seed: int,
    n_workers: int,
    faults: Faults | None = None,
    first: Sequence[FirstCandidate] = (),
    reference: list[str] | None = None,
) -> Simulation:
    """Run a search to its end, resuming after each crash or interruption of the master; see `search`."""
    circumstances = Circumstances(n_workers, faults=faults or Faults())
    return search(job, circumstances, seed=seed, first=first, reference=reference)


def search(
    job: Job,
    circumstances: Circumstances,
    *,
    seed: int,
    first: Sequence[FirstCandidate] = (),
    reference: list[str] | None = None,
) -> Simulation:
    """Run a search through any number of lives to its end, with all invariants checked at every step.

    Args:
        seed: of the faults and delays; the search has its own in the job.
        reference: history lines of an undisturbed search, which this one must repeat.
    """
    rng = random.Random(seed)
    watch = Watch(job, outcome=candidate_outcome, reference=reference)
    result = Simulation(told=watch.told)
    durable, records = b"", list[Json]()
    transport: SimulatedTransport | None = None
    while result.lives < MAX_LIVES:
        result.lives += 1
        takes_over = transport is not None
        if transport is None:
            transport = _new_ranks(circumstances, rng=rng, began_at=result.seconds)
            result.evaluations, earlier = transport.evaluations, result.evaluations
            result.evaluations[:0] = earlier
        journal = WatchedJournal(durable, rng=rng, crash=circumstances.faults.crash, watch=watch)
        end = None
        with contextlib.suppress(SimulatedCrash):
            end = _one_life(
                job, circumstances, journal, records, transport, watch, first, rng=rng, takes_over=takes_over
            )
        (durable, records), result.seconds = _recovered(journal), transport.now()
        if end is not None:
            assert transport.alive <= transport.stopped, "a rank was left waiting"
            result.stops += end.state == "interrupted"
            if end.state == "finished":
                break
            transport = None
        elif transport.serves and rng.random() < circumstances.take_over and transport.take_over():
            result.takeovers += 1
        else:
            transport = None
    assert result.lives < MAX_LIVES, f"no end after {MAX_LIVES} lives"
    result.started = [evaluation.task.trial.number for evaluation in result.evaluations]
    result.history, result.lines = watch.history, watch.lines
    watch.check_end()
    return result


def _recovered(journal: SimulatedJournal) -> tuple[bytes, list[Json]]:
    """The durable bytes without a torn tail, and their records."""
    records, end = [], 0
    durable = journal.durable
    for record, end in parse(durable):  # noqa: B007
        records.append(record)
    return durable[:end], records


def _new_ranks(circumstances: Circumstances, *, rng: random.Random, began_at: float) -> SimulatedTransport:
    return SimulatedTransport(
        circumstances.n_workers,
        rng=rng,
        faults=circumstances.faults,
        outcome=candidate_outcome,
        began_at=began_at,
        nap_seconds=circumstances.nap_seconds,
    )


def _one_life(
    job: Job,
    circumstances: Circumstances,
    journal: WatchedJournal,
    records: list[Json],
    transport: SimulatedTransport,
    watch: Watch,
    first: Sequence[FirstCandidate],
    *,
    rng: random.Random,
    takes_over: bool,
) -> End:
    history, ranks, at = History(records), transport.worker_ranks(), transport.now()
    n_active = circumstances.n_workers - circumstances.n_spares
    watch.life_begins(records, World(ranks, n_active, takes_over))
    coordinator = make_coordinator(
        job, watch=watch, epoch=len(history.lives) + 1, ranks=ranks, first=first, n_active=n_active, history=history
    )
    coordinator.restore(history, None, at=at, takes_over=takes_over)
    record = {"kind": "run", "ranks": 0, "host": "simulated", "machine": {}, "job": {}, "code": {}, "evaluated_on": ""}
    journal.append({**record, "takeover": takes_over, "at": at})
    journal.sync()
    transport.serves = True
    stops_at = at + rng.expovariate(1 / 300.0) if rng.random() < circumstances.stop else math.inf
    return run_master(
        cast(Coordinator, WatchedCoordinator(coordinator, watch)),
        transport=WatchedTransport(transport, watch, coordinator),
        journal=journal,
        meter=MasterMeter(),
        drop_weights=watch.dropped,
        stop_reason=lambda: "signal SIGTERM" if transport.now() > stops_at else None,
    )


def make_coordinator(
    job: Job,
    *,
    epoch: int,
    ranks: tuple[int, ...],
    watch: Watch | None = None,
    first: Sequence[FirstCandidate] = (),
    n_active: int | None = None,
    history: History | None = None,
) -> Coordinator:
    """A coordinator with the parts that the job names; conv_graph has one network in nine that is infeasible."""
    evaluator_class, evaluator_options = jobs.options_of("evaluator", job.evaluator, folder=job.folder)
    evaluator = evaluator_class(evaluator_options, job=job, folder=job.folder, weights_folder=job.folder)
    if job.evaluator.name == "synthetic":
        evaluator = Choosy(evaluator)
    space_class, space_options = jobs.options_of("space", job.space, folder=job.folder)
    space = space_class(space_options)
    strategy_class, options = jobs.options_of("strategy", job.strategy, folder=job.folder)
    seed = derived_seed(job.seed, "strategy")
    strategy = strategy_class(options, space=space, seed=seed, full_fidelity=job.full_fidelity)
    continues = bool(getattr(strategy, "continues_trials", False))
    maker = TrialMaker(job, space=space, evaluator=evaluator, keeps_states=continues)
    watched = strategy if watch is None else WatchedStrategy(strategy, watch)
    used = sum(life.last_at - life.began_at for life in history.lives) if history is not None else 0.0
    return Coordinator(
        job,
        scheduler=make_scheduler(job, strategy=watched, maker=maker, first=first),
        epoch=epoch,
        ranks=ranks,
        seconds_left=None if job.budget.hours is None else max(0.0, job.budget.hours * 3600.0 - used),
        n_active=n_active,
    )

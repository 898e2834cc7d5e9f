"""A whole search on the simulated transport, through any number of lives, with its invariants checked."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nord_hpc import job as jobs
from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_simulated import (
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
from nord_hpc.trial import Examination, Fidelity, FinishedTrial, Json, Outcome, Trial, TrialState

MAX_LIVES = 200


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

    history: History
    told: list[list[int]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    lives: int = 0
    seconds: float = 0.0


class Recording:
    """A strategy that notes what it is told, around a real one."""

    def __init__(self, strategy: Any, told: list[int]) -> None:
        self._strategy = strategy
        self._told = told

    def tell(self, finished: FinishedTrial) -> None:
        self._told.append(finished.trial.number)
        self._strategy.tell(finished)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)


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
    """A function of the trial alone: some candidates fail by themselves."""
    if trial.seed % 11 == 0:
        return failed("this candidate always fails")
    return Outcome(state=TrialState.COMPLETED, fitness=(trial.seed % 9973) / 9973, seconds=1.0)


def simulate(
    job: Job, *, seed: int, n_workers: int, faults: Faults | None = None, first: Sequence[FirstCandidate] = ()
) -> Simulation:
    """Run a search to its end, resuming after each crash or interruption of the master."""
    rng = random.Random(seed)
    faults = faults or Faults()
    durable = b""
    result = Simulation(History())
    now = 0.0
    while result.lives < MAX_LIVES:
        result.lives += 1
        journal = SimulatedJournal(durable, rng=rng, crash=faults.crash)
        transport = SimulatedTransport(n_workers, rng=rng, faults=faults, outcome=candidate_outcome, began_at=now)
        told: list[int] = []
        result.told.append(told)
        ended = None
        with contextlib.suppress(SimulatedCrash):
            ended = _one_life(job, journal, transport, told, first)
        result.started += transport.started
        durable, now = journal.whole(), transport.now()
        if ended is not None:
            assert transport.stopped == transport.alive, "a rank was left waiting"
            if ended.state == "finished":
                break
    result.history = History(SimulatedJournal(durable).records)
    result.seconds = now
    check_invariants(job, result)
    return result


def _one_life(
    job: Job,
    journal: SimulatedJournal,
    transport: SimulatedTransport,
    told: list[int],
    first: Sequence[FirstCandidate],
) -> Any:
    history = History(journal.records)
    epoch, ranks = len(history.lives) + 1, transport.worker_ranks()
    coordinator = make_coordinator(job, told=told, epoch=epoch, ranks=ranks, first=first)
    record = {"kind": "run", "ranks": 0, "host": "simulated", "machine": {}, "job": {}, "code": {}, "evaluated_on": ""}
    journal.append({**record, "at": transport.now()})
    coordinator.restore(history, None, at=transport.now())
    return run_master(
        coordinator,
        transport=transport,
        journal=journal,
        meter=MasterMeter(),
        drop_weights=lambda number: None,
        stop_reason=lambda: None,
    )


def make_coordinator(
    job: Job, *, told: list[int], epoch: int, ranks: tuple[int, ...], first: Sequence[FirstCandidate] = ()
) -> Coordinator:
    evaluator_class, evaluator_options = jobs.options_of("evaluator", job.evaluator, folder=job.folder)
    evaluator = evaluator_class(evaluator_options, job=job, folder=job.folder, weights_folder=job.folder)
    space_class, space_options = jobs.options_of("space", job.space, folder=job.folder)
    space = space_class(space_options)
    strategy_class, options = jobs.options_of("strategy", job.strategy, folder=job.folder)
    seed = derived_seed(job.seed, "strategy")
    strategy = strategy_class(options, space=space, seed=seed, full_fidelity=job.full_fidelity)
    continues = bool(getattr(strategy, "continues_trials", False))
    maker = TrialMaker(job, space=space, evaluator=Choosy(evaluator), keeps_states=continues)  # type: ignore[arg-type]
    scheduler = make_scheduler(job, strategy=Recording(strategy, told), maker=maker, first=first)
    return Coordinator(job, scheduler=scheduler, epoch=epoch, ranks=ranks, seconds_left=None)


def check_invariants(job: Job, result: Simulation) -> None:
    """What must hold after any search that came to its end."""
    history = result.history
    assert history.state == "finished"
    states = Counter(entry.state for entry in history.entries.values())
    assert set(states) <= {"completed", "failed", "infeasible"}, states
    if job.budget.trials is not None:
        counted = [e for e in history.entries.values() if e.trial.infeasible is None and e.trial.imported is None]
        assert len(counted) == job.budget.trials
    assert sorted(history.commit_order) == sorted(history.entries)
    assert sorted(history.entries) == list(range(len(history.entries)))
    for told in result.told:
        assert len(told) == len(set(told)), "a trial was told twice in one life"
    assert result.told[-1] == history.commit_order, "the last life was not told the recorded history"
    for number, entry in history.entries.items():
        finished = [attempt for attempt in entry.attempts if attempt.finished_at is not None]
        assert len(finished) == (1 if entry.trial.runs else 0), f"trial {number}"

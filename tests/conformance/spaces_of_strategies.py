"""Every registered strategy on every registered space that it fits, as whole searches on the simulated transport.

What is registered later takes part by itself. Options that a class needs, or that make it small enough to be quick,
stand in `SPACES`, `STRATEGIES` and `SMALL`.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.simulation import make_coordinator, make_job

from nord_hpc import job as jobs
from nord_hpc import registry
from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.transport_simulated import Faults, SimulatedCrash, SimulatedJournal, SimulatedTransport
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.store.history import History
from nord_hpc.trial import FailureKind, Fidelity, Outcome, Trial, TrialState

PARAMETERS: dict[str, Any] = {
    "training.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "training.batch_size": {"type": "ordinal", "choices": [16, 32, 64]},
    "kind": {"type": "categorical", "choices": ["a", "b"]},
    "depth": {"type": "int", "low": 1, "high": 9, "when": {"kind": "b"}},
}
GANG = {"type": "ordinal", "choices": [1, 2]}
CONV: dict[str, Any] = {"max_layers": 3, "channels": [4, 8]}

SPACES: dict[str, dict[str, Any]] = {
    "conv_graph": CONV,
    "hyperparameters": {"parameters": PARAMETERS},
    "joint": {
        "architecture": {"name": "conv_graph", **CONV},
        "hyperparameters": {"parameters": {**PARAMETERS, "resources.gang": GANG}},
    },
    "nasbench101": {"vertices": 5},
    "nasnet_cell": {"blocks": 2, "repeats": 1, "stages": 2},
}
"""Options by name; other spaces have their defaults."""

ONE_CHOICE = {"type": "categorical", "choices": ["only"]}
ONE_NETWORK: dict[str, Any] = {
    "min_layers": 2,
    "max_layers": 2,
    "channels": [4],
    "kernels": [3],
    "pooling": ["none"],
    "skip": False,
}
SINGLE_POINTS: dict[str, dict[str, Any]] = {
    "conv_graph": ONE_NETWORK,
    "hyperparameters": {"parameters": {"x": ONE_CHOICE}},
    "joint": {
        "architecture": {"name": "conv_graph", **ONE_NETWORK},
        "hyperparameters": {"parameters": {"x": ONE_CHOICE}},
    },
}
"""Spaces of one point, where no mutation leads anywhere."""

FEW_POINTS: dict[str, dict[str, Any]] = {
    "conv_graph": {**ONE_NETWORK, "channels": [4, 8], "kernels": [1, 3]},
    "hyperparameters": {"parameters": {"x": {"type": "ordinal", "choices": [1, 2, 3]}, "resources.gang": GANG}},
    "joint": {
        "architecture": {"name": "conv_graph", **ONE_NETWORK, "channels": [4, 8]},
        "hyperparameters": {"parameters": {"resources.gang": GANG}},
    },
}
"""Spaces of at most sixteen points, fewer than a search has trials."""

STRATEGIES: dict[str, dict[str, Any]] = {
    "agebo": {"trees": 2, "candidates": 20},
    "bananas": {"epochs": 5, "members": 2, "hidden": [8], "candidates": 12, "every": 8},
    "bayesian": {"candidates": 4},
}
"""Options by name."""

SMALL: dict[str, Any] = {"population": 8, "sample": 3, "initial": 6}
"""Options of any strategy that has them: a search of a few dozen trials should pass its beginning."""


def names(kind: str) -> list[str]:
    """The built-in names; those of installed packages have tests of their own."""
    return sorted(registry.BUILT_IN[kind])


def strategy_section(name: str) -> dict[str, Any]:
    cls = registry.resolve("strategy", name, folder=Path())
    small = {key: value for key, value in SMALL.items() if key in cls.Options.model_fields}
    return {"name": name, **small, **STRATEGIES.get(name, {})}


def space_sections(of: dict[str, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The registered spaces, or those of one of the tables above that are registered."""
    if of is None:
        return [{"name": name, **SPACES.get(name, {})} for name in names("space")]
    return [{"name": name, **options} for name, options in of.items()]


def search_job(strategy: str, space: dict[str, Any], *, trials: int) -> Job:
    """A job of that many trials, half a second each in the mean."""
    return make_job(
        strategy=strategy_section(strategy),
        space=space,
        evaluator={"name": "synthetic", "seconds": 0.5},
        training={"epochs": 4},
        budget={"trials": trials},
        resources={"shards": 1, "gang": 1},
        order={"virtual_gangs": 6, "run_ahead": 3},
    )


def refusal(job: Job) -> str | None:
    """Why the strategy does not take the space; None where it does."""
    space_class, space_options = jobs.options_of("space", job.space, folder=job.folder)
    strategy_class, options = jobs.options_of("strategy", job.strategy, folder=job.folder)
    space = space_class(space_options)
    try:
        strategy_class(options, space=space, seed=0, full_fidelity=Fidelity(epochs=4))
    except (ValueError, BadInput) as error:
        return str(error)
    return None


def mixed(trial: Trial) -> Outcome:
    """Better with more of a network's hash; some fail by an exception, some are not finite."""
    if trial.seed % 11 == 0:
        return Outcome(TrialState.FAILED, failure=FailureKind.EXCEPTION, reason="this candidate fails")
    if trial.seed % 13 == 0:
        return Outcome(TrialState.FAILED, failure=FailureKind.NOT_FINITE, reason="the loss is not finite")
    text = trial.descriptor_hash + json.dumps(dict(trial.settings), sort_keys=True)
    score = sum(map(ord, text)) % 97 / 97
    return _completed(round(score * trial.fidelity.epochs / 4, 2))


def nothing_is_finite(trial: Trial) -> Outcome:
    return Outcome(TrialState.FAILED, failure=FailureKind.NOT_FINITE, reason="the loss is not finite")


def nothing_works(trial: Trial) -> Outcome:
    return Outcome(TrialState.FAILED, failure=FailureKind.EXCEPTION, reason="this candidate fails")


def _completed(fitness: float) -> Outcome:
    return Outcome(TrialState.COMPLETED, fitness=fitness, metrics={"accuracy": fitness}, seconds=0.5)


class MortalJournal(SimulatedJournal):
    """A journal in memory whose process dies with what is not synced, at the first sync after `dies` is set."""

    def __init__(self, durable: bytes) -> None:
        super().__init__(durable)
        self.dies = False

    def sync(self) -> None:
        if self.dies:
            raise SimulatedCrash
        super().sync()


@dataclass
class Search:
    """What became of a search.

    Attributes:
        history: of all its lives.
        lives: how often the master was started.
    """

    history: History
    lives: int

    def lines(self) -> list[str]:
        """The trials in commit order, with more than the history digest holds of them."""
        entries = [self.history.entries[number] for number in self.history.commit_order]
        return [
            json.dumps([e.trial.number, e.trial.genotype, e.trial.parents, dict(e.trial.settings)], sort_keys=True)
            for e in entries
        ]


def run_search(
    job: Job, *, n_gangs: int, outcome: Callable[[Trial], Outcome] = mixed, kill_at: tuple[int, ...] = ()
) -> Search:
    """Run a search to its end.

    Args:
        kill_at: numbers of committed trials at which the master dies. It goes on the first time from the last saved
            state, which has been through JSON, and the journal; after that from the journal alone.
    """
    rng = random.Random(n_gangs)
    durable, saved, now = b"", None, 0.0
    for life in range(len(kill_at) + 1):
        journal = MortalJournal(durable)
        transport = SimulatedTransport(n_gangs, rng=rng, faults=Faults(), outcome=outcome, began_at=now)
        history = History(journal.records)
        ranks = transport.worker_ranks()
        coordinator = make_coordinator(job, epoch=len(history.lives) + 1, ranks=ranks)
        record = {"kind": "run", "ranks": 0, "host": "simulated", "machine": {}, "job": {}, "code": {}}
        journal.append({**record, "evaluated_on": "", "at": now})
        coordinator.restore(history, None if saved is None or life != 1 else json.loads(saved), at=now)
        scheduler = coordinator.scheduler
        states: list[str] = []
        ended = None

        def on_tick(
            scheduler: Any = scheduler, states: list[str] = states, journal: MortalJournal = journal, life: int = life
        ) -> None:
            states[:] = [json.dumps(scheduler.state_dict(), allow_nan=False)]
            journal.dies = life < len(kill_at) and scheduler.ledger.n_committed >= kill_at[life]

        with contextlib.suppress(SimulatedCrash):
            ended = run_master(
                coordinator,
                transport=transport,
                journal=journal,
                meter=MasterMeter(),
                drop_weights=lambda number: None,
                stop_reason=lambda: None,
                on_tick=on_tick,
            )
        durable, now = journal.whole(), transport.now()
        saved = states[0] if states else None
        if ended is not None:
            assert ended.state == "finished", ended
            return Search(History(SimulatedJournal(durable).records), life + 1)
    raise AssertionError(f"the search was still killed in its last life, after {kill_at}")

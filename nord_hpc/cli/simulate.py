"""The command `nord-hpc simulate`: how a job would run on many gangs, found on a virtual clock without running any.

The coordinator, the strategy and the space are the job's own; only time and results are made up. Fitness is random.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nord_hpc import job as jobs
from nord_hpc.cluster.coordinator import Coordinator
from nord_hpc.cluster.master import MasterMeter, run_master
from nord_hpc.cluster.parts import make_evaluator, make_maker
from nord_hpc.cluster.scheduler import make_scheduler
from nord_hpc.cluster.transport_simulated import Evaluation, Faults, SimulatedJournal, SimulatedTransport
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.interfaces import NO_SETTINGS, Evaluator
from nord_hpc.job import Job
from nord_hpc.seeding import derived_seed
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

log = logging.getLogger(__name__)

GANGS_TO_VIRTUAL = 1.5
SECONDS_FORMS = "a number of seconds, lognormal:MEAN:SIGMA, or uniform:LOW:HIGH"


@dataclass(frozen=True, slots=True)
class Seconds:
    """A distribution of the predicted seconds of a trial of full fidelity."""

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Seconds:
        """From the command line.

        Raises:
            BadInput: the text is none of the forms.
        """
        kind, *numbers = text.split(":") if ":" in text else ("constant", text)
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        wanted = {"constant": 1, "lognormal": 2, "uniform": 2}.get(kind)
        known = len(values) == wanted and min(values) >= 0 and max(values) > 0
        if not known or (kind == "lognormal" and values[0] == 0) or (kind == "uniform" and values[0] > values[1]):
            raise BadInput(f"--seconds-per-trial {text}: set {SECONDS_FORMS}")
        return cls(kind, *values)

    def draw(self, rng: random.Random) -> float:
        if self.kind == "lognormal":  # whose mean is exp(sigma^2 / 2)
            return self.first * math.exp(rng.gauss(0.0, self.second) - self.second**2 / 2)
        return rng.uniform(self.first, self.second) if self.kind == "uniform" else self.first


class Timed:
    """The job's own evaluator, with times of another distribution; see `nord_hpc.interfaces.Evaluator`."""

    def __init__(self, evaluator: Evaluator, seconds: Seconds | None, job: Job) -> None:
        self._evaluator = evaluator
        self._seconds = seconds
        self._full = job.full_fidelity
        gang = job.resources.gang
        self._ranks = 1 if gang == "auto" else gang

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        more = (settings,) if settings else ()
        own = self._evaluator.examine(descriptor, fidelity, *more)
        if self._seconds is None:
            return own
        seconds = self._seconds.draw(random.Random(descriptor.canonical_hash()))
        amount = max(1e-6, fidelity.epochs * fidelity.fraction / max(1, self._full.epochs))
        cost = max(1, round(seconds * amount * self._ranks * 1e6))
        return Examination(cost, own.n_parameters, own.multiply_adds, own.memory_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulated search came to. Shares are of the ranks' time from the first start to the last end, 0 to 1.

    Attributes:
        utilization: share in evaluations.
        utilization_before_drain: the same up to the last start.
        drain: share idle after the last start, when nothing more was there to begin.
        stall: share idle because virtual order waited for one trial.
        seconds_per_trial: mean wall time of an evaluation.
        master_seconds_per_trial: CPU time of the master, measured here.
        gangs_fed: gangs that one master keeps busy at this length of the trials.
    """

    order: str
    trials: int
    hours: float
    utilization: float
    utilization_before_drain: float
    drain: float
    stall: float
    seconds_per_trial: float
    master_seconds_per_trial: float
    gangs_fed: float


def run_simulation(
    job: Job, *, n_ranks: int, seconds: Seconds | None, prediction_error: float, seed: int = 0
) -> Simulated:
    """Run a job to its end on a virtual cluster.

    Args:
        n_ranks: workers.
        seconds: predicted time of a trial on a gang of the job's size; None for what the job's evaluator predicts.
        prediction_error: sigma of the logarithm of true over predicted time.
    """
    evaluator = Timed(make_evaluator(job, job.folder), seconds, job)
    strategy, maker = make_maker(job, evaluator)
    transport = SimulatedTransport(
        n_ranks,
        rng=random.Random(seed),
        faults=Faults(slowdown_sigma=prediction_error),
        outcome=lambda trial: _outcome(trial, job.objective.metric),
        nap_seconds=1.0,
    )
    coordinator = Coordinator(
        job,
        scheduler=make_scheduler(job, strategy=strategy, maker=maker),
        epoch=1,
        ranks=transport.worker_ranks(),
        seconds_left=None if job.budget.hours is None else job.budget.hours * 3600.0,
    )
    meter = MasterMeter()
    end = run_master(
        coordinator,
        transport=transport,
        journal=SimulatedJournal(),
        meter=meter,
        drop_weights=lambda number: None,
        stop_reason=lambda: None,
    )
    log.info("the %s order %s: %s", job.order.mode, end.state, end.reason)
    stall_seconds = float(coordinator.progress()["stall_seconds"])
    return _measured(job, transport.evaluations, n_ranks=n_ranks, stall_seconds=stall_seconds, meter=meter)


def _outcome(trial: Trial, metric: str) -> Outcome:
    fitness = derived_seed(trial.seed, trial.descriptor_hash) / 2**63
    seconds = trial.cost / 1e6 / trial.gang
    return Outcome(TrialState.COMPLETED, fitness=fitness, metrics={metric: fitness}, seconds=seconds)


def _measured(
    job: Job, evaluations: list[Evaluation], *, n_ranks: int, stall_seconds: float, meter: MasterMeter
) -> Simulated:
    if not evaluations:
        raise BadInput("no trial was evaluated: every candidate is infeasible, or the budget is too small")
    began, ended = min(e.begins for e in evaluations), max(e.ends for e in evaluations)
    busy = sum((e.ends - e.begins) * len(e.task.ranks) for e in evaluations)
    last_start = max(e.begins for e in evaluations)
    tail = sum(max(0.0, e.ends - max(e.begins, last_start)) * len(e.task.ranks) for e in evaluations)
    whole = max(1e-9, (ended - began) * n_ranks)
    n = len(evaluations)
    seconds_per_trial = sum(e.ends - e.begins for e in evaluations) / n
    master = meter.seconds / n
    return Simulated(
        order=job.order.mode,
        trials=n,
        hours=(ended - began) / 3600.0,
        utilization=busy / whole,
        utilization_before_drain=(busy - tail) / max(1e-9, (last_start - began) * n_ranks),
        drain=((ended - last_start) * n_ranks - tail) / whole,
        stall=stall_seconds / whole,
        seconds_per_trial=seconds_per_trial,
        master_seconds_per_trial=master,
        gangs_fed=seconds_per_trial / max(1e-9, master),
    )


def simulate(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")],
    gangs: Annotated[int, typer.Option("--gangs", min=1, help="Gangs of the job's size; ranks if gang is auto.")] = 64,
    seconds_per_trial: Annotated[
        str | None,
        typer.Option("--seconds-per-trial", metavar="TIME", help=f"Predicted time of a trial: {SECONDS_FORMS}."),
    ] = None,
    prediction_error: Annotated[
        float, typer.Option("--prediction-error", min=0.0, help="Sigma of log(true / predicted time).")
    ] = 0.15,
    virtual_gangs: Annotated[
        int | None,
        typer.Option("--virtual-gangs", min=1, help="order.virtual_gangs; 1.5 times the gangs if left out."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="budget.trials.")] = None,
    overrides: Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Simulate a search on many gangs, in virtual and in arrival order: utilization, drain, stall, master's load."""
    n_virtual = virtual_gangs or math.ceil(GANGS_TO_VIRTUAL * gangs)
    changes = [f"order.virtual_gangs={n_virtual}", *([] if trials is None else [f"budget.trials={trials}"])]
    seconds = None if seconds_per_trial is None else Seconds.parse(seconds_per_trial)
    found = []
    for mode in ("virtual", "arrival"):
        loaded = jobs.load(job, overrides=[*overrides, *changes, f"order.mode={mode}"])
        ranks = gangs if loaded.resources.gang == "auto" else gangs * loaded.resources.gang
        found.append(run_simulation(loaded, n_ranks=ranks, seconds=seconds, prediction_error=prediction_error))
    if as_json:
        print(
            json.dumps({"gangs": gangs, "virtual_gangs": n_virtual, "orders": [asdict(one) for one in found]}, indent=2)
        )
    else:
        Console().print(_table(found, gangs=gangs, virtual_gangs=n_virtual))


def _table(found: list[Simulated], *, gangs: int, virtual_gangs: int) -> Table:
    rows: dict[str, Any] = {
        "trials evaluated": lambda one: f"{one.trials:,}",
        "hours": lambda one: f"{one.hours:.2f}",
        "utilization": lambda one: f"{one.utilization:.1%}",
        "utilization before the drain": lambda one: f"{one.utilization_before_drain:.1%}",
        "drain at the end": lambda one: f"{one.drain:.1%}",
        "stall of the order": lambda one: f"{one.stall:.1%}",
        "seconds per trial": lambda one: f"{one.seconds_per_trial:.3g}",
        "master, CPU ms per trial": lambda one: f"{one.master_seconds_per_trial * 1e3:.2f}",
        "gangs one master feeds": lambda one: f"{one.gangs_fed:,.0f}",
    }
    table = Table(title=f"{gangs} gangs, {virtual_gangs} virtual ones", title_justify="left")
    for name in ("", *(f"{one.order} order" for one in found)):
        table.add_column(name, justify="left" if not name else "right")
    for name, shown in rows.items():
        table.add_row(name, *(shown(one) for one in found))
    return table

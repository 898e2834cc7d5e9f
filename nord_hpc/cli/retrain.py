"""The command `nord-hpc retrain`: which network is trained in full, on what, by which ranks, and what is shown of it.

What happens within one life of the training is left to `retrain_life`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from nord_hpc.cli import retrain_life, wiring
from nord_hpc.cli.progress import best_entry
from nord_hpc.cluster import launch, parts
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible, StoreError
from nord_hpc.job import Job, Named
from nord_hpc.logs import log_to_stderr
from nord_hpc.seeding import derived_seed
from nord_hpc.store.history import Entry, History
from nord_hpc.store.retrain_folder import RetrainFolder, RetrainPlan
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.trial import Json, Trial

if TYPE_CHECKING:
    from nord_hpc.cluster.transport_mpi import World

BEST = "best"
SHOW_SECONDS = 0.5
EXIT_CODES = {
    retrain_life.FINISHED: wiring.DONE,
    retrain_life.FAILED: wiring.FAILED,
    retrain_life.REFUSED: wiring.BAD_INPUT,
    retrain_life.STOPPED: wiring.INTERRUPTED,
    retrain_life.BROKEN: wiring.INTERRUPTED,
}
OPTIMIZER = "training.optimizer"

Prepare = Callable[[int], RetrainFolder]
"""Makes or opens the folder for a number of ranks; raises `BadInput` before anything is written."""


def retrain(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A search's run folder; or a retraining's, which goes on.")
    ],
    trial: Annotated[str | None, typer.Option("--trial", metavar="best|N", help="Which network; the best one.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="As training.epochs=N.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the search's job.")
    ] = [],  # noqa: B006
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="MPI ranks that train together; 1 is this process.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The new folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log more to standard error.")] = 0,
) -> int:
    """Train one found network in full, test it, and keep its weights. Killed, it goes on with: nord-hpc retrain NEW."""
    log_to_stderr(verbose=verbose)

    def prepare(n_ranks: int) -> RetrainFolder:
        given = [f"training.epochs={epochs}"] * (epochs is not None) + list(overrides)
        if RetrainFolder.is_one(folder):
            if given or trial is not None or out is not None:
                raise BadInput(f"{folder}: is a retraining already and goes on as it was set; leave all options but -n")
            return _reopen(folder, n_ranks)
        return _create(RunFolder.open(folder), trial or BEST, given, n_ranks=n_ranks, out=out)

    if launch.under_launcher():
        return _run_in_world(prepare, ranks=ranks, as_json=as_json)
    opened = prepare(ranks or 1)
    if opened.result() is not None:
        code = wiring.DONE
    elif ranks is None or ranks == 1:
        launch.check_world(1, {} if ranks == 1 else os.environ)
        with wiring.bounded_exit() as leaving:
            leaving.code = EXIT_CODES[_inline(opened)]
        code = leaving.code
    else:
        launch.find_mpirun()
        code = _supervise(opened, ranks)
    _show_end(opened, as_json=as_json)
    return code


# What is trained


def _create(source: RunFolder, chosen: str, given: Sequence[str], *, n_ranks: int, out: Path | None) -> RetrainFolder:
    """A new folder for one trial of a search; all that can be refused is refused before it is made."""
    searched, history = source.job(), source.history()
    entry = chosen_entry(source, history, searched, chosen)
    job = _job(source, searched, entry.trial, given, n_ranks=n_ranks)
    trial = _trial(entry.trial, searched, job)
    plan = RetrainPlan(trial, str(source.path.resolve()), chosen, _found(entry, history, searched))
    path = out or Path("runs") / f"{job.name}-retrain-{trial.number}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RetrainFolder.create(path, job, plan)


def chosen_entry(source: RunFolder, history: History, job: Job, chosen: str) -> Entry:
    if chosen == BEST:
        best = best_entry(history, job)
        if best is None:
            raise BadInput(f"{source.path}: no trial has completed, so there is no network to train")
        return best
    if not chosen.isdigit():
        raise BadInput(f"--trial {chosen}: set best, or the number of a trial")
    entry = history.entries.get(int(chosen))
    if entry is None:
        last = max(history.entries, default=None)
        known = "it has none" if last is None else f"its trials are 0 to {last}"
        raise BadInput(f"--trial {chosen}: {source.path} has no such trial; {known}")
    if entry.trial.infeasible is not None:
        raise BadInput(f"--trial {chosen}: its network cannot be built: {entry.trial.infeasible}")
    return entry


def _job(source: RunFolder, searched: Job, trial: Trial, given: Sequence[str], *, n_ranks: int) -> Job:
    """The job of the training: that of the search, what the trial sets of it, and what the user sets."""
    settings = [f"{name}={json.dumps(value)}" for name, value in trial.settings.items() if "." in name]
    overrides = [*without_strange_options(searched, given), *settings, *given]
    job = source.job(overrides=tuple(overrides))
    shards = job.resources.shards
    if shards % n_ranks:
        if any(override.startswith("resources.shards=") for override in given):
            raise BadInput(
                f"resources.shards {shards} cannot be spread over {n_ranks} ranks evenly; set a multiple of {n_ranks}"
            )
        shards = n_ranks * math.ceil(shards / n_ranks)
    # Both at once, as a gang that does not divide the shards is refused.
    resources = {**job.to_json()["resources"], "shards": shards, "gang": n_ranks}
    job = source.job(overrides=(*overrides, f"resources={json.dumps(resources)}"))
    if job.evaluator.name != "training":
        raise BadInput(
            f"evaluator.name: networks are retrained by training, not by {job.evaluator.name}; add "
            f"--set evaluator.name=training"
        )
    return job


def without_strange_options(job: Job, given: Sequence[str]) -> list[str]:
    """Where the user sets another class, the options of the one before go; sections keep their own fields."""
    sections: dict[str, Named] = {kind: getattr(job, kind) for kind in ("dataset", "space", "evaluator")}
    sections[OPTIMIZER] = job.training.optimizer
    overrides = []
    for place, section in sections.items():
        names = [yaml.safe_load(text) for key, _, text in (o.partition("=") for o in given) if key == f"{place}.name"]
        if names and names[-1] != section.name:
            own = section.model_dump(mode="json", include=set(type(section).model_fields))
            kept = {key: value for key, value in own.items() if value is not None and key != "path"}
            overrides.append(f"{place}={json.dumps(kept)}")
    return overrides


def _trial(found: Trial, searched: Job, job: Job) -> Trial:
    """The trial as it is trained now: its network, made anew where the space was changed, and a seed of its own."""
    descriptor = NeuralDescriptor.from_json(found.descriptor)
    if job.space != searched.space:
        space = parts.make_space(job)
        if not space.contains(found.genotype):
            raise BadInput(
                f"space: trial {found.number} is no point of the space as it is set now; override only what does not "
                f"change its genotypes, such as the repeats or filters around a cell"
            )
        descriptor = space.to_descriptor(found.genotype)
    try:
        evaluator = parts.make_evaluator(job, job.folder)
        examined = evaluator.examine(descriptor, job.full_fidelity)
        descriptor_hash = descriptor.canonical_hash()
    except Infeasible as error:
        raise BadInput(f"trial {found.number}: its network does not fit this data: {error.reason}") from error
    except ValueError as error:
        raise BadInput(str(error)) from error
    return replace(
        found,
        descriptor=descriptor.to_json(),
        descriptor_hash=descriptor_hash,
        fidelity=job.full_fidelity,
        seed=derived_seed(job.seed, "retrain", found.number),
        shards=job.resources.shards,
        gang=job.resources.largest_gang,
        cost=examined.cost,
        n_parameters=examined.n_parameters,
        multiply_adds=examined.multiply_adds,
        memory_bytes=examined.memory_bytes,
        settings={},
        continues=None,
        keeps_state=True,
        reuses=None,
        imported=None,
    )


def _found(entry: Entry, history: History, job: Job) -> dict[str, Json]:
    trial, outcome, test = entry.trial, entry.outcome, history.test
    return {
        "dataset": job.dataset.name,
        "space": job.space.name,
        "metric": job.objective.metric,
        "epochs": trial.fidelity.epochs,
        "fitness": None if outcome is None else outcome.fitness,
        "n_parameters": trial.n_parameters,
        "multiply_adds": trial.multiply_adds,
        "test": test["metrics"] if test is not None and test["number"] == trial.number else None,
    }


def _reopen(path: Path, n_ranks: int) -> RetrainFolder:
    folder = RetrainFolder(path)
    shards = folder.plan().trial.shards
    if folder.result() is None and shards % n_ranks:
        divisors = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
        raise BadInput(
            f"{path}: its {shards} shards cannot be spread over {n_ranks} ranks; set -n to one of {divisors}"
        )
    return folder


# How it is run


def _inline(folder: RetrainFolder) -> str:
    view = _CurveView(folder)
    how = retrain_life.run_inline(folder, on_tick=view.update)
    view.show()
    return how


def _run_in_world(prepare: Prepare, *, ranks: int | None, as_json: bool) -> int:
    """Be one rank of the world that a launcher started, by hand or by `_supervise`."""
    with launch.bounded_start():
        from nord_hpc.cluster.transport_mpi import World

        world = World()
    supervised = launch.supervised()
    with wiring.bounded_exit() as leaving:
        try:
            if world.size == 1:
                folder = prepare(1)
                leaving.code = EXIT_CODES[_inline(folder)] if folder.result() is None else wiring.DONE
            elif world.rank == 0:
                leaving.code = _lead(world, prepare, ranks=ranks, shows=not supervised, as_json=as_json)
            else:
                retrain_life.run_partner(world, world.mailbox(master=False))
                leaving.code = wiring.DONE
        except (BadInput, StoreError) as error:
            sys.stderr.write(f"nord-hpc: {error}\n")
            leaving.code = wiring.BAD_INPUT
        except Exception:
            traceback.print_exc()
            world.abort(wiring.FAILED)
            raise
    return wiring.DONE if supervised else leaving.code


def _lead(world: World, prepare: Prepare, *, ranks: int | None, shows: bool, as_json: bool) -> int:
    mailbox = world.mailbox(master=True)
    try:
        launch.check_world(world.size)
        if ranks is not None and ranks != world.size:
            raise BadInput(f"-n {ranks} does not fit the {world.size} ranks that the launcher started; leave -n away")
        folder = prepare(world.size)
    except BadInput:
        retrain_life.refuse(world, mailbox)
        raise
    if folder.result() is not None:
        retrain_life.refuse(world, mailbox)
        code = wiring.DONE
    else:
        view = _CurveView(folder)
        how = retrain_life.run_leader(world, mailbox, folder, on_tick=view.update if shows else _nothing)
        code = EXIT_CODES[how]
        if shows:
            view.show()
    if shows:
        _show_end(folder, as_json=as_json)
    return code


def _supervise(folder: RetrainFolder, n_ranks: int) -> int:
    """Run mpirun on the folder, again if a rank is lost, until a life has ended of itself."""
    job = folder.run.job()
    supervisor = launch.Supervisor()
    view = _CurveView(folder)
    command = launch.mpirun_command(n_ranks, [sys.executable, "-m", "nord_hpc", "retrain", str(folder.path)])
    wiring.on_stop_signals(supervisor.request_stop)
    fruitless = 0
    while True:
        before = len(folder.curve())
        result = supervisor.run(command, threads=job.resources.threads, on_wait=view.update)
        view.show()
        last = (folder.lives() or [{"kind": None}])[-1]["kind"]
        if last in EXIT_CODES and last != retrain_life.BROKEN:
            return EXIT_CODES[last]
        if result.stopped:
            return wiring.INTERRUPTED
        fruitless = 0 if len(folder.curve()) > before else fruitless + 1
        reason = result.lost_reason or f"mpirun ended with code {result.exit_code}"
        if fruitless > job.limits.restarts:
            _say(f"{reason}; given up after {job.limits.restarts} restarts without an epoch finished")
            return wiring.INTERRUPTED
        _say(f"{reason}; the training goes on after epoch {len(folder.curve())}")


def _nothing() -> None:
    pass


# What is shown


class _CurveView:
    """A line for each epoch when it is over."""

    def __init__(self, folder: RetrainFolder) -> None:
        self._folder = folder
        self._epochs = folder.plan().trial.fidelity.epochs
        self._metric = folder.run.job().objective.metric
        self._n_shown = len(folder.curve())
        self._next = 0.0

    def update(self) -> None:
        """Show what is new, if it is time."""
        if time.monotonic() >= self._next:
            self.show()
            self._next = time.monotonic() + SHOW_SECONDS

    def show(self) -> None:
        result = self._folder.result()
        curve = self._folder.curve() if result is None else result["curve"]
        for report in curve[self._n_shown :]:
            loss = f"training loss {report['train_loss']:.4f}"
            score = (report.get("metrics") or report)[self._metric]
            _say(f"epoch {report['epoch']} of {self._epochs}: {loss}, validation {self._metric} {score:.4f}")
        self._n_shown = max(self._n_shown, len(curve))


def _show_end(folder: RetrainFolder, *, as_json: bool) -> None:
    result = folder.result()
    if result is None:
        last = (folder.lives() or [{}])[-1]
        reason = f": {last['reason']}" if last.get("reason") else ""
        _say(f"not finished{reason}; after {len(folder.curve())} epochs; go on with: nord-hpc retrain {folder.path}")
    elif as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print_table(folder, result)


def _print_table(folder: RetrainFolder, result: dict[str, Any]) -> None:
    found, metric = folder.plan().found, result["metric"]
    table = Table(title=f"trial {result['trial']} of {result['source']}", title_justify="left")
    table.add_column()
    table.add_column("search", justify="right")
    table.add_column("retrained", justify="right")
    table.add_row("data", found["dataset"], result["dataset"])
    table.add_row("epochs", str(found["epochs"]), str(result["epochs"]))
    for name in ("n_parameters", "multiply_adds"):
        table.add_row(name.removeprefix("n_").replace("_", "-"), f"{found[name]:,}", f"{result[name]:,}")
    test = found["test"] or {}
    searched = found["fitness"] if found["metric"] == metric else None
    table.add_row(f"validation {metric}", _number(searched), _number(result["validation"][metric]))
    table.add_row(f"test {metric}", _number(test.get(metric)), _number(result["test"].get(metric)))
    console = Console()
    console.print(table)
    ranks = [life["ranks"] for life in result["lives"]]
    lives = "" if len(ranks) == 1 else f", {len(ranks)} lives"
    lines = (
        f"{result['seconds']:.0f} s on {ranks[-1]} rank{'s' * (ranks[-1] != 1)}{lives}",
        f"weights {folder.path / result['weights']} (sha256 {result['weights_sha256'][:16]})",
        f"folder {folder.path}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)

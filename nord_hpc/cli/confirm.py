"""The command `nord-hpc confirm`: a search's finalists, trained in full with several seeds, and one of them chosen.

It is itself a search, of the finalists alone, in a run folder of its own: ranks, resume and journal are those of any.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nord_hpc.cli import wiring
from nord_hpc.cli.progress import ProgressView
from nord_hpc.cli.retrain import without_strange_options
from nord_hpc.cluster import first_candidates, launch, parts, worker
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.errors import BadInput
from nord_hpc.job import Job, OrderSettings
from nord_hpc.logs import log_to_stderr
from nord_hpc.seeding import derived_seed
from nord_hpc.store.history import Entry, History
from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import RunFolder, changed_fields, write_atomically
from nord_hpc.trial import Json

CONFIDENCE = 0.95
RUN_AHEAD = 100_000
FOLDER = "confirm"
FINALISTS_FILE = "finalists.json"
"""The trials of the search that are confirmed, in order: candidate i is a training of number i modulo their number."""
RESULT_FILE = "confirm.json"


@dataclass(frozen=True, slots=True)
class Finalist:
    """A network of the search, and how it did with other seeds.

    Attributes:
        trial: its number in the search.
        fitness: there.
        values: fitness of each of its trainings that completed.
        trials: numbers of all of its trainings in the confirmation.
        mean, deviation: of the values; the deviation is that of a sample, None for fewer than two.
        interval: of the mean, at 95 %, by Student's t; None likewise.
    """

    trial: int
    fitness: float
    values: tuple[float, ...]
    trials: tuple[int, ...]
    n_parameters: int
    multiply_adds: int
    mean: float | None
    deviation: float | None
    interval: tuple[float, float] | None


def confirm(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A search's run folder.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Finalists: the best different networks.")] = 5,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each.")] = 5,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="As training.epochs=N.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the search's job.")
    ] = [],  # noqa: B006
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="MPI ranks, the master included; 1 is this process.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The new folder; DIR/confirm.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log more to standard error.")] = 0,
) -> int:
    """Train the best networks in full with several seeds, choose by the mean on validation, and test the chosen one.

    Given again, it goes on where it was; with more seeds, it adds them.
    """
    log_to_stderr(verbose=verbose)
    if launch.under_launcher():
        raise BadInput("confirm starts its ranks itself: leave mpirun or srun away, and set -n")
    given = [f"training.epochs={epochs}"] * (epochs is not None) + list(overrides)
    source = RunFolder.open(folder)
    n_workers = max(1, (ranks or 1) - 1)
    opened = prepare(source, top=top, seeds=seeds, given=given, n_workers=n_workers, out=out or folder / FOLDER)
    code = _run(opened, ranks)
    if code != wiring.DONE:
        Console(stderr=True).print(f"not finished; the same command goes on in {opened.path}", highlight=False)
        return code
    result = conclude(source, opened, top=top)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print(opened, result)
    return wiring.DONE


def finalists(history: History, job: Job, top: int) -> list[Entry]:
    """The best trials of full fidelity whose networks and settings differ, the best first."""
    sign = 1.0 if job.objective.direction == "maximize" else -1.0
    completed = [
        entry
        for entry in (history.entries[number] for number in history.commit_order)
        if entry.outcome is not None and entry.outcome.fitness is not None and entry.trial.fidelity == job.full_fidelity
    ]
    completed.sort(key=lambda entry: (-sign * _fitness(entry), entry.trial.number))
    different: dict[str, Entry] = {}
    for entry in completed:
        kind = json.dumps([entry.trial.descriptor_hash, dict(entry.trial.settings)], sort_keys=True)
        different.setdefault(kind, entry)
    return list(different.values())[:top]


def prepare(source: RunFolder, *, top: int, seeds: int, given: Sequence[str], n_workers: int, out: Path) -> RunFolder:
    """The confirmation's folder, made or gone on with; all that can be refused is refused before it is written.

    Raises:
        BadInput: there is nothing to confirm, or the folder holds something else.
    """
    searched, history = source.job(), source.history()
    found = finalists(history, searched, top)
    if len(found) < top:
        raise BadInput(
            f"--top {top}: {source.path} has {len(found)} different networks that completed; set --top to at most that"
            if found
            else f"{source.path}: no trial has completed, so there is nothing to confirm"
        )
    job = _job(source, searched, given, top=top, seeds=seeds, n_workers=n_workers)
    space = parts.make_space(job)
    for entry in found:
        if not space.contains(entry.trial.genotype):
            raise BadInput(
                f"space: trial {entry.trial.number} is no point of the space as it is set now; override only what does "
                f"not change its genotypes, such as the repeats or filters around a cell"
            )
    # Seed by seed, so that more seeds only add to the list.
    candidates = [
        FirstCandidate(entry.trial.genotype, f"trial {entry.trial.number} of {source.path.name}, training {seed}")
        for seed in range(seeds)
        for entry in found
    ]
    wiring.check(job)
    # It is not the virtual gangs that keep ranks busy here, so no advice on their number.
    wiring.check_gang(job.model_copy(update={"order": OrderSettings(virtual_gangs=RUN_AHEAD)}), n_workers)
    numbers = [entry.trial.number for entry in found]
    if RunFolder(out).job_file.exists():
        return _reopen(RunFolder.open(out), job, candidates, numbers=numbers)
    opened = RunFolder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        first_candidates.save(opened.first_candidates_file, candidates)
        write_atomically(out / FINALISTS_FILE, json.dumps(numbers).encode())
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}; set --out to another") from error
    return RunFolder.create(out, job)


def conclude(source: RunFolder, opened: RunFolder, *, top: int) -> dict[str, Json]:
    """Compare the finalists, choose one, test it once, and keep what came of it; what is known already is not redone.

    Raises:
        BadInput: no training of any finalist completed.
    """
    job, history = opened.job(), opened.history()
    searched = source.history()
    groups = _groups(searched, history, source.job(), top=top)
    chosen = choose(groups, maximize=job.objective.direction == "maximize")
    if chosen is None:
        raise BadInput(f"{opened.path}: no training completed; see: nord-hpc trials {opened.path}")
    taken = _best_of(chosen, history, maximize=job.objective.direction == "maximize")
    known = _read(opened)
    if known is not None and known["chosen"] == chosen.trial and known["history_sha256"] == history.history_sha256:
        return known
    tests = _test(opened, job, history, chosen, taken)
    values = [test[job.objective.metric] for test in tests if job.objective.metric in test]
    result: dict[str, Json] = {
        "source": str(source.path),
        "folder": str(opened.path),
        "metric": job.objective.metric,
        "direction": job.objective.direction,
        "epochs": job.training.epochs,
        "confidence": CONFIDENCE,
        "finalists": [asdict(group) for group in groups],
        "chosen": chosen.trial,
        "network": taken,
        "weights": str(opened.weights_file(taken)),
        "test": {"values": values, **_statistics(values), "network": tests[chosen.trials.index(taken)]},
        "history_sha256": history.history_sha256,
    }
    result = json.loads(json.dumps(result))
    write_atomically(opened.path / RESULT_FILE, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    return result


def choose(groups: Sequence[Finalist], *, maximize: bool) -> Finalist | None:
    """The finalist of the best mean; those of which a training failed only where all have such."""
    sign = 1.0 if maximize else -1.0
    complete = [group for group in groups if len(group.values) == len(group.trials)]
    some = complete or [group for group in groups if group.values]
    return max(some, key=lambda group: (sign * (group.mean or 0.0), -group.trial), default=None)


def _job(source: RunFolder, searched: Job, given: Sequence[str], *, top: int, seeds: int, n_workers: int) -> Job:
    """The search's job, with the finalists as its only candidates and as many ranks for each as there are to spare."""
    n_trainings = top * seeds
    fields = {
        "name": f"{searched.name}-confirm",
        "seed": derived_seed(searched.seed, "confirm"),
        "strategy": {"name": "random_search"},
        "candidates": {"duplicates": "retrain"},
        "budget": {"trials": n_trainings},
        # All trainings are independent, so ranks run ahead of the virtual gangs, whose number must not depend on that
        # of the seeds: with more seeds the history goes on as it was.
        "order": {"mode": "virtual", "virtual_gangs": top, "run_ahead": RUN_AHEAD},
        "checkpoint.keep_weights": n_trainings,
        "objective.test": False,
    }
    resources, spare = searched.resources, n_workers // n_trainings
    set_by_user = any(override.startswith(("resources.gang", "resources.shards", "resources=")) for override in given)
    if isinstance(resources.gang, int) and resources.exact and not set_by_user:
        divisors = [n for n in range(1, resources.shards + 1) if resources.shards % n == 0 and n <= spare]
        fields["resources.gang"] = max([resources.gang, *divisors])
    own = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    return source.job(overrides=(*without_strange_options(searched, given), *own, *given))


def _reopen(opened: RunFolder, job: Job, candidates: Sequence[FirstCandidate], *, numbers: list[int]) -> RunFolder:
    """Go on, with more trainings where more are asked for."""
    if not (opened.path / FINALISTS_FILE).is_file():
        raise BadInput(f"{opened.path}: holds a run that is no confirmation; set --out to another")
    before = first_candidates.load(opened.first_candidates_file)
    if json.loads((opened.path / FINALISTS_FILE).read_text(encoding="utf-8")) != numbers:
        raise BadInput(f"{opened.path}: confirms other networks of this search; set --top as before, or another --out")
    recorded = opened.job()
    ignored = ("resources.gang", "name", "code", "dataset.path")
    changed = [name for name in changed_fields(recorded.to_json(), job.to_json()) if not name.startswith(ignored)]
    plugin = ("dataset.name", "space.name", "evaluator.name")  # in each folder's own copy
    changed = [name for name in changed if not (name in plugin and ".py:" in str(_at(job.to_json(), name)))]
    if changed:
        raise BadInput(
            f"{opened.path}: was begun with other {', '.join(changed)}; set these as before, or another --out"
        )
    if len(candidates) > len(before):
        first_candidates.save(opened.first_candidates_file, candidates)
        n = len(candidates)
        opened.save_job(opened.job(overrides=(f"budget.trials={n}", f"checkpoint.keep_weights={n}")))
    return opened


def _at(data: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def _run(opened: RunFolder, ranks: int | None) -> int:
    from nord_hpc.cli.app import supervise

    history = opened.history()
    if history.state == "finished" and len(history.commit_order) == len(_candidates(opened)):
        return wiring.DONE
    if ranks is not None and ranks > 1:
        launch.find_mpirun()
        return supervise(opened, ranks, accept_changes=True, shows_end=False)
    launch.check_world(1, {} if ranks == 1 else os.environ)
    view = ProgressView(opened, Console(stderr=True))
    try:
        return wiring.run_inline(opened, on_tick=view.update, accept_changes=True)
    finally:
        view.close()


def _candidates(opened: RunFolder) -> list[FirstCandidate]:
    return first_candidates.load(opened.first_candidates_file)


def _groups(searched: History, history: History, job: Job, *, top: int) -> list[Finalist]:
    """The finalists in the order of the search, with their trainings."""
    groups = []
    for place, entry in enumerate(finalists(searched, job, top)):
        mine = [history.entries[number] for number in sorted(history.entries) if number % top == place]
        values = tuple(one.outcome.fitness for one in mine if one.outcome and one.outcome.fitness is not None)
        trial = mine[0].trial
        groups.append(
            Finalist(
                trial=entry.trial.number,
                fitness=_fitness(entry),
                values=values,
                trials=tuple(one.trial.number for one in mine),
                n_parameters=trial.n_parameters,
                multiply_adds=trial.multiply_adds,
                **_statistics(values),
            )
        )
    return groups


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation and interval of the mean."""
    if len(values) < 2:
        return {"mean": values[0] if values else None, "deviation": None, "interval": None}
    from scipy import stats  # type: ignore[import-untyped]

    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": mean, "deviation": deviation, "interval": (mean - half, mean + half)}


def _best_of(chosen: Finalist, history: History, *, maximize: bool) -> int:
    """The training of the chosen finalist whose network is taken home: the best on validation."""
    sign = 1.0 if maximize else -1.0
    done = [history.entries[number] for number in chosen.trials if _completed(history.entries[number])]
    return max(done, key=lambda entry: (sign * _fitness(entry), -entry.trial.number)).trial.number


def _test(opened: RunFolder, job: Job, history: History, chosen: Finalist, taken: int) -> list[dict[str, Json]]:
    """Metrics of all networks of the chosen finalist on the test part; nothing is chosen by them any more."""
    evaluator = parts.make_evaluator(job, opened.weights)
    control = worker.WorkerControl(math.inf, lambda: False)
    tests = []
    for number in chosen.trials:
        entry = history.entries[number]
        tests.append(dict(evaluator.test(entry.trial, control=control)) if _completed(entry) else {})
    with Journal(opened.journal_file) as journal:
        journal.append({"kind": "test", "number": taken, "metrics": tests[chosen.trials.index(taken)]})
        journal.sync()
    return tests


def _completed(entry: Entry) -> bool:
    return entry.outcome is not None and entry.outcome.fitness is not None


def _fitness(entry: Entry) -> float:
    assert entry.outcome is not None and entry.outcome.fitness is not None
    return entry.outcome.fitness


def _read(opened: RunFolder) -> dict[str, Json] | None:
    file = opened.path / RESULT_FILE
    if not file.is_file():
        return None
    result: dict[str, Json] = json.loads(file.read_text(encoding="utf-8"))
    return result


def _print(opened: RunFolder, result: dict[str, Any]) -> None:
    metric = result["metric"]
    table = Table(title=f"finalists of {result['source']}, validation {metric}", title_justify="left")
    for name in ("trial", "search", "mean, 95 % interval", "deviation", "trainings", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in sorted(result["finalists"], key=lambda group: group["trial"] != result["chosen"]):
        mark = " *" if group["trial"] == result["chosen"] else ""
        half = "" if group["interval"] is None else f" ± {(group['interval'][1] - group['interval'][0]) / 2:.4f}"
        table.add_row(
            f"{group['trial']}{mark}",
            f"{group['fitness']:.4f}",
            _number(group["mean"]) + half,
            _number(group["deviation"]),
            f"{len(group['values'])} of {len(group['trials'])}",
            f"{group['n_parameters']:,}",
        )
    console = Console()
    console.print(table)
    test, own = result["test"], result["test"]["network"]
    spread = "" if test["deviation"] is None else f", deviation {test['deviation']:.4f}"
    lines = [f"* chosen by the mean: trial {result['chosen']}"]
    if test["values"]:
        n = len(test["values"])
        lines.append(f"test {metric} {test['mean']:.4f} (mean of its {n} training{'s' * (n != 1)}{spread})")
    if metric in own:
        lines.append(
            f"its network of best validation is trial {result['network']} here: test {metric} {own[metric]:.4f}"
        )
    lines.append(f"nord-hpc export {opened.path} --trial {result['network']} --out FILE writes it as a file")
    lines.append(f"folder {opened.path}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

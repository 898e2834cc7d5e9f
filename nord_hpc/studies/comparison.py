"""Several searches over the same problem, budget and seeds: what is compared, how it is run, and how it came out."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from nord_hpc import job as jobs
from nord_hpc.cluster import first_candidates, parts
from nord_hpc.errors import BadInput
from nord_hpc.job import Job, Settings
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.studies.incumbent import Incumbent, RunResult
from nord_hpc.studies.simulate_search import simulate
from nord_hpc.studies.statistics import Paired, compare_paired, holm
from nord_hpc.trial import Json

RANDOM = "random_search"
TRAINS = ("training", "zero_cost")
CHUNK = 5
"""Seeds that a process runs at a time."""


class CompareSettings(Settings):
    """The section `compare` of a comparison.

    Attributes:
        variants: name to fields of the job that it changes, dotted; whole sections may stand as mappings.
        vary: fields to their values; all combinations are variants. In place of `variants`, or beside it.
        seeds: 0 to seeds - 1 are run for each variant.
        reference: the variant that all others are compared with; random search if not given.
        metrics: of the best on the test part, shown beside its fitness.
        by: one of these metrics, that the statistics compare; the best fitness if not given.
        scale: factor of the shown figures, such as 100 for percent.
        published: variant to its figures in the literature, as text.
    """

    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    seeds: int = Field(default=10, ge=2)
    reference: str | None = None
    metrics: tuple[str, ...] = ()
    by: str | None = None
    scale: float = Field(default=1.0, gt=0)
    published: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_varies(self) -> CompareSettings:
        if not self.variants and not self.vary:
            raise ValueError("set variants (name: fields) or vary (field: values)")
        if self.by is not None and self.by not in self.metrics:
            raise ValueError(f"by {self.by!r} is not among metrics; set metrics: [{self.by}]")
        return self


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is to be compared: jobs by name, all over the same seeds."""

    name: str
    settings: CompareSettings
    jobs: Mapping[str, Job]
    reference: str


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of the table.

    Attributes:
        mean, deviation: of the best fitness; the deviation is that of the sample.
        test: metric to mean and deviation.
        against: compared with the reference, larger being better; None for the reference itself.
        p_holm: corrected for the number of variants.
    """

    name: str
    n: int
    mean: float
    deviation: float
    test: Mapping[str, tuple[float, float]]
    n_trials: float
    against: Paired | None
    p_holm: float | None


def load(path: Path, *, overrides: Sequence[str] = (), seeds: int | None = None) -> Comparison:
    """Read a comparison: a job file with a section `compare`.

    Raises:
        BadInput: one line with the file, the field, and what to set.
    """
    data = jobs.read_mapping(path, overrides=overrides)
    section = data.pop("compare", None)
    if not isinstance(section, dict):
        raise BadInput(f"{path}: compare: is missing; a comparison is a job file with a section of that name")
    try:
        settings = CompareSettings.model_validate({**section, **({} if seeds is None else {"seeds": seeds})})
    except ValidationError as error:
        raise BadInput(f"{path}: {jobs.explain(error, prefix=('compare',))}") from error
    variants = {**dict(_combinations(settings.vary)), **settings.variants}
    made = {name: _variant(data, name, fields, path) for name, fields in variants.items()}
    if all(job.strategy.name != RANDOM for job in made.values()):
        made[RANDOM] = _variant(data, RANDOM, {"strategy": {"name": RANDOM}}, path)
    reference = settings.reference or next(name for name, job in made.items() if job.strategy.name == RANDOM)
    for field, names in (("reference", [reference]), ("published", list(settings.published))):
        for name in names:
            if name not in made:
                raise BadInput(f"{path}: compare.{field}: there is no variant {name!r}; set one of {', '.join(made)}")
    return Comparison(next(iter(made.values())).name, settings, made, reference)


def _combinations(vary: Mapping[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not vary:
        return
    for values in product(*vary.values()):
        fields = dict(zip(vary, values, strict=True))
        name = ", ".join(_shown(field, value, alone=len(vary) == 1) for field, value in fields.items())
        yield name, fields


def _shown(field: str, value: Any, *, alone: bool) -> str:
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return text if alone else f"{field.rpartition('.')[2]} {text}"


def _variant(data: Mapping[str, Any], name: str, fields: Mapping[str, Any], path: Path) -> Job:
    changed = json.loads(json.dumps(data))
    for field, value in fields.items():
        *sections, last = field.split(".")
        section = changed
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise BadInput(f"{path}: compare: variant {name!r}: {field}: {part} is a value, not a section")
        section[last] = value
    return jobs.from_mapping(changed, folder=path.parent, source=f"{path}: variant {name!r}")


class Results:
    """The searches that have been run, kept in a file line by line, so that an interrupted comparison goes on."""

    def __init__(self, folder: Path, comparison: Comparison) -> None:
        self._file = folder / "results.jsonl"
        self._digests = {name: _digest(job) for name, job in comparison.jobs.items()}
        self.found: dict[tuple[str, int], RunResult] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            data = json.loads(line)
        except ValueError:
            return  # torn by a kill
        if self._digests.get(data["variant"]) == data["job"]:
            self.found[data["variant"], data["seed"]] = RunResult.from_json(data["result"])

    def add(self, variant: str, seed: int, result: RunResult) -> None:
        self.found[variant, seed] = result
        data = {"variant": variant, "job": self._digests[variant], "seed": seed, "result": result.to_json()}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def _digest(job: Job) -> str:
    data = {key: value for key, value in job.to_json().items() if key != "seed"}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def run(
    comparison: Comparison,
    folder: Path,
    *,
    processes: int,
    on_result: Callable[[int, int], None] = lambda done, total: None,
) -> Results:
    """Run what has not been run yet; searches that look candidates up are spread over processes.

    Args:
        on_result: called with the number of searches that are done, and that of all.
    """
    results = Results(folder, comparison)
    seeds = range(comparison.settings.seeds)
    missing = [(name, seed) for name in comparison.jobs for seed in seeds if (name, seed) not in results.found]
    total = len(comparison.jobs) * len(seeds)
    on_result(total - len(missing), total)
    looked_up = [key for key in missing if comparison.jobs[key[0]].evaluator.name not in TRAINS]
    for variant, seed, result in _simulated(comparison, looked_up, processes):
        results.add(variant, seed, result)
        on_result(len(results.found), total)
    for variant, seed in missing:
        if (variant, seed) not in results.found:
            result = _trained(comparison.jobs[variant], seed, folder / "runs" / _file_name(variant, seed), processes)
            results.add(variant, seed, result)
            on_result(len(results.found), total)
    return results


def _simulated(
    comparison: Comparison, keys: Sequence[tuple[str, int]], processes: int
) -> Iterator[tuple[str, int, RunResult]]:
    by_variant: dict[str, list[int]] = {}
    for name, seed in keys:
        by_variant.setdefault(name, []).append(seed)
    chunks = [(name, seeds[i : i + CHUNK]) for name, seeds in by_variant.items() for i in range(0, len(seeds), CHUNK)]
    if not chunks:
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_run_chunk, comparison.jobs[name].to_json(), str(comparison.jobs[name].folder), seeds): name
            for name, seeds in chunks
        }
        try:
            for future in as_completed(futures):
                for seed, data in future.result():
                    yield futures[future], seed, RunResult.from_json(data)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_evaluators: dict[str, Any] = {}


def _run_chunk(data: dict[str, Json], folder: str, seeds: Sequence[int]) -> list[tuple[int, dict[str, Json]]]:
    """In a process of its own: the same job with several seeds; its table is opened once."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return [(seed, run_simulated({**data, "seed": seed}, Path(folder)).to_json()) for seed in seeds]


def run_simulated(data: Mapping[str, Any], folder: Path) -> RunResult:
    """One search in this process, in virtual time."""
    job = jobs.from_mapping(data, folder=folder)
    resolved = job.to_json()
    key = json.dumps([*(resolved[name] for name in ("evaluator", "objective", "training", "dataset")), str(folder)])
    if key not in _evaluators:
        _evaluators[key] = parts.make_evaluator(job, folder)
    evaluator = _evaluators[key]
    strategy, maker = parts.make_maker(job, evaluator)
    first = first_candidates.gather(job, parts.make_space(job))
    return simulate(job, strategy=strategy, maker=maker, evaluator=evaluator, first=first)


def _trained(job: Job, seed: int, folder: Path, ranks: int) -> RunResult:
    """One search that trains, as a run folder of its own; resumed if it was begun."""
    began = time.monotonic()
    if not (folder / "job.yaml").exists():
        seeded = jobs.from_mapping({**job.to_json(), "seed": seed}, folder=job.folder)
        parts.create_run_folder(folder, seeded)
    command = [sys.executable, "-m", "nord_hpc", "resume", str(folder), "-n", str(ranks)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise BadInput(f"{folder}: the search ended with exit code {done.returncode}; see its logs, then compare again")
    return result_of_run(RunFolder.open(folder), wall_seconds=time.monotonic() - began)


def result_of_run(folder: RunFolder, *, wall_seconds: float) -> RunResult:
    """The result of a search from its run folder."""
    history, job = folder.history(), folder.job()
    incumbent = Incumbent(job)
    for number in history.commit_order:
        entry = history.entries[number]
        assert entry.outcome is not None
        incumbent.add(entry.trial, entry.outcome, seconds=entry.trial.virtual_finish / 1e6)
    test = {} if history.test is None else history.test["metrics"]
    return incumbent.result(history_sha256=history.history_sha256, wall_seconds=wall_seconds, test=test)


def _file_name(variant: str, seed: int) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in variant)
    return f"{safe}-{seed}"


def table(comparison: Comparison, results: Results) -> list[Row]:
    """One row for each variant, compared with the reference over the seeds that both have finished."""
    settings = comparison.settings
    objective = comparison.jobs[comparison.reference].objective
    sign = settings.scale * (1.0 if objective.direction == "maximize" else -1.0)
    fitness = {name: _values(results, name, settings.seeds, None) for name in comparison.jobs}
    values = {name: _values(results, name, settings.seeds, settings.by) for name in comparison.jobs}
    against: dict[str, Paired] = {}
    for name in comparison.jobs:
        both = sorted(values[name].keys() & values[comparison.reference].keys())
        if name != comparison.reference and len(both) > 1:
            reference = values[comparison.reference]
            against[name] = compare_paired(
                [sign * values[name][seed] for seed in both], [sign * reference[seed] for seed in both]
            )
    corrected = dict(zip(against, holm([paired.p for paired in against.values()]), strict=True))
    return [
        _row(name, results, fitness[name], settings, against.get(name), corrected.get(name)) for name in comparison.jobs
    ]


def _values(results: Results, name: str, seeds: int, metric: str | None) -> dict[int, float]:
    """By seed the best fitness, or a metric of the best on the test part; seeds without one are left out."""
    found = {seed: results.found[name, seed] for seed in range(seeds) if (name, seed) in results.found}
    values = {seed: result.fitness if metric is None else result.test.get(metric) for seed, result in found.items()}
    return {seed: float(value) for seed, value in values.items() if isinstance(value, int | float)}


def _row(
    name: str,
    results: Results,
    fitness: Mapping[int, float],
    settings: CompareSettings,
    against: Paired | None,
    p_holm: float | None,
) -> Row:
    scaled = [settings.scale * value for value in fitness.values()]
    test = {}
    for metric in settings.metrics:
        known = [results.found[name, seed].test.get(metric) for seed in fitness]
        numbers = [settings.scale * value for value in known if isinstance(value, int | float)]
        test[metric] = _mean_and_deviation(numbers)
    mean, deviation = _mean_and_deviation(scaled)
    n_trials = _mean_and_deviation([results.found[name, seed].n_trials for seed in fitness])[0]
    return Row(name, len(scaled), mean, deviation, test, n_trials, against, p_holm)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

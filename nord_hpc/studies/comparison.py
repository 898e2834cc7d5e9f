"""Several searches over the same problems, budget and seeds: how they are run, kept, and how they came out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nord_hpc import job as jobs
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.studies.incumbent import RunResult
from nord_hpc.studies.searches import digest, file_name, simulated, trained
from nord_hpc.studies.variants import CompareSettings, Comparison, trains

if TYPE_CHECKING:
    from nord_hpc.studies.statistics import Friedman, Paired

Key = tuple[str, str]
"""A problem and a variant."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one problem.

    Attributes:
        n: searches with a result.
        mean, deviation: of the best fitness; the deviation is that of the sample.
        test: metric to mean and deviation.
        n_trials: of a search, their mean.
        against: compared with the reference, larger being better; None for the reference itself.
        p_holm: corrected for the number of variants.
    """

    problem: str
    name: str
    n: int
    mean: float
    deviation: float
    test: Mapping[str, tuple[float, float]]
    n_trials: float
    against: Paired | None
    p_holm: float | None


class Results:
    """The searches that have been run, kept in a file line by line, so that an interrupted comparison goes on."""

    def __init__(self, folder: Path, comparison: Comparison) -> None:
        self._file = folder / "results.jsonl"
        self._digests = {key: _digest(job) for key, job in comparison.jobs.items()}
        self.found: dict[tuple[str, str, int], RunResult] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            data = json.loads(line)
        except ValueError:
            return  # torn by a kill
        key = (data["problem"], data["variant"])
        if self._digests.get(key) == data["job"]:
            self.found[(*key, data["seed"])] = RunResult.from_json(data["result"])

    def add(self, key: Key, seed: int, result: RunResult) -> None:
        self.found[(*key, seed)] = result
        problem, variant = key
        data = {"problem": problem, "variant": variant, "job": self._digests[key], "seed": seed}
        with self._file.open("a", encoding="utf-8") as file:
            if file.tell() and not self._ends_whole():
                file.write("\n")
            file.write(json.dumps({**data, "result": result.to_json()}) + "\n")

    def of(self, key: Key, seeds: int) -> dict[int, RunResult]:
        """By seed."""
        return {seed: self.found[(*key, seed)] for seed in range(seeds) if (*key, seed) in self.found}

    def _ends_whole(self) -> bool:
        with self._file.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


def _digest(job: Job) -> str:
    """Equal for jobs that differ in nothing but their seed."""
    return digest(job.model_copy(update={"seed": 0}))


def run(
    comparison: Comparison,
    folder: Path,
    *,
    processes: int,
    on_result: Callable[[int, int], None] = lambda done, total: None,
) -> Results:
    """Run what has not been run yet: searches that look results up side by side, others one after the other.

    Args:
        processes: searches at a time, or MPI ranks of each one that trains.
        on_result: called with the number of searches that are done, and that of all.
    """
    results = Results(folder, comparison)
    seeds = range(comparison.settings.seeds)
    missing = {key: [seed for seed in seeds if (*key, seed) not in results.found] for key in comparison.jobs}
    total = len(comparison.jobs) * len(seeds)
    done = total - sum(map(len, missing.values()))
    on_result(done, total)
    wanted = {key: (job, missing[key]) for key, job in comparison.jobs.items() if not trains(job)}
    for key, seed, result in simulated(wanted, processes=processes):
        results.add(key, seed, result)
        done += 1
        on_result(done, total)
    # Seed by seed, so that what is there after an interruption can be compared.
    for seed in seeds:
        for key, job in comparison.jobs.items():
            if trains(job) and seed in missing[key]:
                seeded = jobs.from_mapping({**job.to_json(), "seed": seed}, folder=job.folder)
                results.add(key, seed, trained(seeded, _run_folder(folder, key, seed), ranks=processes))
                done += 1
                on_result(done, total)
    return results


def _run_folder(folder: Path, key: Key, seed: int) -> Path:
    return folder / "runs" / file_name("-".join([*filter(None, key), str(seed)]))


def table(comparison: Comparison, results: Results) -> list[Row]:
    """One row for each problem and variant, compared with the reference over the seeds that both have finished."""
    from nord_hpc.studies.statistics import compare_paired, holm

    settings = comparison.settings
    sign = settings.scale * _sign(comparison)
    rows = []
    for problem in comparison.problems:
        values = {name: _values(results, (problem, name), settings) for name in comparison.variants}
        reference = values[comparison.reference]
        against: dict[str, Paired] = {}
        for name in comparison.variants:
            both = sorted(values[name].keys() & reference.keys())
            if name != comparison.reference and len(both) > 1:
                against[name] = compare_paired(
                    [sign * values[name][seed] for seed in both], [sign * reference[seed] for seed in both]
                )
        corrected = dict(zip(against, holm([paired.p for paired in against.values()]), strict=True))
        for name in comparison.variants:
            found = list(results.of((problem, name), settings.seeds).values())
            rows.append(_row((problem, name), found, settings, against.get(name), corrected.get(name)))
    return rows


def ranks(comparison: Comparison, results: Results) -> Friedman:
    """Average ranks of the variants over the problems, by their means over the seeds, and Friedman's test.

    Raises:
        BadInput: there are too few problems or variants for that, and why seeds cannot take their place; or a search
            has no result.
    """
    from nord_hpc.studies.statistics import friedman

    if len(comparison.problems) < 2:
        friedman([], what="seeds")
    rows = []
    for problem in comparison.problems:
        values = [list(_values(results, (problem, name), comparison.settings).values()) for name in comparison.variants]
        if not all(values):
            raise BadInput(f"average ranks: a variant has no result on {problem}")
        rows.append([_sign(comparison) * statistics.fmean(of_variant) for of_variant in values])
    return friedman(rows)


def _sign(comparison: Comparison) -> float:
    directions = {job.objective.direction for job in comparison.jobs.values()}
    return 1.0 if directions == {"maximize"} else -1.0


def _values(results: Results, key: Key, settings: CompareSettings) -> dict[int, float]:
    """By seed what the statistics compare; seeds without it are left out."""
    found = results.of(key, settings.seeds)
    by = settings.by
    values = {seed: result.fitness if by is None else result.test.get(by) for seed, result in found.items()}
    return {seed: float(value) for seed, value in values.items() if isinstance(value, int | float)}


def _row(
    key: Key, found: Sequence[RunResult], settings: CompareSettings, against: Paired | None, p_holm: float | None
) -> Row:
    known = [result for result in found if result.fitness is not None]
    test = {}
    for metric in settings.metrics:
        numbers = [result.test.get(metric) for result in known]
        test[metric] = _mean_and_deviation([settings.scale * x for x in numbers if isinstance(x, int | float)])
    mean, deviation = _mean_and_deviation([settings.scale * x for result in found if (x := result.fitness) is not None])
    n_trials = _mean_and_deviation([result.n_trials for result in found])[0]
    return Row(*key, len(known), mean, deviation, test, n_trials, against, p_holm)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

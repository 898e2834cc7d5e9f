"""How well cheap evaluations rank networks: the same networks at several fidelities, against the full one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from nord_hpc import job as jobs
from nord_hpc.cluster import parts
from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.job import Job, Settings
from nord_hpc.seeding import generator
from nord_hpc.store.run_folder import write_atomically
from nord_hpc.studies.searches import file_name, run_in_folder
from nord_hpc.studies.simulate_search import simulate
from nord_hpc.studies.statistics import RankCorrelation, rank_correlation
from nord_hpc.studies.variants import RANDOM, Fields, changed_job, trains
from nord_hpc.trial import FinishedTrial, Json, Outcome, Proposal, Trial

FULL = "full"
SIZES = {"parameters": "n_parameters", "multiply-adds": "multiply_adds"}
"""Baselines that every proxy has to beat."""

DRAWS_PER_NETWORK = 200
"""Samples of the space for each network that is wanted, before it counts as exhausted."""


class ProxySettings(Settings):
    """The section `proxies` of a study of cheap evaluations.

    Attributes:
        networks: how many different ones are drawn at random from the space.
        fidelities: name to the fields of the job that make it cheaper, dotted, such as training.epochs or
            dataset.fraction. Any field may be one. Their trials have other seeds than those of full fidelity, unless
            they set `seed`.
        scores: zero-cost scores of the untrained networks.
    """

    networks: int = Field(default=30, ge=3)
    fidelities: dict[str, Fields] = Field(default_factory=dict)
    scores: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something_is_cheaper(self) -> ProxySettings:
        if not self.fidelities and not self.scores:
            raise ValueError("set fidelities (name: fields), scores, or both")
        taken = [name for name in (*self.fidelities, *self.scores) if name == FULL or name in SIZES]
        if taken:
            raise ValueError(f"{taken[0]!r} is a name of the table's own; choose another")
        return self


@dataclass(frozen=True, slots=True)
class Study:
    """What is to be studied.

    Attributes:
        jobs: by the name of the fidelity; the first is `FULL`.
        genotypes: the networks.
    """

    name: str
    jobs: Mapping[str, Job]
    genotypes: Sequence[Json]


@dataclass(slots=True)
class Scores:
    """The networks at one fidelity, by their number.

    Attributes:
        values: larger is better. A network that failed has none.
        seconds: rank-seconds of its evaluation, measured, or of the table.
    """

    values: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One fidelity.

    Attributes:
        agreement: with the full fidelity; None where the ranking is not known.
        speed_up: time of a full evaluation over that of this one, the median over the networks; None for what takes
            no time.
    """

    name: str
    agreement: RankCorrelation | None
    speed_up: float | None


def load(path: Path, *, overrides: Sequence[str] = ()) -> Study:
    """Read a study: a job file with a section `proxies`; and draw the networks.

    Raises:
        BadInput: one line with the file, the field, and what to set.
    """
    data = jobs.read_mapping(path, overrides=overrides)
    section = data.pop("proxies", None)
    if not isinstance(section, dict):
        raise BadInput(f"{path}: proxies: is missing; a study of proxies is a job file with a section of that name")
    try:
        settings = ProxySettings.model_validate(section)
    except ValidationError as error:
        raise BadInput(f"{path}: {explain(error, prefix=('proxies',))}") from error
    fixed = {"strategy": {"name": RANDOM}, "budget": {"trials": settings.networks}}
    made = {FULL: changed_job(data, [fixed], path=path, what="proxies")}
    for name, fields in {**settings.fidelities, **{score: _scoring(score) for score in settings.scores}}.items():
        other = {"seed": made[FULL].seed + 1}
        made[name] = changed_job(data, [other, fields, fixed], path=path, what=f"proxies: fidelity {name!r}")
    return Study(made[FULL].name, made, _networks(made[FULL], settings.networks, path))


def _scoring(score: str) -> Fields:
    return {
        "evaluator.name": "zero_cost",
        "evaluator.scores": [score],
        "objective": {"metric": score, "direction": "maximize"},
        "training.epochs": 0,
    }


def _networks(job: Job, n: int, path: Path) -> list[Json]:
    """Different feasible points of the space, by the job's seed."""
    space = parts.make_space(job)
    _, maker = parts.make_maker(job, parts.make_evaluator(job, job.folder))
    rng = generator(job.seed, "proxies")
    found: dict[str, Json] = {}
    seen: set[str] = set()
    for _ in range(n * DRAWS_PER_NETWORK):
        genotype = space.sample(rng)
        text = json.dumps(genotype, sort_keys=True)
        if text in seen:
            continue
        seen.add(text)
        if maker.make(len(found), Proposal(genotype), virtual_start=0).infeasible is None:
            found[text] = genotype
        if len(found) == n:
            return list(found.values())
    raise BadInput(
        f"{path}: proxies.networks: the space gives {len(found)} feasible networks; set {len(found)} or less"
    )


def evaluate(
    study: Study, folder: Path, *, ranks: int, on_result: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Scores]:
    """Evaluate all networks at all fidelities; those that train are run folders below `folder`, and go on there."""
    scores = {}
    for done, (name, job) in enumerate(study.jobs.items()):
        on_result(done, len(study.jobs))
        run = _in_folder if trains(job) else _looked_up
        scores[name] = run(study, job, folder / "runs" / file_name(name), ranks)
    return scores


def _looked_up(study: Study, job: Job, folder: Path, ranks: int) -> Scores:
    evaluator = parts.make_evaluator(job, folder)
    strategy, maker = parts.make_maker(job, evaluator)
    scores = Scores()

    def take(finished: FinishedTrial) -> None:
        _take(scores, job, finished.trial, finished.outcome, seconds=finished.trial.cost / 1e6)

    first = [FirstCandidate(genotype, "proxies") for genotype in study.genotypes]
    simulate(job, strategy=strategy, maker=maker, evaluator=evaluator, first=first, on_commit=take)
    return scores


def _in_folder(study: Study, job: Job, folder: Path, ranks: int) -> Scores:
    networks = folder.parent.parent / "networks"
    networks.mkdir(parents=True, exist_ok=True)
    files = [networks / f"{number}.json" for number in range(len(study.genotypes))]
    for file, genotype in zip(files, study.genotypes, strict=True):
        write_atomically(file, json.dumps(genotype).encode())
    candidates = job.candidates.model_copy(update={"initial": tuple(file.resolve() for file in files)})
    given: dict[str, Any] = {**job.to_json(), "candidates": candidates.model_dump(mode="json")}
    opened = run_in_folder(jobs.from_mapping(given, folder=job.folder), folder, ranks=ranks)
    scores = Scores()
    for entry in opened.history().entries.values():
        if entry.outcome is not None:
            n_ranks = len(entry.attempts[-1].ranks) if entry.attempts else 0
            _take(scores, job, entry.trial, entry.outcome, seconds=entry.outcome.seconds * n_ranks)
    return scores


def _take(scores: Scores, job: Job, trial: Trial, outcome: Outcome, *, seconds: float) -> None:
    scores.trials[trial.number] = trial
    if outcome.fitness is not None:
        scores.values[trial.number] = outcome.fitness if job.objective.direction == "maximize" else -outcome.fitness
        scores.seconds[trial.number] = seconds


def rows(study: Study, scores: Mapping[str, Scores]) -> list[Row]:
    """One row for each cheaper fidelity, then the baselines; over the networks that have a result at both."""
    full = scores[FULL]
    compared = [_row(name, scores[name].values, full, scores[name].seconds) for name in study.jobs if name != FULL]
    for name, attribute in SIZES.items():
        sizes = {number: float(getattr(trial, attribute)) for number, trial in full.trials.items()}
        compared.append(_row(name, sizes if any(sizes.values()) else {}, full, None))
    return compared


def _row(name: str, values: Mapping[int, float], full: Scores, seconds: Mapping[int, float] | None) -> Row:
    both = sorted(values.keys() & full.values.keys())
    if len(both) < 3:
        return Row(name, None, None)
    agreement = rank_correlation([values[n] for n in both], [full.values[n] for n in both])
    if seconds is None:
        return Row(name, agreement, None)
    # The median, as the first evaluations of a rank take longer than all others.
    ratios = [full.seconds[n] / seconds[n] for n in both if seconds[n] > 0]
    return Row(name, agreement, statistics.median(ratios) if ratios else None)

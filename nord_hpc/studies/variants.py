"""What a comparison compares: a job file with a section `compare`, as jobs by problem and variant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from nord_hpc import job as jobs
from nord_hpc import registry
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.job import Job, Settings

RANDOM = "random_search"

Fields = dict[str, Any]
"""Dotted fields of a job to their values; whole sections may stand as mappings."""


class CompareSettings(Settings):
    """The section `compare` of a comparison.

    Attributes:
        variants: name to fields of the job that it changes, dotted; whole sections may stand as mappings.
        vary: fields to their values; all combinations are variants. In place of `variants`, or beside it.
        problems: name to fields, as for variants; every variant is run on every problem. None: the job's own.
        seeds: 0 to seeds - 1 are run for each variant.
        reference: the variant that all others are compared with; random search if not given.
        metrics: of the best on the test part, shown beside its fitness.
        by: one of these metrics, that the statistics compare; the best fitness if not given.
        scale: factor of the shown figures, such as 100 for percent.
        published: variant to its figures in the literature, as text.
    """

    variants: dict[str, Fields] = Field(default_factory=dict)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    problems: dict[str, Fields] = Field(default_factory=dict)
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
    """What is to be compared.

    Attributes:
        jobs: by problem and variant; a comparison without problems of its own has one, named "".
        reference: a variant.
    """

    name: str
    settings: CompareSettings
    jobs: Mapping[tuple[str, str], Job]
    reference: str

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(problem for problem, _ in self.jobs))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(variant for _, variant in self.jobs))


def load(path: Path, *, overrides: Sequence[str] = (), seeds: int | None = None) -> Comparison:
    """Read a comparison: a job file with a section `compare`. Random search is added where no variant has it.

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
        raise BadInput(f"{path}: {explain(error, prefix=('compare',))}") from error
    problems = settings.problems or {"": {}}
    variants = {**dict(_combinations(settings.vary)), **settings.variants}
    made = {
        (problem, name): changed_job(data, [problems[problem], fields], path=path, what=f"compare: variant {name!r}")
        for problem in problems
        for name, fields in variants.items()
    }
    if all(job.strategy.name != RANDOM for job in made.values()):
        plain = {"strategy": {"name": RANDOM}}
        for problem, fields in problems.items():
            made[problem, RANDOM] = changed_job(data, [fields, plain], path=path, what=f"compare: variant {RANDOM!r}")
    reference = settings.reference or next(name for (_, name), job in made.items() if job.strategy.name == RANDOM)
    known = list(dict.fromkeys(name for _, name in made))
    for field, names in (("reference", [reference]), ("published", list(settings.published))):
        for name in names:
            if name not in known:
                raise BadInput(f"{path}: compare.{field}: there is no variant {name!r}; set one of {', '.join(known)}")
    for job in made.values():
        _check_looked_up(job, path)
    if len({job.objective for job in made.values()}) > 1:
        raise BadInput(f"{path}: objective: differs between variants or problems, so they cannot be compared")
    return Comparison(next(iter(made.values())).name, settings, made, reference)


def changed_job(data: Mapping[str, Any], changes: Iterable[Fields], *, path: Path, what: str) -> Job:
    """The job of a file with fields changed, one set of changes after the other.

    Args:
        data: the file as a mapping; it stays as it is.
        what: is being made, for messages.

    Raises:
        BadInput: the job is wrong then.
    """
    changed = json.loads(json.dumps(data))
    for fields in changes:
        for field, value in fields.items():
            *sections, last = field.split(".")
            section = changed
            for part in sections:
                section = section.setdefault(part, {})
                if not isinstance(section, dict):
                    raise BadInput(f"{path}: {what}: {field}: {part} is a value, not a section")
            section[last] = value
    return jobs.from_mapping(changed, folder=path.parent, source=f"{path}: {what}")


def trains(job: Job) -> bool:
    """Whether the evaluator works on the user's data (`nord_hpc.interfaces.HasData`), and does not look results up."""
    return hasattr(registry.resolve("evaluator", job.evaluator.name, folder=job.folder), "data")


def _check_looked_up(job: Job, path: Path) -> None:
    """What is not trained runs in virtual time, which must have an end."""
    if trains(job):
        return
    if job.budget.trials is None and job.budget.simulated_seconds is None:
        raise BadInput(f"{path}: budget.hours: is wall time, and nothing is trained; set trials or simulated_seconds")
    if job.order.mode != "virtual":
        raise BadInput(f"{path}: order.mode: arrival is an order of wall time, and nothing is trained; set virtual")


def _combinations(vary: Mapping[str, list[Any]]) -> Iterator[tuple[str, Fields]]:
    if not vary:
        return
    for values in product(*vary.values()):
        fields = dict(zip(vary, values, strict=True))
        name = ", ".join(_shown(field, value, alone=len(vary) == 1) for field, value in fields.items())
        yield name, fields


def _shown(field: str, value: Any, *, alone: bool) -> str:
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return text if alone else f"{field.rpartition('.')[2]} {text}"

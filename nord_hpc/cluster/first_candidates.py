"""The candidates that come before the strategy's own: from files of the user, and from an earlier run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.interfaces import SearchSpace
from nord_hpc.job import Job
from nord_hpc.store.history import outcome_from_json, outcome_to_json
from nord_hpc.store.run_folder import RunFolder, changed_fields, write_atomically
from nord_hpc.trial import Json, Outcome

SAME_IN_A_WARM_START = ("dataset", "evaluator", "training", "objective", "resources.shards", "space")
"""Parts of the job that fitness depends on."""


@dataclass(frozen=True, slots=True)
class FirstCandidate:
    """A candidate that comes before the strategy's own.

    Attributes:
        source: where it comes from, for people.
        outcome: of its evaluation in another run; None if it must be evaluated.
    """

    genotype: Json
    source: str
    outcome: Outcome | None = None


def gather(job: Job, space: SearchSpace) -> list[FirstCandidate]:
    """The first candidates that a job names: those of the earlier run, then the files, each in order.

    Raises:
        BadInput: a file or folder is not there, or does not fit the job.
    """
    earlier = [] if job.candidates.warm_start is None else _of_run(job.candidates.warm_start, job, space)
    return [*earlier, *(_of_file(file, space) for file in job.candidates.initial)]


def save(path: Path, candidates: Sequence[FirstCandidate]) -> None:
    """Keep them with the run, so that a resume needs nothing from outside."""
    data = [
        {
            "genotype": candidate.genotype,
            "source": candidate.source,
            "outcome": None if candidate.outcome is None else outcome_to_json(candidate.outcome),
        }
        for candidate in candidates
    ]
    write_atomically(path, json.dumps(data).encode())


def load(path: Path) -> list[FirstCandidate]:
    """What `save` wrote; nothing where there is no file."""
    if not path.exists():
        return []
    return [
        FirstCandidate(
            item["genotype"], item["source"], None if item["outcome"] is None else outcome_from_json(item["outcome"])
        )
        for item in json.loads(path.read_text(encoding="utf-8"))
    ]


def _of_file(path: Path, space: SearchSpace) -> FirstCandidate:
    field = "candidates.initial"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON: {error}"
        raise BadInput(f"{field}: {path}: cannot be read: {reason}") from error
    if space.contains(data):
        return FirstCandidate(data, path.name)
    inverse: Any = getattr(space, "from_descriptor", None)
    if inverse is None:
        raise BadInput(
            f"{field}: {path}: is no genotype of {type(space).__name__}, and this space cannot find the genotype of a "
            f"descriptor; give genotypes, such as those that `nord-hpc trials DIR --json` prints"
        )
    try:
        return FirstCandidate(inverse(NeuralDescriptor.from_json(data)), path.name)
    except (Infeasible, BadInput, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{field}: {path}: is neither a genotype nor the descriptor of a network of {type(space).__name__}: {error}"
        ) from error


def _of_run(path: Path, job: Job, space: SearchSpace) -> list[FirstCandidate]:
    folder = RunFolder.open(path)
    other = folder.job()
    differing = [
        name for name in changed_fields(other.to_json(), job.to_json()) if name.startswith(SAME_IN_A_WARM_START)
    ]
    if differing:
        raise BadInput(
            f"candidates.warm_start: {path}: its results were made with other {', '.join(differing)}; make them equal, "
            f"or give the candidates alone by candidates.initial"
        )
    history = folder.history()
    found = []
    for number in history.commit_order:
        trial, outcome = history.entries[number].trial, history.entries[number].outcome
        fits = trial.fidelity == job.full_fidelity and space.contains(trial.genotype)
        if outcome is not None and outcome.fitness is not None and fits:
            source = f"{path.name}, trial {number}"
            marked = replace(outcome, seconds=0.0, provenance={**outcome.provenance, "imported_from": source})
            found.append(FirstCandidate(trial.genotype, source, marked))
    if not found:
        raise BadInput(f"candidates.warm_start: {path}: has no completed trial of full fidelity; leave it away")
    return found

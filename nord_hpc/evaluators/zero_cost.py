"""The evaluator that scores untrained networks, in place of training or before it. Training is left to `training`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from nord_hpc import seeding
from nord_hpc.datasets.dataset import open_dataset
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, TrialFailed
from nord_hpc.evaluators.training_evaluator import TrainingEvaluator
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, ObjectiveSettings
from nord_hpc.proxies import NAMES, SIZES
from nord_hpc.training import metrics
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    from nord_hpc.proxies.measures import Example

ScoreName = Literal["grad_norm", "jacob_cov", "naswot", "snip", "synflow", "n_parameters", "multiply_adds"]

PASSES = 3
"""Of a sample through the network forward that one score costs: forward, and backward twice that."""


class ZeroCostEvaluator:
    """Scores of `nord_hpc.proxies` on one batch of the training part, the same one for all candidates.

    - Where the job's objective is a score, such as `synflow`, that is the fitness and nothing is ever trained.
    - Else a trial of 0 epochs is not trained, and its fitness is the first of `scores`, negated where the job
      minimizes; trials of more epochs are trained and have the fitness of their training. So a score can be the lowest
      fidelity of a search, or, with the strategy `screened`, its filter.

    All `scores` are metrics of every trial, with the parameters and multiply-adds beside them.

    Raises:
        BadInput: settings that no training can follow, or an objective that trials of 0 epochs cannot have.
    """

    class Options(TrainingEvaluator.Options):
        """What is scored, and how descriptors become networks.

        Attributes:
            scores: that are computed for each candidate.
            batch_size: training samples that they see.
        """

        scores: tuple[ScoreName, ...] = Field(default=("synflow",), min_length=1)
        batch_size: int = Field(default=64, ge=2)

        @field_validator("scores")
        @classmethod
        def _each_once(cls, scores: tuple[ScoreName, ...]) -> tuple[ScoreName, ...]:
            if len(set(scores)) < len(scores):
                raise ValueError(f"scores {', '.join(scores)} names one twice; name each once")
            return scores

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        self._options = options
        self._job = job
        metric = job.objective.metric
        self._objective = metric if metric in (*NAMES, *SIZES) else None
        self._scores: tuple[str, ...] = options.scores
        if self._objective is not None:
            self._scores = tuple(dict.fromkeys((self._objective, *options.scores)))
            job = _with_objective(job, "accuracy")  # nothing is trained, but networks are planned as for training
        elif job.training.epochs == 0:
            raise BadInput(
                f"training.epochs: 0 trains nothing, so there is no {metric}; set objective.metric to a score such as "
                f"{self._scores[0]}, or epochs to 1 or more"
            )
        shared = options.model_dump(include=set(TrainingEvaluator.Options.model_fields))
        self._make_training = functools.partial(
            TrainingEvaluator,
            TrainingEvaluator.Options.model_validate(shared),
            folder=folder,
            weights_folder=weights_folder,
        )
        self._folder = folder
        self._first = self._make_training(job=job)  # now, as it refuses what no training can follow
        self._examples: dict[str, Example] = {}

    def describe(self) -> str:
        return f"{self._training.describe()}; scores of the untrained network: {', '.join(self._scores)}"

    def data(self) -> dict[str, Json]:
        """See `nord_hpc.interfaces.HasData`."""
        return self._training.data()

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        whole = self._training.examine(descriptor, fidelity, settings)
        cost = self._job.cost
        samples = PASSES * self._options.batch_size * len(self._scores)
        scoring = whole.multiply_adds * samples / cost.multiply_adds_per_microsecond
        scoring += len(self._scores) * (
            cost.step_microseconds + len(descriptor.canonical_order()) * cost.layer_microseconds
        )
        total = max(1, round(scoring)) + (whole.cost if self._trains(fidelity) else 0)
        return Examination(total, whole.n_parameters, whole.multiply_adds, whole.memory_bytes)

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        control.check()
        if not self._trains(trial.fidelity):
            scores = self._scored(trial, part="train")
            return self._outcome(scores, seconds=time.perf_counter() - began)
        outcome = self._training.evaluate(trial, gang=gang, control=control, keep_above=keep_above)
        scores = self._scored(trial, part="train")
        return Outcome(
            outcome.state,
            fitness=outcome.fitness,
            metrics={**scores, **outcome.metrics},
            seconds=time.perf_counter() - began,
            provenance=outcome.provenance,
        )

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """See `Evaluator.test`; of a network that was not trained, the scores on a batch of the test part."""
        if self._trains(trial.fidelity):
            return self._training.test(trial, control=control)
        control.check()
        return dict(self._scored(trial, part="test"))

    @functools.cached_property
    def _training(self) -> TrainingEvaluator:
        """What plans and trains networks. It wants an objective of the data's task, also where nothing is trained."""
        if self._objective is None:
            return self._first
        task = open_dataset(self._job.dataset, folder=self._folder, device="cpu").info.task
        metric = next(iter(metrics.METRICS[task]))
        return self._make_training(job=_with_objective(self._job, metric))

    def _trains(self, fidelity: Fidelity) -> bool:
        return self._objective is None and fidelity.epochs > 0

    def _outcome(self, scores: Mapping[str, float], *, seconds: float) -> Outcome:
        name = self._scores[0]
        value = scores[name]
        if not math.isfinite(value):
            raise TrialFailed(f"the score {name} is not finite", kind="not_finite")
        # A score is good where it is large; a job that asks for the smallest of it gets that.
        negated = self._objective is None and self._job.objective.direction == "minimize"
        return Outcome(TrialState.COMPLETED, fitness=-value if negated else value, metrics=scores, seconds=seconds)

    def _scored(self, trial: Trial, *, part: Literal["train", "test"]) -> dict[str, float]:
        from nord_hpc.builder.network import Network
        from nord_hpc.proxies import score_network

        network = self._training.untrained_network(trial)
        assert isinstance(network, Network)
        x, y = self._example(part)
        names = [name for name in self._scores if name in NAMES]
        scores = score_network(network, x, y, names, seed=seeding.derived_seed(trial.seed, "scores"))
        return {name: value for name, value in scores.items() if math.isfinite(value) or name == self._scores[0]}

    def _example(self, part: Literal["train", "test"]) -> Example:
        """The batch that all candidates are scored on; drawn once, by the job's seed."""
        from nord_hpc.proxies.measures import Example

        if part not in self._examples:
            x, y = self._training.some_samples(
                part, self._options.batch_size, seed=seeding.derived_seed(self._job.seed, "scores", part)
            )
            self._examples[part] = Example(x, y)
        return self._examples[part]


def _with_objective(job: Job, metric: str) -> Job:
    direction: Literal["maximize", "minimize"] = "maximize" if metrics.greater_is_better(metric) else "minimize"
    changed = job.model_copy(update={"objective": ObjectiveSettings(metric=metric, direction=direction)})
    changed._folder = job.folder
    changed._with_settings = {}
    return changed

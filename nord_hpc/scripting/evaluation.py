"""One evaluation of a network on one data set, as every rank of a gang runs it; the loop is the trainer's."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from nord_hpc.datasets.dataset import Dataset
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.interfaces import DataParallel
from nord_hpc.job import TrainingSettings
from nord_hpc.scripting.configs import Criterion, DatasetRecord, MetricChoice
from nord_hpc.scripting.loading import TAKEN_IN_PART, NamedData, load, whole_training_split
from nord_hpc.scripting.neural_net import NeuralNet
from nord_hpc.training.data import Part
from nord_hpc.training.device import choose_device, prepare_process, resolve_precision, resolve_reduction
from nord_hpc.training.losses import LossMetric, loss_sum
from nord_hpc.training.metrics import chosen
from nord_hpc.training.scoring import score
from nord_hpc.training.trainer import EpochReport, Given, TrainingData, autocast_of, train
from nord_hpc.trial import Fidelity

log = logging.getLogger(__name__)

SCHEDULES = ("constant", "cosine", "linear")
KEPT_DATASETS = 4

Say = Callable[[str], None]
"""Shows one line to people."""


class Evaluation(NamedTuple):
    """What became of a network.

    Attributes:
        loss: mean over the samples of the scored part.
        metrics: on that part, by name.
        total_time: seconds of training, scoring after each epoch included.
    """

    loss: float
    metrics: dict[str, float]
    total_time: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an evaluator trains and scores.

    Attributes:
        optimizer_class: torch's, or any that is called with parameters and `optimizer_params`.
        criterion, metrics: in place of those of the data set.
        scheduler: of the learning rate: "constant", "cosine" or "linear" to zero over all steps; or a class or function
            that makes one of torch's schedulers from the optimizer and `scheduler_params`.
        schedule_every: "epoch" or "step", when a scheduler of torch's steps.
        batch_size: over all shards; rounded down to a multiple of these.
        split: what is scored: the "validation" part that is carved out of the training part, or the "test" part after
            training on all the rest.
        validation: share of the training part that is carved out.
        shards: logical parts of a batch, a multiple of the ranks; None for one a rank. Equal shards give equal results
            on any number of ranks, where the reduction is exact.
        device, precision, reduction: as in a job.
        threads: of each rank; None for as many as torch has now.
    """

    optimizer_class: Callable[..., torch.optim.Optimizer]
    optimizer_params: Mapping[str, Any] = field(default_factory=dict)
    criterion: Criterion | None = None
    metrics: tuple[MetricChoice, ...] | None = None
    scheduler: str | Callable[..., Any] = "constant"
    scheduler_params: Mapping[str, Any] = field(default_factory=dict)
    schedule_every: Literal["epoch", "step"] = "epoch"
    batch_size: int = 128
    split: Literal["validation", "test"] = "validation"
    validation: float = 0.2
    shards: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    reduction: Literal["auto", "exact", "fast"] = "auto"
    threads: int | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise BadInput(f"split: {self.split!r} is not a choice; set validation or test")
        if isinstance(self.scheduler, str) and self.scheduler not in SCHEDULES:
            choices = ", ".join(SCHEDULES)
            raise BadInput(f"scheduler: {self.scheduler!r} is not a choice; set one of {choices}, or a class of torch")
        if self.schedule_every not in ("epoch", "step"):
            raise BadInput(f"schedule_every: {self.schedule_every!r} is not a choice; set epoch or step")
        if self.batch_size < 2:
            raise BadInput(f"batch_size: {self.batch_size} is too small; set 2 or more")


@dataclass(frozen=True, slots=True)
class Request:
    """One evaluation, with all that it follows from.

    Attributes:
        fraction: share of the training data.
        untrained: the network is scored as it is.
        seed: of weights, order of samples and noise.
    """

    recipe: Recipe
    record: DatasetRecord
    epochs: int
    fraction: float
    untrained: bool
    seed: int
    shards: int
    threads: int

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise BadInput(f"epochs: {self.epochs} is out of range; set 0 or more")
        if not 0 < self.fraction <= 1:
            raise BadInput(f"data_percentage: {self.fraction} is out of range; set a share above 0, at most 1")


class Datasets:
    """The data sets that this process has opened lately."""

    def __init__(self) -> None:
        self._opened: dict[Any, tuple[DatasetRecord, Dataset]] = {}

    def open(self, record: DatasetRecord, *, key: object, validation: float, device: str, speak: bool) -> Dataset:
        """The data of a record.

        Args:
            key: equal for equal records.
            speak: whether to warn of files that are not the official ones.

        Raises:
            BadInput: they cannot be read, or are not as the record says.
        """
        full_key = (key, validation, device)
        found = self._opened.pop(full_key, None)
        if found is None:
            dataset = load(record.data_load, name=record.name, task=record.task, validation=validation, device=device)
            _check(record, dataset)
            data_load = record.data_load
            if speak and isinstance(data_load, NamedData) and data_load.name in TAKEN_IN_PART and data_load.found():
                for note in dataset.info.notes:
                    log.warning("dataset %s: %s", record.name, note)
            found = (record, dataset)  # the record stays alive, so that its id stays its own
        self._opened[full_key] = found
        while len(self._opened) > KEPT_DATASETS:
            del self._opened[next(iter(self._opened))]
        return found[1]


def evaluate(
    request: Request,
    network: NeuralDescriptor | nn.Module,
    *,
    datasets: Datasets,
    key: object,
    data_parallel: DataParallel,
    say: Say | None = None,
) -> tuple[Evaluation, nn.Module]:
    """Train and score a network. All members of a gang call it with equal arguments; each gets the same.

    The global random state is afterwards as it was before.

    Args:
        network: a descriptor to build; or a network, which is trained in place.
        key: of the record, for `Datasets`.

    Raises:
        Infeasible: the network cannot be built, or the data are too few.
        TrialFailed: a loss or an output is not finite, or memory is short.
        BadInput: the data or settings are wrong.
        GangBroken: a partner is gone.
    """
    recipe, record = request.recipe, request.record
    device = choose_device(recipe.device, environ=os.environ)
    prepare_process(device, threads=request.threads)
    dataset = datasets.open(
        record, key=key, validation=recipe.validation, device=device.type, speak=data_parallel.rank == 0
    )
    with _random_state_kept(device):
        if isinstance(network, NeuralDescriptor):
            network = _network_of(network, record, seed=request.seed)
        if not getattr(network, "functional", True):
            raise Infeasible(str(getattr(network, "reason", "the network could not be built")))
        network = network.to(device)
        if device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert isinstance(network, nn.Module)
        began = time.perf_counter()
        values = _trained_and_scored(request, network, dataset, device=device, data_parallel=data_parallel, say=say)
        seconds = time.perf_counter() - began
    loss = values.pop("loss")
    return Evaluation(loss, values, 0.0 if request.untrained else seconds), network


def _trained_and_scored(
    request: Request,
    network: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    data_parallel: DataParallel,
    say: Say | None,
) -> dict[str, float]:
    """The loss and the metrics on the scored part."""
    recipe, record, info = request.recipe, request.record, dataset.info
    loss = loss_sum(record.criterion if recipe.criterion is None else recipe.criterion, device=device)
    metrics = chosen(record.metrics if recipe.metrics is None else recipe.metrics, n_outputs=record.num_classes)
    metrics = [LossMetric(loss), *metrics]
    precision = resolve_precision(recipe.precision, device)
    scored = Part(dataset.test if recipe.split == "test" else dataset.validation, info, device=device)
    settings = TrainingSettings(
        epochs=request.epochs,
        batch_size=recipe.batch_size - recipe.batch_size % request.shards,
        schedule=recipe.scheduler if isinstance(recipe.scheduler, str) else "constant",  # type: ignore[arg-type]
    )
    if request.untrained or request.epochs == 0:
        return score(
            network,
            scored,
            metrics=metrics,
            batch_size=settings.validation_batch_size,
            autocast=autocast_of(device, precision),
            data_parallel=data_parallel,
            control=_Free(),
            when="untrained",
        )
    split = whole_training_split(dataset) if recipe.split == "test" else dataset.train
    data = TrainingData(info, train=Part(split, info, device=device), validation=scored)
    result = train(
        network,
        data,
        settings=settings,
        fidelity=Fidelity(epochs=request.epochs, fraction=request.fraction),
        shards=request.shards,
        seed=request.seed,
        reduction=resolve_reduction(recipe.reduction, device=device, shards=request.shards, sync_batch_norm=False),
        precision=precision,
        data_parallel=data_parallel,
        control=_Free(),
        given=Given(
            optimizer=recipe.optimizer_class,
            optimizer_options=recipe.optimizer_params,
            scheduler=_scheduler(recipe),
            schedule_every=recipe.schedule_every,
            loss=loss,
            metrics=metrics,
        ),
        on_epoch=None if say is None else lambda report: say(_line(report, request)),
    )
    return dict(result.metrics)


def _network_of(descriptor: NeuralDescriptor, record: DatasetRecord, *, seed: int) -> NeuralNet:
    return NeuralNet(
        descriptor,
        record.num_classes,
        record.input_shape,
        record.channels,
        keep_dimensions=record.dimension_keeping,
        dense_part=record.dense_part,
        seed=seed,
    )


def _scheduler(recipe: Recipe) -> Callable[[torch.optim.Optimizer], Any] | None:
    make = recipe.scheduler
    return None if isinstance(make, str) else lambda optimizer: make(optimizer, **recipe.scheduler_params)


def _check(record: DatasetRecord, dataset: Dataset) -> None:
    """Refuse data that are not as their record says."""
    info = dataset.info
    told, found = (record.channels, *record.input_shape), tuple(info.input_shape)
    if told != found:
        raise BadInput(
            f"dataset {record.name}: its samples are {_text(found)}, but CHANNELS and INPUT_SHAPE say {_text(told)}; "
            f"set channels {found[0]} and input_shape {found[1:]}"
        )
    wrong = info.n_outputs > record.num_classes if info.task == "classification" else False
    if wrong or (info.task == "regression" and info.n_outputs != record.num_classes):
        what = "classes" if info.task == "classification" else "outputs"
        raise BadInput(
            f"dataset {record.name}: it has {info.n_outputs} {what}, but NUM_CLASSES says {record.num_classes}; "
            f"set num_classes {info.n_outputs}"
        )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _line(report: EpochReport, request: Request) -> str:
    values = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    part = request.recipe.split
    return f"epoch {report.epoch}/{request.epochs}: training loss {report.train_loss:.4f}; {part}: {values}"


class _Free:
    """A control that wants nothing."""

    def check(self) -> None:
        pass


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        yield

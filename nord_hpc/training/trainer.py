"""Trains one network on 1 or N ranks in one plain loop. Backends add the gradients; evaluators make the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nord_hpc import seeding
from nord_hpc.errors import StoreError, TrialFailed
from nord_hpc.interfaces import Control, DataParallel
from nord_hpc.job import TrainingSettings
from nord_hpc.training import checkpoint as checkpoints
from nord_hpc.training import optimizers, schedules
from nord_hpc.training.batches import BatchPlan, epoch_order, noise_seed, plan_batches, stream_order, subset
from nord_hpc.training.carried import CarriedStates
from nord_hpc.training.checks import check_sync_batch_norm
from nord_hpc.training.data import SEQUENCE_TASK, Info, Part, StreamedPart
from nord_hpc.training.flat import FlatNetwork, ShardBuffers
from nord_hpc.training.losses import LOSS_OF_TASK, LossSum, loss_sum
from nord_hpc.training.metrics import Metric, WholeMetric, metrics_of
from nord_hpc.training.reduction import ExactReduction, FastReduction, Reduction
from nord_hpc.training.scoring import score
from nord_hpc.training.sync_batch_norm import synchronize_batch_norm
from nord_hpc.trial import Fidelity, Json


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The parts of a data set that training may see; the test part is none of them."""

    info: Info
    train: Part
    validation: Part | StreamedPart


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One line of a learning curve.

    Attributes:
        epoch: from 1; 0 is the untrained network, where nothing else is measured.
        train_loss: mean over the samples that the epoch used, each before its step; None for epoch 0.
        metrics: on the validation part, after the epoch.
        weights_sha256: of all parameters and buffers after the epoch, where digests are asked for.
    """

    epoch: int
    train_loss: float | None
    metrics: Mapping[str, float]
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training gave, equal on all ranks.

    Attributes:
        curve: one report per epoch, or that of the untrained network.
        batches: sizes and steps of an epoch.
        steps: in all.
        n_parameters: trainable ones.
    """

    curve: tuple[EpochReport, ...]
    batches: BatchPlan
    steps: int
    n_parameters: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """On the validation part, at the end."""
        return self.curve[-1].metrics


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller gives as Python objects, in place of what the settings and the task say; None changes nothing.

    Attributes:
        optimizer: makes one from parameters and `optimizer_options`, as torch's classes do.
        scheduler: makes a scheduler of torch from the optimizer; stands in for `TrainingSettings.schedule`.
        schedule_every: when it steps.
        loss: see `nord_hpc.training.losses`.
        metrics: what is measured on the validation part.
    """

    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    schedule_every: Literal["epoch", "step"] = "epoch"
    loss: LossSum | None = None
    metrics: Sequence[Metric | WholeMetric] | None = None


def train(
    network: nn.Module,
    data: TrainingData,
    *,
    settings: TrainingSettings,
    fidelity: Fidelity,
    shards: int,
    seed: int,
    reduction: Literal["exact", "fast"],
    precision: Literal["fp32", "bf16"],
    data_parallel: DataParallel,
    control: Control,
    given: Given | None = None,
    digests: bool = False,
    on_epoch: Callable[[EpochReport], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Train `network` in place. All members of the gang call it with equal arguments and networks.

    With the exact reduction everything is a function of the arguments alone, whatever the number of ranks: each batch
    has `shards` equal parts, whose gradients are added in their order. With the fast one a batch has one part per rank.

    Args:
        network: on the device of the data. Afterwards it holds the trained weights and the buffers of the first shard.
        shards: a multiple of the gang's size.
        seed: of the order of the samples and of the noise inside the network.
        given: optimizer, scheduler, loss and metrics of the caller's own.
        digests: whether reports carry the digest of the weights.
        on_epoch: called with each report of this call.
        checkpoint: file that the state is written to after each epoch. If it is there, the training goes on from it, on
            any number of ranks with the exact reduction, and gives what an unbroken one gives.

    Raises:
        TrialFailed: a loss or an output is not finite, or memory is short.
        Infeasible: too few samples for the shards.
        StoreError: the checkpoint is damaged or that of another training.
        GangBroken: a partner is gone.
    """
    with short_memory_is_a_failure():
        training = _Training(
            network,
            data,
            settings=settings,
            fidelity=fidelity,
            shards=shards,
            seed=seed,
            reduction=reduction,
            precision=precision,
            data_parallel=data_parallel,
            control=control,
            given=given or Given(),
            digests=digests,
        )
        curve = [] if checkpoint is None else training.restore(checkpoint)
        for epoch in range(len(curve) + 1, fidelity.epochs + 1) if fidelity.epochs else [0]:
            report = training.report(epoch, training.train_epoch(epoch) if epoch else None)
            curve.append(report)
            training.schedule(report)
            if checkpoint is not None:
                training.save(checkpoint, curve)
            if on_epoch is not None:
                on_epoch(report)
        training.buffers.show_first(data_parallel)
    return TrainingResult(
        curve=tuple(curve),
        batches=training.batches,
        steps=training.batches.steps * fidelity.epochs,
        n_parameters=training.model.n_parameters,
    )


class _Training:
    """One training in progress, on one rank."""

    def __init__(
        self,
        network: nn.Module,
        data: TrainingData,
        *,
        settings: TrainingSettings,
        fidelity: Fidelity,
        shards: int,
        seed: int,
        reduction: Literal["exact", "fast"],
        precision: Literal["fp32", "bf16"],
        data_parallel: DataParallel,
        control: Control,
        given: Given,
        digests: bool,
    ) -> None:
        self.network, self.data, self.settings, self.seed = network, data, settings, seed
        self.data_parallel, self.control, self.digests = data_parallel, control, digests
        device, n_train = data.train.device, len(data.train)
        self.batches = plan_batches(
            n_train=n_train, fraction=fidelity.fraction, batch_size=settings.batch_size, shards=shards
        )
        self.is_sequence = data.info.task == SEQUENCE_TASK
        self.samples_N = subset(n_train, self.batches.n_samples)

        self.parts = shards if reduction == "exact" else data_parallel.size
        self.slots = self.parts // data_parallel.size
        if settings.sync_batch_norm:
            check_sync_batch_norm(enabled=True, reduction=reduction)
            synchronize_batch_norm(network, data_parallel)
        self.model = FlatNetwork(network)
        self.model.share(data_parallel)
        self.buffers = ShardBuffers(self.model.buffers, slots=self.slots)
        self.states = CarriedStates(network, slots=self.slots)
        self.clip_norm = settings.clip_norm
        self.reduction: Reduction = FastReduction(self.model.gradient_P, data_parallel=data_parallel)
        if reduction == "exact":
            self.reduction = ExactReduction(self.model.gradient_P, slots=self.slots, data_parallel=data_parallel)

        self.lr_factor = shards if settings.scale_lr == "linear" else 1
        self.n_steps = self.batches.steps * fidelity.epochs
        self.optimizer = self._make_optimizer(given)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scheduler = given.scheduler(self.optimizer) if given.scheduler is not None else None
        self.schedule_every = given.schedule_every
        self.loss_sum = given.loss or loss_sum(LOSS_OF_TASK[data.info.task])
        self.metrics: Sequence[Metric | WholeMetric] = (
            metrics_of(data.info.task, n_outputs=data.info.n_outputs) if given.metrics is None else given.metrics
        )
        self.autocast = autocast_of(device, precision)
        self.noise = _Noise(device, seeding.derived_seed(seed, "noise"))
        self.weight_of_sample = torch.tensor(1 / self.batches.batch, device=device)
        self.losses_TL = torch.empty((self.batches.steps, self.slots), device=device)
        self.n_epochs = fidelity.epochs
        # What a checkpoint must agree in. The number of epochs matters only where the learning rate depends on it.
        self.identity: dict[str, Json] = {
            **settings.model_dump(mode="json", exclude={"epochs", "validation_batch_size"}),
            "optimizer class": type(self.optimizer).__qualname__,
            "scheduler class": None if self.scheduler is None else type(self.scheduler).__qualname__,
            "epochs": None if settings.schedule == "constant" or self.scheduler is not None else fidelity.epochs,
            "samples": self.batches.n_samples,
            "parts": self.parts,
            "reduction": reduction,
            "precision": precision,
            "seed": seed,
            "network": self.model.layout_sha256(),
        }

    def train_epoch(self, epoch: int) -> float:
        """One pass over the data; the mean loss of its samples, each before its step. Never waits for the device."""
        self.network.train()
        self.states.reset()
        samples = self.data.train.in_order(self._order(epoch))
        first_part = self.data_parallel.rank * self.slots
        for step in range(self.batches.steps):
            self.control.check()
            for slot in range(self.slots):
                part = first_part + slot
                x_BC, y_B = samples[self.batches.bounds(step, part, parts=self.parts)]
                self.buffers.enter(slot)
                self.states.enter(slot)
                self.noise.reseed(epoch=epoch, step=step, part=part)
                with self.autocast:
                    outputs = self.network(x_BC)
                loss = self.loss_sum(outputs.float(), y_B)
                loss.backward(self.weight_of_sample)  # type: ignore[no-untyped-call]
                self.losses_TL[step, slot] = loss.detach()
                self.buffers.leave(slot)
                self.states.leave(slot)
                self.reduction.after_shard(slot)
            self.reduction.finish()
            self._clip()
            if self.scheduler is None:
                self._set_lr((epoch - 1) * self.batches.steps + step)
            self.optimizer.step()
            if self.scheduler is not None and self.schedule_every == "step":
                self.scheduler.step()
            self.model.gradient_P.zero_()
        return self._mean_loss(epoch)

    def report(self, epoch: int, train_loss: float | None) -> EpochReport:
        """Score the trial's weights, with the buffers of its first shard, on the validation part."""
        self.buffers.show_first(self.data_parallel)
        values = score(
            self.network,
            self.data.validation,
            metrics=self.metrics,
            batch_size=self.settings.validation_batch_size,
            autocast=self.autocast,
            data_parallel=self.data_parallel,
            control=self.control,
            when=f"after epoch {epoch}",
        )
        weights_sha256 = self.model.sha256() if self.digests else None
        self.buffers.go_on()
        return EpochReport(epoch, train_loss, values, weights_sha256)

    def schedule(self, report: EpochReport) -> None:
        """Let the caller's scheduler step after an epoch."""
        if self.scheduler is None or self.schedule_every == "step" or report.epoch == 0:
            return
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(report.metrics.get("loss", report.train_loss or 0.0))
        else:
            self.scheduler.step()

    def save(self, path: Path, curve: Sequence[EpochReport]) -> None:
        """Leave the state after an epoch in a file; see `restore`."""
        checkpoints.save(
            path,
            identity=self.identity,
            model=self.model,
            buffers=self.buffers,
            optimizer=self.optimizer,
            curve=[asdict(report) for report in curve],
            data_parallel=self.data_parallel,
        )

    def restore(self, path: Path) -> list[EpochReport]:
        """Go on from a file: its curve, empty where there is none. Schedulers take the steps that they took before."""
        initial = [dict(group) for group in self.optimizer.param_groups]
        saved = checkpoints.restore(
            path,
            identity=self.identity,
            model=self.model,
            buffers=self.buffers,
            optimizer=self.optimizer,
            data_parallel=self.data_parallel,
        )
        curve = [EpochReport(**values) for values in saved]
        if len(curve) > self.n_epochs:
            raise StoreError(f"{path}: is of a training after {len(curve)} epochs, more than {self.n_epochs}")
        self._replay_schedule(curve, initial)
        return curve

    def _replay_schedule(self, curve: Sequence[EpochReport], initial: Sequence[Mapping[str, Any]]) -> None:
        """Let a new scheduler see what the one before the break saw, from the same rates on."""
        if self.scheduler is None:
            return
        restored = [dict(group) for group in self.optimizer.param_groups]
        self._set_groups(initial)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for report in curve:
                for _ in range(self.batches.steps if self.schedule_every == "step" else 0):
                    self.scheduler.step()
                self.schedule(report)
        self._set_groups(restored)

    def _set_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(values)

    def _make_optimizer(self, given: Given) -> torch.optim.Optimizer:
        if given.optimizer is None:
            settings = self.settings.optimizer
            return optimizers.build(settings, self.model.parameters_P, lr=settings.lr * self.lr_factor)
        optimizer = optimizers.build_given(
            given.optimizer,
            given.optimizer_options,
            parameters=[parameter for parameter in self.network.parameters() if parameter.requires_grad],
            parameters_P=self.model.parameters_P,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.lr_factor
        return optimizer

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Which samples stand where in an epoch's batches."""
        if self.is_sequence:
            return stream_order(self.batches, seed=self.seed, epoch=epoch)
        return epoch_order(self.samples_N, seed=self.seed, epoch=epoch)

    def _clip(self) -> None:
        """Scale a gradient that is too large down, on the device."""
        if self.clip_norm is not None:
            gradient_P = self.model.gradient_P
            norm = torch.linalg.vector_norm(gradient_P)
            gradient_P.mul_((self.clip_norm / norm).clamp(max=1.0))

    def _set_lr(self, step: int) -> None:
        factor = schedules.factor(self.settings.schedule, step=step, n_steps=self.n_steps)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def _mean_loss(self, epoch: int) -> float:
        """The epoch's loss over all parts; a step whose loss is not finite ends the trial, on all ranks alike."""
        size, (steps, slots) = self.data_parallel.size, self.losses_TL.shape
        gathered_RTL = self.data_parallel.all_gather(self.losses_TL.view(-1)).view(size, steps, slots)
        losses_TS = gathered_RTL.transpose(0, 1).reshape(steps, -1).double().cpu()
        finite_T = losses_TS.isfinite().all(1)
        if not finite_T.all():
            step = int(finite_T.logical_not().nonzero()[0, 0]) + 1
            raise TrialFailed(
                f"the training loss is not finite in epoch {epoch}, step {step} of {steps}", kind="not_finite"
            )
        return float(losses_TS.sum()) / self.batches.samples_used


def autocast_of(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """The context of a forward pass; may be entered again and again."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=torch.bfloat16)


class _Noise:
    """The random state of what is random inside a network, such as dropout."""

    def __init__(self, device: torch.device, base: int) -> None:
        self._base = base
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index])

    def reseed(self, *, epoch: int, step: int, part: int) -> None:
        seed = noise_seed(self._base, epoch=epoch, step=step, part=part)
        for generator in self._generators:
            generator.manual_seed(seed)


@contextmanager
def short_memory_is_a_failure() -> Iterator[None]:
    """Memory that is short in the body, on whatever device, is raised as `TrialFailed` of that kind."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not is_short:
            raise
        raise TrialFailed(f"out of memory: {str(error).splitlines()[0]}", kind="out_of_memory") from error

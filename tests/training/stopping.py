"""Trainings that are stopped after some epochs, and the rates and weights that they show, for tests of checkpoints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import example
import torch
from torch import nn

from nord_hpc.errors import SearchStopped
from nord_hpc.job import TrainingSettings
from nord_hpc.training.trainer import EpochReport, Given, TrainingResult, train
from nord_hpc.trial import Fidelity

N_STEPS = 10
"""Of an epoch: 101 samples in batches of 10."""


class Halving:
    """Makes a scheduler that halves the rate after every second epoch, and shows the rate of its optimizer."""

    def __init__(self, *, every_step: bool = False) -> None:
        self.period = 2 * N_STEPS if every_step else 2
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, optimizer: torch.optim.Optimizer) -> Any:
        self.optimizer = optimizer
        return torch.optim.lr_scheduler.StepLR(optimizer, self.period, gamma=0.5)

    @property
    def rate(self) -> float:
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])


class Stop:
    """A control that stops the training before the first step of the epoch after `after`."""

    def __init__(self, after: int | None) -> None:
        self.after = after
        self.done = 0

    def check(self) -> None:
        if self.after is not None and self.done >= self.after:
            raise SearchStopped("as the test wants")


def run(
    gang: Any,
    checkpoint: Path | None = None,
    *,
    stop_after: int | None = None,
    optimizer: Any,
    epochs: int = 4,
    shards: int = 2,
    halving: Halving | None = None,
    given: Given | None = None,
    network: nn.Module | None = None,
    reduction: Any = "exact",
    **settings: Any,
) -> tuple[TrainingResult | None, list[dict[str, Any]]]:
    """The result, None for a stopped training, and what each of its epochs showed."""
    shown: list[dict[str, Any]] = []
    control = Stop(stop_after)
    rates: list[float] = []
    if halving is not None:
        given = Given(scheduler=halving, schedule_every="epoch" if halving.period == 2 else "step")
        inner = control.check

        def check() -> None:
            inner()
            rates.append(halving.rate)

        control.check = check  # type: ignore[method-assign]

    def on_epoch(report: EpochReport) -> None:
        control.done = report.epoch
        shown.append({"epoch": report.epoch, "digest": report.weights_sha256, "rate": rates[0] if rates else None})
        rates.clear()  # scoring asks the control, too

    result = None
    with contextlib.suppress(SearchStopped):
        result = train(
            example.Example(spare=True) if network is None else network,
            example.data(),
            settings=TrainingSettings(batch_size=10, optimizer=optimizer, validation_batch_size=50, **settings),
            fidelity=Fidelity(epochs=epochs),
            shards=shards,
            seed=7,
            reduction=reduction,
            precision="fp32",
            data_parallel=gang,
            control=control,
            given=given,
            digests=True,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
    return result, shown

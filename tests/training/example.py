"""Small networks and data for the tests of training, equal on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nord_hpc.errors import NordError
from nord_hpc.job import TrainingSettings
from nord_hpc.training.data import Part
from nord_hpc.training.trainer import TrainingData, TrainingResult, train
from nord_hpc.trial import Fidelity

CPU = torch.device("cpu")


class Free:
    """A control that wants nothing."""

    def check(self) -> None:
        pass


@dataclass(frozen=True)
class Info:
    task: str = "classification"
    n_outputs: int = 3
    storage: str = "host"
    normalized: bool = True

    def normalize(self, x: Any) -> Any:
        return (np.asarray(x, dtype=np.float32) - 128) / 64


@dataclass(frozen=True)
class Split:
    x: Any
    y: Any


def images(n: int, *, seed: int) -> Split:
    """Noisy 1 x 8 x 8 images of three classes: each has its own bright rows."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(scale=0.7, size=(n, 1, 8, 8)).astype(np.float32)
    for label in range(3):
        x[y == label, :, 2 * label : 2 * label + 2] += 1
    return Split(x, y.astype(np.int64))


def data(*, n_train: int = 101, n_validation: int = 47) -> TrainingData:
    info = Info()
    return TrainingData(
        info,
        train=Part(images(n_train, seed=1), info, device=CPU),
        validation=Part(images(n_validation, seed=2), info, device=CPU),
    )


class Example(nn.Module):
    """Convolutions with batch normalization and dropout; with `spare`, also layers that feed nothing or are frozen."""

    def __init__(self, *, spare: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.dense = nn.Linear(8 * 16, 3)
        if spare:
            self.dead = nn.Conv2d(1, 4, 3)
            self.conv.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.second_norm(self.second(self.drop(x))))
        x = nn.functional.max_pool2d(x, 2)
        result: torch.Tensor = self.dense(x.flatten(1))
        return result


def run(
    network: nn.Module,
    training_data: TrainingData,
    *,
    gang: Any,
    epochs: int = 2,
    fraction: float = 1.0,
    shards: int = 1,
    batch_size: int = 10,
    optimizer: Any = None,
    reduction: Any = "exact",
    seed: int = 7,
    **settings: Any,
) -> TrainingResult:
    """`train` with defaults."""
    return train(
        network,
        training_data,
        settings=TrainingSettings(
            batch_size=batch_size,
            optimizer=optimizer or {"name": "adam", "lr": 0.005},
            validation_batch_size=settings.pop("validation_batch_size", 8),
            **settings,
        ),
        fidelity=Fidelity(epochs=epochs, fraction=fraction),
        shards=shards,
        seed=seed,
        reduction=reduction,
        precision="fp32",
        data_parallel=gang,
        control=Free(),
        digests=True,
    )


def summary(result: TrainingResult) -> dict[str, Any]:
    """What must be equal on all ranks and gangs."""
    return {
        "digests": [report.weights_sha256 for report in result.curve],
        "losses": [report.train_loss for report in result.curve],
        "metrics": [dict(report.metrics) for report in result.curve],
        "steps": result.steps,
        "samples_used": result.batches.samples_used,
    }


def failure(function: Any, *arguments: Any, **options: Any) -> str:
    """The error of a call, as text."""
    try:
        function(*arguments, **options)
    except NordError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"

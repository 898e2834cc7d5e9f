"""Metrics as sums over samples: added over batches and ranks, divided once, so that every sample counts exactly once.

Importing this file imports no torch; computing with it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    import torch


class Metric(Protocol):
    """One figure of merit.

    Attributes:
        name: as in a job file.
        n_sums: length of the vector of sums.
        greater_is_better: whether the larger of two values is the better one.
    """

    name: str
    n_sums: int
    greater_is_better: bool

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sums over one batch, float64 [n_sums]. Adding the sums of two batches gives those of their union."""

    def compute(self, sums: Sequence[float]) -> float:
        """The value from the sums over all samples."""


class Accuracy:
    """Share of the samples whose largest output is that of their class, 0 to 1."""

    name = "accuracy"
    n_sums = 2
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _sum_and_count((outputs.argmax(1) == targets).double())

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


class CrossEntropy:
    """Mean negative log-likelihood of the classes, in nats, 0 or more."""

    name = "cross_entropy"
    n_sums = 2
    greater_is_better = False

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_likelihood_N = outputs.double().log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
        return _sum_and_count(-log_likelihood_N)

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


class BalancedAccuracy:
    """Mean over the classes that occur of the share of their samples that is found, 0 to 1."""

    name = "balanced_accuracy"
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        self.n_sums = 3 * n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _class_counts(outputs, targets)

    def compute(self, sums: Sequence[float]) -> float:
        n = len(sums) // 3
        recalls = [hits / members for hits, members in zip(sums[:n], sums[n : 2 * n], strict=True) if members]
        return sum(recalls) / len(recalls)


class MacroF1:
    """Mean over the classes that occur or are predicted of 2 hits / (members + predictions), 0 to 1."""

    name = "macro_f1"
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        self.n_sums = 3 * n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _class_counts(outputs, targets)

    def compute(self, sums: Sequence[float]) -> float:
        n = len(sums) // 3
        classes = zip(sums[:n], sums[n : 2 * n], sums[2 * n :], strict=True)
        scores = [2 * hits / (members + guesses) for hits, members, guesses in classes if members + guesses]
        return sum(scores) / len(scores)


class MeanAbsoluteError:
    """Mean absolute difference over samples and outputs, 0 or more."""

    name = "mean_absolute_error"
    n_sums = 2
    greater_is_better = False

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _sum_and_count((outputs.double() - targets.double().view_as(outputs)).abs())

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


class MeanSquaredError:
    """Mean squared difference over samples and outputs, 0 or more."""

    name = "mean_squared_error"
    n_sums = 2
    greater_is_better = False

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _sum_and_count((outputs.double() - targets.double().view_as(outputs)).square())

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


METRICS: dict[str, dict[str, type[Metric]]] = {
    "classification": {
        "accuracy": Accuracy,
        "cross_entropy": CrossEntropy,
        "balanced_accuracy": BalancedAccuracy,
        "macro_f1": MacroF1,
    },
    "regression": {
        "mean_squared_error": MeanSquaredError,
        "mean_absolute_error": MeanAbsoluteError,
    },
}
"""Task to name to metric. All metrics of the data's task are measured; the job's objective is one of them."""


def check_name(name: str, *, task: str | None = None) -> None:
    """Refuse names that are no metric, or not one of `task`.

    Raises:
        BadInput: with the names that may stand there.
    """
    if any(name in metrics for metrics in METRICS.values()):
        if task is None or name in METRICS[task]:
            return
        raise BadInput(f"objective.metric: {name} is not for {task} data; set one of {', '.join(METRICS[task])}")
    known = [name for metrics in METRICS.values() for name in metrics]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"objective.metric: unknown metric {name!r}: {hint}set one of {', '.join(known)}")


def greater_is_better(name: str) -> bool:
    """Whether the larger of two values of a metric is the better one."""
    return next(metrics[name].greater_is_better for metrics in METRICS.values() if name in metrics)


def metrics_of(task: str, *, n_outputs: int) -> list[Metric]:
    """All metrics of a task, for outputs of width `n_outputs`."""
    return [metric(n_outputs) for metric in METRICS[task].values()]  # type: ignore[call-arg]


def _sum_and_count(values: torch.Tensor) -> torch.Tensor:
    total = values.sum()
    return _stack([total, total.new_full((), values.numel())])


def _class_counts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Hits, members and predictions of each class, float64 [3 x classes]."""
    import torch

    n_classes = outputs.shape[1]
    predicted = outputs.argmax(1)
    hit_classes = torch.where(predicted == targets, targets, n_classes)
    counts = [
        hit_classes.bincount(minlength=n_classes + 1)[:n_classes],
        targets.bincount(minlength=n_classes),
        predicted.bincount(minlength=n_classes),
    ]
    return torch.cat(counts).double()


def _stack(scalars: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(scalars)

"""Metrics as sums over samples: added over batches and ranks, divided once, so that every sample counts exactly once.

Importing this file imports no torch; computing with it does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

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


class WholeMetric(Protocol):
    """A figure of merit that needs all samples at once, as no sums over batches give it.

    Attributes:
        name: as in a job file.
        greater_is_better: whether the larger of two values is the better one.
    """

    name: str
    greater_is_better: bool

    def of_all(self, outputs: torch.Tensor, targets: torch.Tensor) -> float | Mapping[str, float]:
        """The value, or several by name, from all outputs [N, C] and targets, on the CPU."""


class Accuracy:
    """Share of the samples whose largest output is that of their class, 0 to 1."""

    name = "accuracy"
    n_sums = 2
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _sum_and_count((outputs.argmax(1) == _indices(targets)).double())

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
        targets = _indices(targets)
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


class KlDivergence:
    """Mean divergence of the softmax of the outputs from target distributions, in nats, 0 or more."""

    name = "kl_divergence"
    n_sums = 2
    greater_is_better = False

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        import torch

        if not targets.is_floating_point():
            targets = torch.nn.functional.one_hot(targets, outputs.shape[1])
        targets_NC = targets.double().view_as(outputs)
        divergence_N = (torch.xlogy(targets_NC, targets_NC) - targets_NC * outputs.double().log_softmax(1)).sum(1)
        return _sum_and_count(divergence_N)

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


class Auc:
    """Area under the ROC curve, 0 to 1: the mean over the classes of each against the rest; ties count half.

    Classes that never or always occur are left out; with two classes both areas are one.
    """

    name = "auc"
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def of_all(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        import torch

        probabilities_NC, targets = outputs.double().softmax(1), _indices(targets)
        areas = []
        for label in range(outputs.shape[1]):
            is_member_N = targets == label
            members = int(is_member_N.sum())
            others = len(targets) - members
            if members and others:
                _, value_N, n_V = torch.unique(
                    probabilities_NC[:, label], sorted=True, return_inverse=True, return_counts=True
                )
                # The mean rank, from 1, of samples of one value.
                rank_V = n_V.cumsum(0) - (n_V - 1) / 2
                rank_sum = float(rank_V.double()[value_N][is_member_N].sum())
                areas.append((rank_sum - members * (members + 1) / 2) / (members * others))
        return sum(areas) / len(areas) if areas else 0.5


class UserMetric:
    """A callable of the user: outputs [N, C] and targets to a number, or to several by name.

    Args:
        function: gets tensors on the CPU with all samples.
    """

    greater_is_better = True

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function

    def of_all(self, outputs: torch.Tensor, targets: torch.Tensor) -> float | Mapping[str, float]:
        value: Any = self._function(outputs, targets)
        try:
            if isinstance(value, Mapping):
                return {str(name): float(number) for name, number in value.items()}
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"metric {self.name}: gave {type(value).__name__}; return a number or a dict") from error


class TokenCrossEntropy:
    """Mean negative log-likelihood of the next tokens, in nats, 0 or more. Places with negative targets are none."""

    name = "cross_entropy"
    n_sums = 2
    greater_is_better = False

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_likelihood_NVT = outputs.double().log_softmax(1)
        losses_NT = -log_likelihood_NVT.gather(1, targets.long().clamp(min=0).unsqueeze(1)).squeeze(1)
        return _masked_sum_and_count(losses_NT, targets)

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


class BitsPerCharacter(TokenCrossEntropy):
    """The same in bits; per character where the tokens are characters, else per token."""

    name = "bits_per_character"

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1] / math.log(2)


class Perplexity(TokenCrossEntropy):
    """The exponential of the cross entropy, 1 or more; at most e^700, which is near the largest number."""

    name = "perplexity"

    def compute(self, sums: Sequence[float]) -> float:
        return math.exp(min(sums[0] / sums[1], 700.0))


class TokenAccuracy:
    """Share of the next tokens that have the largest output, 0 to 1."""

    name = "accuracy"
    n_sums = 2
    greater_is_better = True

    def __init__(self, n_outputs: int) -> None:
        del n_outputs

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _masked_sum_and_count((outputs.argmax(1) == targets).double(), targets)

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
    "language_modelling": {
        "bits_per_character": BitsPerCharacter,
        "perplexity": Perplexity,
        "cross_entropy": TokenCrossEntropy,
        "accuracy": TokenAccuracy,
    },
}
"""Task to name to metric. All metrics of the data's task are measured; the job's objective is one of them."""

OTHERS: dict[str, dict[str, type[Metric] | type[WholeMetric]]] = {
    "classification": {"auc": Auc},
    "regression": {},
    "language_modelling": {},
}
"""Likewise, but measured only where asked for, as they cost more."""

ALIASES = {"one_hot_accuracy": "accuracy", "one_hot_cross_entropy": "cross_entropy"}
"""Other names; the metrics of classification take one-hot targets as well as class indices."""


def check_name(name: str, *, task: str | None = None) -> None:
    """Refuse names that are no metric, or not one of `task`.

    Raises:
        BadInput: with the names that may stand there.
    """
    of_task = {task: [*METRICS[task], *OTHERS[task]] for task in METRICS}
    if any(name in names for names in of_task.values()):
        if task is None or name in of_task[task]:
            return
        raise BadInput(f"objective.metric: {name} is not for {task} data; set one of {', '.join(of_task[task])}")
    known = list(dict.fromkeys(name for names in of_task.values() for name in names))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"objective.metric: unknown metric {name!r}: {hint}set one of {', '.join(known)}")


def greater_is_better(name: str) -> bool:
    """Whether the larger of two values of a metric is the better one."""
    tables: list[Mapping[str, type[Metric] | type[WholeMetric]]] = [*METRICS.values(), *OTHERS.values()]
    return next(table[name].greater_is_better for table in tables if name in table)


def metrics_of(task: str, *, n_outputs: int, objective: str | None = None) -> list[Any]:
    """All metrics of a task, for outputs of width `n_outputs`, and the objective where it is none of them."""
    found: list[Any] = [metric(n_outputs) for metric in METRICS[task].values()]  # type: ignore[call-arg]
    if objective in OTHERS[task]:
        found += chosen([objective], n_outputs=n_outputs)
    return found


def chosen(given: Sequence[str | Callable[..., object] | Metric | WholeMetric], *, n_outputs: int) -> list[Any]:
    """The metrics that are named or given, whatever the task; a result has them under their names.

    Args:
        given: names; the user's callables, see `UserMetric`; or metrics.

    Raises:
        BadInput: an unknown name.
    """
    known: dict[str, Any] = {"kl_divergence": KlDivergence}
    for task in METRICS:
        known = {**METRICS[task], **OTHERS[task], **known}  # of two of one name the first task's
    found: list[Any] = []
    for item in given:
        if isinstance(item, str):
            name = ALIASES.get(item, item)
            if name not in known:
                close = difflib.get_close_matches(item, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise BadInput(f"metrics: unknown metric {item!r}: {hint}set one of {', '.join(known)}, or a callable")
            found.append(known[name](n_outputs))
            found[-1].name = item
        else:
            found.append(item if hasattr(item, "of_all") or hasattr(item, "update") else UserMetric(item))
    return found


def _indices(targets: torch.Tensor) -> torch.Tensor:
    """Class indices [N]; the largest target of each sample where they are one-hot or distributions [N, C]."""
    return targets.argmax(1) if targets.dim() == 2 else targets


def _sum_and_count(values: torch.Tensor) -> torch.Tensor:
    total = values.sum()
    return _stack([total, total.new_full((), values.numel())])


def _masked_sum_and_count(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Over the places with a target."""
    present = targets >= 0
    return _stack([(values * present).sum(), present.sum().double()])


def _class_counts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Hits, members and predictions of each class, float64 [3 x classes]."""
    import torch

    n_classes, targets = outputs.shape[1], _indices(targets)
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

"""Losses as sums over samples, by name or from the user's callable; the trainer divides by the batch, once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from nord_hpc.errors import BadInput
from nord_hpc.training.data import PADDING

LossSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs [N, C] and targets to a scalar: the sum over the samples of each one's loss."""


def cross_entropy(outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of class indices [B]."""
    return functional.cross_entropy(outputs_BC, targets_B, reduction="sum")


def one_hot_cross_entropy(outputs_BC: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the largest target of each sample; class indices [B] are taken as well."""
    return functional.cross_entropy(outputs_BC, class_indices(targets_BC), reduction="sum")


def kl_divergence(outputs_BC: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
    """Divergence of the softmax of the outputs (logits, or log-probabilities) from target distributions [B, C]."""
    targets_BC = distributions(targets_BC, outputs_BC)
    return functional.kl_div(outputs_BC.log_softmax(1), targets_BC, reduction="sum")


def mean_squared_error(outputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Over the samples, of the mean over each one's outputs."""
    total = functional.mse_loss(outputs_BT, targets_BT.view_as(outputs_BT), reduction="sum")
    return total * (len(outputs_BT) / outputs_BT.numel())


def mean_absolute_error(outputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Over the samples, of the mean over each one's outputs."""
    total = functional.l1_loss(outputs_BT, targets_BT.view_as(outputs_BT), reduction="sum")
    return total * (len(outputs_BT) / outputs_BT.numel())


def token_cross_entropy(outputs_BVT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Over the samples, of the mean negative log-likelihood of each one's next tokens; padding counts as nothing."""
    total = functional.cross_entropy(outputs_BVT, targets_BT.long(), reduction="sum", ignore_index=PADDING)
    return total / targets_BT.shape[1]


LOSSES: dict[str, LossSum] = {
    "cross_entropy": cross_entropy,
    "kl_divergence": kl_divergence,
    "mean_absolute_error": mean_absolute_error,
    "mean_squared_error": mean_squared_error,
    "one_hot_cross_entropy": one_hot_cross_entropy,
    "token_cross_entropy": token_cross_entropy,
}
"""Name to loss."""

LOSS_OF_TASK = {
    "classification": "cross_entropy",
    "regression": "mean_squared_error",
    "language_modelling": "token_cross_entropy",
}
"""What a job trains with."""


def loss_sum(given: str | type | Callable[..., object], *, device: torch.device | None = None) -> LossSum:
    """The loss of that name, or the user's.

    Args:
        given: a name; a class such as torch.nn.SmoothL1Loss; or a callable (outputs, targets) that gives the mean over
            the samples as a scalar, or a vector with the loss of each.
        device: where a module's own tensors, such as class weights, are wanted.

    Raises:
        BadInput: there is no loss of that name.
    """
    if isinstance(given, str):
        loss = LOSSES.get(given)
        if loss is None:
            close = difflib.get_close_matches(given, LOSSES, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise BadInput(f"criterion: unknown loss {given!r}: {hint}set one of {', '.join(LOSSES)}, or a callable")
        return loss
    criterion = given() if isinstance(given, type) else given
    if isinstance(criterion, nn.KLDivLoss):
        return kl_divergence
    if isinstance(criterion, nn.Module):
        criterion = criterion.to(device)
    return UserLoss(criterion)


class UserLoss:
    """A callable of the user as a sum over samples."""

    def __init__(self, criterion: Callable[..., object]) -> None:
        self._criterion = criterion

    def __call__(self, outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        value = self._criterion(outputs_BC, targets_B)
        if not isinstance(value, torch.Tensor) or value.shape not in ((), (len(outputs_BC),)):
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise BadInput(
                f"criterion: gave {got}; return a scalar tensor, the mean over the samples, or a vector of their losses"
            )
        return value.sum() if value.dim() else value * len(outputs_BC)


class LossMetric:
    """A loss as a metric: the mean over the samples."""

    name = "loss"
    n_sums = 2
    greater_is_better = False

    def __init__(self, loss: LossSum) -> None:
        self._loss = loss

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = self._loss(outputs, targets).double()
        return torch.stack([total, total.new_full((), len(outputs))])

    def compute(self, sums: Sequence[float]) -> float:
        return sums[0] / sums[1]


def class_indices(targets: torch.Tensor) -> torch.Tensor:
    """Class indices [N] of targets that are indices already, one-hot or a distribution [N, C]."""
    return targets.argmax(1) if targets.dim() == 2 and targets.is_floating_point() else targets


def distributions(targets: torch.Tensor, outputs_NC: torch.Tensor) -> torch.Tensor:
    """Distributions [N, C] of targets that are such already, or class indices [N]."""
    if targets.is_floating_point():
        return targets.view_as(outputs_NC).to(outputs_NC.dtype)
    return functional.one_hot(targets, outputs_NC.shape[1]).to(outputs_NC.dtype)

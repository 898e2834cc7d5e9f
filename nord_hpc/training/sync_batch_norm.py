"""Batch normalization over the whole batch of a gang, and not each rank's part; for the fast reduction."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from nord_hpc.interfaces import DataParallel


def synchronize_batch_norm(network: nn.Module, data_parallel: DataParallel) -> None:
    """Replace the batch normalizations inside a network; names, parameters and buffers stay."""
    if data_parallel.size == 1:
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SynchronizedBatchNorm(child, data_parallel))


class SynchronizedBatchNorm(_BatchNorm):
    """Takes over the parameters and buffers of a batch normalization."""

    def __init__(self, plain: _BatchNorm, data_parallel: DataParallel) -> None:
        super().__init__(
            plain.num_features,
            eps=plain.eps,
            momentum=plain.momentum,
            affine=False,
            track_running_stats=False,
        )
        self.affine, self.track_running_stats = plain.affine, plain.track_running_stats
        self.weight, self.bias = plain.weight, plain.bias
        self.running_mean, self.running_var = plain.running_mean, plain.running_var
        self.num_batches_tracked = plain.num_batches_tracked
        self._data_parallel = data_parallel
        self.train(plain.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x_NC)
        normalized_NC, mean_C, variance_C = _Normalize.apply(  # type: ignore[no-untyped-call]
            x_NC, self.eps, self._data_parallel
        )
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            weight: Any = 1 / self.num_batches_tracked.double() if self.momentum is None else self.momentum
            n = x_NC.numel() // x_NC.shape[1] * self._data_parallel.size
            self.running_mean.lerp_(mean_C, weight)
            self.running_var.lerp_(variance_C * (n / (n - 1)), weight)
        if self.weight is not None:
            normalized_NC = normalized_NC * _per_channel(self.weight, x_NC)
        if self.bias is not None:
            normalized_NC = normalized_NC + _per_channel(self.bias, x_NC)
        result_NC: torch.Tensor = normalized_NC.to(x_NC.dtype)
        return result_NC


class _Normalize(torch.autograd.Function):
    """(x - mean) / deviation with the statistics of all ranks' x, which are equal in shape."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: torch.Tensor, eps: float, data_parallel: DataParallel
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        axes = _all_but_channels(x_NC)
        n = x_NC.numel() // x_NC.shape[1] * data_parallel.size
        wide_NC = x_NC.double()  # sums of squares lose too much in single precision
        sums_2C = torch.stack([wide_NC.sum(axes), wide_NC.square().sum(axes)])
        data_parallel.all_reduce_sum_(sums_2C.view(-1))
        mean_C, square_C = sums_2C / n
        variance_C = (square_C - mean_C.square()).clamp_(min=0)
        scale_C = (variance_C + eps).rsqrt().float()
        normalized_NC = (x_NC.float() - _per_channel(mean_C.float(), x_NC)) * _per_channel(scale_C, x_NC)
        ctx.save_for_backward(normalized_NC, scale_C)
        ctx.data_parallel, ctx.n = data_parallel, n
        mean_C, variance_C = mean_C.float(), variance_C.float()
        ctx.mark_non_differentiable(mean_C, variance_C)
        return normalized_NC, mean_C, variance_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NC: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        normalized_NC, scale_C = ctx.saved_tensors
        axes = _all_but_channels(gradient_NC)
        sums_2C = torch.stack([gradient_NC.sum(axes), (gradient_NC * normalized_NC).sum(axes)])
        ctx.data_parallel.all_reduce_sum_(sums_2C.view(-1))
        mean_C, projection_C = sums_2C / ctx.n
        centred_NC = gradient_NC - _per_channel(mean_C, gradient_NC)
        centred_NC = centred_NC - normalized_NC * _per_channel(projection_C, gradient_NC)
        return centred_NC * _per_channel(scale_C, gradient_NC), None, None


def _all_but_channels(x_NC: torch.Tensor) -> list[int]:
    return [axis for axis in range(x_NC.dim()) if axis != 1]


def _per_channel(values_C: torch.Tensor, x_NC: torch.Tensor) -> torch.Tensor:
    return values_C.view(1, -1, *(1,) * (x_NC.dim() - 2))

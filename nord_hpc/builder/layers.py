"""Layers of our own, as torch modules; what they cost stands in `operations` and `shapes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _SeparableConv(nn.Module):
    """A depthwise convolution without bias, then a 1x1 convolution."""

    convolution: type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.depthwise = self.convolution(
            in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise = self.convolution(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.pointwise(self.depthwise(x))
        return y


class SeparableConv1d(_SeparableConv):
    """Depthwise separable convolution of [N, C, L]."""

    convolution = nn.Conv1d


class SeparableConv2d(_SeparableConv):
    """Depthwise separable convolution of [N, C, H, W]."""

    convolution = nn.Conv2d


class SeparableConv3d(_SeparableConv):
    """Depthwise separable convolution of [N, C, D, H, W]."""

    convolution = nn.Conv3d


class FirstChannels(nn.Module):
    """The first `channels` channels of [N, C, ...]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.channels]

"""Layers that scale values or sizes, and a factorized convolution, as torch modules; their costs stand in `shapes`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ScaleLayer(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class SizeScaleLayer(nn.Module):
    """Brings maps to one size by repeating or leaving out values (nearest); vectors pass as they are.

    Args:
        final_size: for all dimensions, or one for each.
    """

    def __init__(self, final_size: int | Sequence[int] = 1) -> None:
        super().__init__()
        self.final_size = final_size if isinstance(final_size, int) else tuple(final_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.dim() == 2 else functional.interpolate(x, size=self.final_size, mode="nearest")

    def extra_repr(self) -> str:
        return f"final_size={self.final_size}"


class Conv2d151(nn.Module):
    """A 1 x 5 convolution, then a 5 x 1 convolution, without padding.

    Args:
        stride: of both, in both directions.
        kernel_size: other lengths than 5: of the columns and of the rows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, kernel_size: int | Sequence[int] = 5
    ) -> None:
        super().__init__()
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.along_rows = nn.Conv2d(in_channels, out_channels, (1, width), stride)
        self.along_columns = nn.Conv2d(out_channels, out_channels, (height, 1), stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.along_columns(self.along_rows(x))
        return y

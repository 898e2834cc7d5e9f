"""Mean and standard deviation of each channel, and their use; which samples they come from is left to others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nord_hpc.datasets.rows import Rows


def channel_statistics(x: Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all samples and positions, in the units of `x`.

    Computed in float64 (bytes: in integers, from a histogram) and rounded to float32, so that the last bits, which
    depend on the order of additions and so on the processor, do not matter. A deviation of 0 is given as 1.

    Args:
        x: [N, C, ...], at least one row.
    """
    mean, std = _of_bytes(x) if x.dtype == np.uint8 else _of_floats(x)
    mean = mean.astype(np.float32)
    std = std.astype(np.float32)
    std[std == 0] = 1
    return tuple(map(float, mean)), tuple(map(float, std))


def _of_bytes(x: Rows) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    n_channels = x.shape[1]
    histogram = np.zeros((n_channels, 256), dtype=np.int64)
    for chunk in x.chunks():
        for channel in range(n_channels):
            histogram[channel] += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
    value = np.arange(256)
    count = histogram.sum(axis=1)
    total, squares = histogram @ value, histogram @ value**2
    # count x squares can pass 64 bits, so Python's integers keep it exact until the one division.
    variance = [(int(n) * int(q) - int(t) ** 2) / int(n) ** 2 for n, t, q in zip(count, total, squares, strict=True)]
    return total / count, np.sqrt(variance)


def _of_floats(x: Rows) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Chunk by chunk, each merged into the whole by the means' difference (Chan, Golub and LeVeque 1983)."""
    n, mean, squares = 0, np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for chunk in x.chunks():
        values = np.moveaxis(chunk, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
        count, chunk_mean = values.shape[1], values.mean(axis=1)
        difference = chunk_mean - mean
        mean = mean + difference * count / (n + count)
        squares = squares + ((values - chunk_mean[:, None]) ** 2).sum(axis=1) + difference**2 * n * count / (n + count)
        n += count
    return mean, np.sqrt(squares / n)


def normalize(
    x: np.ndarray[Any, Any], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(x - mean) / std for each channel, computed in float64, rounded once: float32 of the shape of `x`, [N, C, ...].

    Bytes and floats of equal value give equal bits.
    """
    if x.dtype == np.uint8:
        out = np.empty(x.shape, dtype=np.float32)
        for channel in range(x.shape[1]):
            # Only 256 values can occur: a table is several times faster than arithmetic, and gives the same bits.
            table = ((np.arange(256) - mean[channel]) / std[channel]).astype(np.float32)
            out[:, channel] = table[x[:, channel]]
        return out
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scaled: np.ndarray[Any, Any] = (x.astype(np.float64) - np.reshape(mean, shape)) / np.reshape(std, shape)
    return scaled.astype(np.float32)


def normalized_chunks(x: Rows, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[np.ndarray[Any, Any]]:
    """All rows in order, normalized, piece by piece."""
    for chunk in x.chunks():
        yield normalize(chunk, mean=mean, std=std)

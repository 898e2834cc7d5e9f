"""Small data in memory for the tests of the interface for scripts."""

from __future__ import annotations

import numpy as np


def blobs(n: int = 300, *, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 1, 6, 6] with bright rows, and their classes."""
    rng = np.random.default_rng(4)
    y = rng.integers(0, n_classes, n)
    x = rng.normal(size=(n, 1, 6, 6)).astype(np.float32)
    for label in range(n_classes):
        x[y == label, :, 2 * label : 2 * label + 2] += 1.5
    return x, y

"""A data set of one's own: copy this file, change `load`, name FILE.py:CLASS in a job as custom_dataset.yaml does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.datasets import RawData
from nord_hpc.errors import BadInput
from nord_hpc.seeding import generator

CLASS_NAMES = ("horizontal", "rising", "vertical", "falling")
"""Bars at 0, 45, 90 and 135 degrees."""


class OrientedBars:
    """Grey images of one noisy bar each; the class is the bar's direction, its position and thickness vary.

    x is uint8 [N, 1, size, size]. There is no test part, so that one is carved out of these images, and validation
    after it; return x_test and y_test where your data have their own.
    """

    class Options(BaseModel):
        """The keys that a job may set beside those of every data set; anything else is refused with a hint.

        Attributes:
            images: how many, the same number of each class.
            size: height and width in pixels.
            noise: standard deviation of the noise, as a share of the bar's brightness.
            seed: of the images.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        images: int = Field(1200, ge=40)
        size: int = Field(12, ge=8, le=64)
        noise: float = Field(0.35, ge=0)
        seed: int = Field(0, ge=0)

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        """Keep what `load` needs. `path` is dataset.path of the job, relative paths resolved: check here that it is
        right, and read it in `load`. `cache` is for files that are made or downloaded."""
        if path is not None:
            raise BadInput("dataset.path: oriented bars are drawn, not read; remove it")
        self._options = options

    def load(self) -> RawData:
        """Draw the images: a pixel's brightness falls with its distance from the bar's middle line."""
        options = self._options
        rng = generator(options.seed, "oriented bars")
        y = np.arange(options.images) % len(CLASS_NAMES)
        angle_N = np.pi / len(CLASS_NAMES) * y + rng.normal(0.0, 0.12, options.images)
        offset_N = rng.uniform(-0.25, 0.25, options.images) * options.size
        width_N = rng.uniform(0.6, 1.4, options.images)
        row, column = np.mgrid[: options.size, : options.size] - (options.size - 1) / 2
        sin_N11, cos_N11 = np.sin(angle_N)[:, None, None], np.cos(angle_N)[:, None, None]
        distance_NHW = sin_N11 * column + cos_N11 * row - offset_N[:, None, None]
        bar_NHW = np.exp(-((distance_NHW / width_N[:, None, None]) ** 2))
        noisy_NHW = 160 * bar_NHW + 160 * options.noise * rng.normal(size=bar_NHW.shape) + 48
        return RawData(
            x_train=np.clip(noisy_NHW, 0, 255).astype(np.uint8)[:, None],
            y_train=y,
            class_names=CLASS_NAMES,
            source="drawn by jobs/custom_dataset.py",
            licence="CC0-1.0",
        )

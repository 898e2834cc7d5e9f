"""The conformance suite of data sets, run on each one that can be had here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from conformance.dataset_suite import DatasetSuite

from nord_hpc.datasets.fashion_mnist import SYSTEM_FOLDER

ROOT = Path(__file__).parents[2]


class TestDigitsConforms(DatasetSuite):
    name = "digits"
    n_axes = 3


class TestCustomDatasetConforms(DatasetSuite):
    name = f"{ROOT / 'jobs' / 'custom_dataset.py'}:OrientedBars"
    options = {"images": 200}  # noqa: RUF012
    n_axes = 3


class TestArraysConform(DatasetSuite):
    name = "arrays"
    n_axes = 2

    def prepare(self, folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        np.savez(folder / "d.npz", x=rng.normal(3, 2, (80, 2, 12)), y=rng.permutation(np.arange(80) % 4 * 3 - 2))
        return {"path": "d.npz"}


class TestHdf5ArraysForRegressionConform(DatasetSuite):
    name = "arrays"
    options = {"task": "regression"}  # noqa: RUF012
    n_axes = 2

    def prepare(self, folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        with h5py.File(folder / "d.h5", "w") as file:
            file["x"], file["y"], file["groups"] = rng.normal(3, 2, (80, 2, 12)), rng.normal(size=80), np.arange(80) % 8
        return {"path": "d.h5"}


class TestActivityRecognitionConforms(DatasetSuite):
    """On real data, a participant's windows at a time."""

    name = "activity_recognition"
    options = {"stride": 400, "differentiate": True, "test_subjects": [2, 9]}  # noqa: RUF012
    n_axes = 2

    def prepare(self, folder: Path) -> dict[str, Any]:
        path = ROOT.parent / "shared" / "data" / "activity_chest_accelerometer" / "activity.npz"
        if not path.is_file():
            pytest.skip(f"there is no {path}")
        return {"path": str(path)}


class TestFashionMnistConforms(DatasetSuite):
    """On the first images of the real files."""

    name = "fashion_mnist"
    options = {"allow_partial": True}  # noqa: RUF012
    n_axes = 3

    def prepare(self, folder: Path) -> dict[str, Any]:
        import gzip

        if not SYSTEM_FOLDER.is_dir():
            pytest.skip(f"there is no {SYSTEM_FOLDER}; install dataset-fashion-mnist")
        for file, n, head, each in [
            ("train-images-idx3-ubyte", 300, 16, 784),
            ("train-labels-idx1-ubyte", 300, 8, 1),
            ("t10k-images-idx3-ubyte", 80, 16, 784),
            ("t10k-labels-idx1-ubyte", 80, 8, 1),
        ]:
            with gzip.open(SYSTEM_FOLDER / f"{file}.gz", "rb") as stream:
                content = bytearray(stream.read(head + n * each))
            content[4:8] = n.to_bytes(4, "big")
            (folder / file).write_bytes(content)
        return {"path": "."}

"""The example of a data set of one's own: its job opens it, its options are checked, its classes can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from nord_hpc.datasets import open_dataset
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def test_the_jobs_data_set_opens(cache: Path) -> None:
    job = yaml.safe_load((JOBS / "custom_dataset.yaml").read_text())
    d = open_dataset(DatasetSettings(**job["dataset"]), folder=JOBS, cache=cache)
    assert d.info.input_shape == (1, 12, 12) and d.info.n_outputs == 4
    assert (d.info.n_train, d.info.n_validation, d.info.n_test) == (768, 192, 240)
    assert d.info.class_names == ("horizontal", "rising", "vertical", "falling")


def test_the_classes_are_what_their_names_say(cache: Path) -> None:
    settings = DatasetSettings(name="custom_dataset.py:OrientedBars", images=400, noise=0.0)
    d = open_dataset(settings, folder=JOBS, cache=cache)
    x, y = np.asarray(d.train.x)[:, 0], d.train.y
    along_rows = np.abs(np.diff(x, axis=2)).mean(axis=(1, 2))
    along_columns = np.abs(np.diff(x, axis=1)).mean(axis=(1, 2))
    assert (along_rows < along_columns)[y == 0].mean() > 0.95  # horizontal bars change little along a row
    assert (along_rows > along_columns)[y == 2].mean() > 0.95
    rising = np.abs(x[:, 1:, :-1] - x[:, :-1, 1:]).mean(axis=(1, 2))
    falling = np.abs(x[:, 1:, 1:] - x[:, :-1, :-1]).mean(axis=(1, 2))
    assert (rising < falling)[y == 1].mean() > 0.95 and (rising > falling)[y == 3].mean() > 0.95


def test_a_wrong_option_is_refused(cache: Path) -> None:
    with pytest.raises(BadInput, match=r"dataset.images: 10 is wrong; set a number of at least 40"):
        open_dataset(DatasetSettings(name="custom_dataset.py:OrientedBars", images=10), folder=JOBS, cache=cache)
    with pytest.raises(BadInput, match=r"dataset.path: oriented bars are drawn, not read; remove it"):
        open_dataset(DatasetSettings(name="custom_dataset.py:OrientedBars", path="x"), folder=JOBS, cache=cache)

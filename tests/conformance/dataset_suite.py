"""What every data set must keep: the tests that each data set's test file inherits and gives its own settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, DatasetInfo, make_source, open_dataset
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings, from_mapping

Make = Callable[..., Dataset]
PARTS = ("train", "validation", "test")


class DatasetSuite:
    """Inherit as `class TestMyData(DatasetSuite)`, set the attributes, and override `prepare` where files are needed.

    Attributes:
        name: in the registry, or "file.py:Class".
        options: of the job's dataset section, beside the name.
        n_axes: of one sample, channels included.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    n_axes: ClassVar[int]

    def prepare(self, folder: Path) -> dict[str, Any]:
        """Put files into `folder`, where the job file is, and say which further settings they need."""
        return {}

    @pytest.fixture
    def settings(self, tmp_path: Path) -> dict[str, Any]:
        return {"name": self.name, **self.options, **self.prepare(tmp_path)}

    @pytest.fixture
    def make(self, settings: dict[str, Any], tmp_path: Path) -> Make:
        """Opens the data set, with other settings where they are given."""

        def opened(cache: str = "cache", **changes: Any) -> Dataset:
            return open_dataset(DatasetSettings(**{**settings, **changes}), folder=tmp_path, cache=tmp_path / cache)

        return opened

    def test_parts_are_what_the_trainer_takes(self, make: Make) -> None:
        d = make()
        info = d.info
        assert len(info.input_shape) == self.n_axes and info.n_outputs >= 1
        for part, n in zip(PARTS, (info.n_train, info.n_validation, info.n_test), strict=True):
            split = getattr(d, part)
            x, y = np.asarray(split.x), np.asarray(split.y)
            assert n > 0 and x.shape == (n, *info.input_shape) and len(y) == n
            assert x.dtype == np.float32 and np.isfinite(x).all()
            assert not x.flags.writeable or not isinstance(split.x, np.ndarray) or not split.x.flags.writeable
            if info.task == "classification":
                assert y.dtype == np.int64 and y.min() >= 0 and y.max() < info.n_outputs
                assert set(np.unique(y).tolist()) <= set(np.unique(d.train.y).tolist())
            else:
                assert y.dtype == np.float32 and np.isfinite(y).all()

    def test_classes_are_named_and_mapped(self, make: Make) -> None:
        info = make().info
        if info.task == "regression":
            assert not info.class_labels and not info.class_names
            return
        assert sorted(info.class_labels.values()) == list(range(info.n_outputs))
        assert len(info.class_names) == len(set(info.class_names)) == info.n_outputs

    def test_the_training_part_is_normalized(self, make: Make) -> None:
        d = make()
        x = np.asarray(d.train.x, dtype=np.float64)
        over = (0, *range(2, x.ndim))
        constant = np.ptp(x, axis=over) == 0
        assert x.mean(axis=over) == pytest.approx(0, abs=2e-3)
        assert x.std(axis=over)[~constant] == pytest.approx(1, abs=5e-3)

    def test_origin_and_licence_are_stated(self, make: Make) -> None:
        info = make().info
        assert len(info.source) > 10 and info.licence
        assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json(), allow_nan=False))) == info

    def test_opening_again_gives_the_same_bits(self, make: Make) -> None:
        first, cached, fresh = make(), make(), make(cache="other")
        for other in (cached, fresh):
            assert other.info.fingerprint == first.info.fingerprint
            assert (other.info.mean, other.info.std, other.info.notes) == (
                first.info.mean, first.info.std, first.info.notes,
            )  # fmt: skip
            for part in PARTS:
                assert np.array_equal(getattr(other, part).x, getattr(first, part).x)
                assert np.array_equal(getattr(other, part).y, getattr(first, part).y)

    def test_the_test_part_does_not_depend_on_the_seed(self, make: Make) -> None:
        first, second = make(split_seed=1), make(split_seed=2)
        assert np.array_equal(first.test.y, second.test.y)
        raw = [d.test.x * _per_channel(d.info.std, d) + _per_channel(d.info.mean, d) for d in (first, second)]
        scale = np.abs(raw[0]).max()
        assert np.allclose(raw[0], raw[1], atol=1e-5 * scale)

    def test_no_sample_is_in_two_parts_of_one_source(self, make: Make) -> None:
        """The parts' sizes add up: what the source has, less what its notes say, is in one part each."""
        whole, less = make(), make(validation=0.4)
        assert less.info.n_test == whole.info.n_test
        if "a validation part of its own: dataset.validation is not used" not in whole.info.notes:
            assert less.info.n_train + less.info.n_validation == whole.info.n_train + whole.info.n_validation
            assert less.info.n_validation > whole.info.n_validation

    def test_a_fraction_takes_samples_from_training_alone(self, make: Make) -> None:
        whole, half = make(), make(fraction=0.5)
        assert half.info.n_train == pytest.approx(whole.info.n_train / 2, abs=whole.info.n_outputs)
        assert (half.info.n_validation, half.info.n_test) == (whole.info.n_validation, whole.info.n_test)
        assert np.array_equal(half.validation.y, whole.validation.y)

    def test_unknown_options_are_refused_with_their_name(self, settings: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"dataset\.fractoin: is not a known key"):
            make_source(DatasetSettings(**settings, fractoin=0.5), folder=tmp_path, cache=tmp_path / "cache")

    def test_a_job_file_may_name_it(self, settings: dict[str, Any], tmp_path: Path) -> None:
        job = {
            "name": "job",
            "dataset": settings,
            "space": {"name": "conv_graph"},
            "strategy": {"name": "random_search"},
            "budget": {"trials": 1},
        }
        read = from_mapping(job, folder=tmp_path)
        again = from_mapping(json.loads(json.dumps(read.to_json())), folder=tmp_path)
        assert again.dataset == read.dataset


def _per_channel(values: tuple[float, ...], d: Dataset) -> Any:
    return np.array(values, dtype=np.float32).reshape(1, -1, *[1] * (len(d.info.input_shape) - 1))

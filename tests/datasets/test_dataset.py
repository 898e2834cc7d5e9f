"""Opening a data set: parts without overlap, statistics of the training part alone, one result for all processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, DatasetInfo, make_source
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]


def numbered(n: int) -> np.ndarray[Any, Any]:
    """Samples that carry their row number, so that each can be told in any part: float32 [n, 1, 2]."""
    return np.repeat(np.arange(n, dtype=np.float32), 2).reshape(n, 1, 2)


def rows_of(part_x: Any, info: DatasetInfo) -> list[int]:
    """The row numbers that normalized `numbered` samples carry."""
    return np.rint(np.asarray(part_x)[:, 0, 0] * info.std[0] + info.mean[0]).astype(int).tolist()


def save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def test_parts_do_not_overlap_and_use_all(tmp_path: Path, open_: Open) -> None:
    save(tmp_path / "d.npz", x=numbered(100), y=np.arange(100) % 4)
    d = open_(name="arrays", path="d.npz", validation=0.25)
    parts = [rows_of(split.x, d.info) for split in (d.train, d.validation, d.test)]
    assert [len(rows) for rows in parts] == [60, 20, 20]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(100))
    for rows, split in zip(parts, (d.train, d.validation, d.test), strict=True):
        assert rows == sorted(rows) and split.y.tolist() == [row % 4 for row in rows]


def test_a_fraction_leaves_validation_and_test_as_they_are(tmp_path: Path, open_: Open) -> None:
    save(tmp_path / "d.npz", x=numbered(200), y=np.arange(200) % 4)
    whole, half = (open_(name="arrays", path="d.npz", fraction=fraction) for fraction in (1.0, 0.5))
    assert (half.info.n_train, half.info.n_validation, half.info.n_test) == (64, 32, 40)
    assert set(rows_of(half.train.x, half.info)) < set(rows_of(whole.train.x, whole.info))
    for name in ("validation", "test"):
        assert rows_of(getattr(half, name).x, half.info) == rows_of(getattr(whole, name).x, whole.info)
    assert np.bincount(half.train.y).tolist() == [16] * 4


def test_normalization_knows_the_training_part_only(tmp_path: Path, open_: Open) -> None:
    x, y = np.random.default_rng(0).normal(3, 2, (100, 2, 4)).astype(np.float32), np.arange(100) % 2
    save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    save(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x + 1000, y_test=y)
    a, b = open_(name="arrays", path="a.npz"), open_(name="arrays", path="b.npz")
    assert a.info.mean == b.info.mean and a.info.std == b.info.std
    assert np.array_equal(a.train.x, b.train.x) and not np.array_equal(a.test.x, b.test.x)
    assert a.info.fingerprint != b.info.fingerprint
    used = np.asarray(a.train.x) * np.reshape(a.info.std, (1, 2, 1)) + np.reshape(a.info.mean, (1, 2, 1))
    assert a.info.mean == pytest.approx(used.mean(axis=(0, 2)), rel=1e-5)
    assert a.info.mean != pytest.approx(x.mean(axis=(0, 2)), rel=1e-5)  # validation left out


def test_parts_of_ones_own_are_taken_as_they_are(tmp_path: Path, open_: Open) -> None:
    x, y = numbered(30), np.arange(30) % 3
    save(
        tmp_path / "d.npz",
        x_train=x[:20], y_train=y[:20], x_validation=x[20:25], y_validation=y[20:25], x_test=x[25:], y_test=y[25:],
    )  # fmt: skip
    d = open_(name="arrays", path="d.npz", validation=0.5)
    assert (d.info.n_train, d.info.n_validation, d.info.n_test) == (20, 5, 5)
    assert rows_of(d.validation.x, d.info) == [20, 21, 22, 23, 24]
    assert d.info.notes == ("a validation part of its own: dataset.validation is not used",)


def test_labels_with_gaps_and_bad_rows_as_found(tmp_path: Path, open_: Open) -> None:
    x, y = np.random.default_rng(1).normal(size=(60, 3, 20)).astype(np.float32), np.array([1, 2, 4, 7, 12, 13] * 10)
    x[[5, 17], 0, 3] = np.nan
    x[41, 2, 19] = np.inf
    save(tmp_path / "d.npz", x=x, y=y)
    d = open_(name="arrays", path="d.npz")
    assert d.info.class_labels == {1: 0, 2: 1, 4: 2, 7: 3, 12: 4, 13: 5} and d.info.n_outputs == 6
    assert "train: 3 of 60 rows dropped as they hold NaN or infinity: row 5, 17, 41" in d.info.notes
    assert d.info.n_train + d.info.n_validation + d.info.n_test == 57
    assert all(np.isfinite(split.x).all() for split in (d.train, d.validation, d.test))


def test_string_labels(tmp_path: Path, open_: Open) -> None:
    y = np.array(["walk", "sit", "run"] * 20)
    save(tmp_path / "d.npz", x=numbered(60), y=y)
    d = open_(name="arrays", path="d.npz")
    assert d.info.class_labels == {"run": 0, "sit": 1, "walk": 2} and d.info.class_names == ("run", "sit", "walk")
    assert [d.info.class_names[k] for k in d.test.y] == y[rows_of(d.test.x, d.info)].tolist()


def test_regression_has_float_targets_and_a_random_split(tmp_path: Path, open_: Open) -> None:
    y = np.stack([np.arange(50), -np.arange(50)], axis=1).astype(np.float64)
    y[7, 1] = np.nan
    save(tmp_path / "d.npz", x=numbered(50), y=y)
    d = open_(name="arrays", path="d.npz", task="regression")
    assert d.info.task == "regression" and d.info.n_outputs == 2 and d.info.class_labels == {}
    assert d.train.y.dtype == np.float32 and d.train.y.shape == (31, 2)
    assert d.train.y[:, 0].tolist() == rows_of(d.train.x, d.info)
    assert (d.info.n_validation, d.info.n_test) == (8, 10) and 7 not in rows_of(d.train.x, d.info)
    save(tmp_path / "one.npz", x=numbered(50), y=np.arange(50))
    assert open_(name="arrays", path="one.npz", task="regression").info.n_outputs == 1


def test_groups_stay_together(tmp_path: Path, open_: Open) -> None:
    groups = np.repeat([f"s{k:02}" for k in range(15)], 12)
    save(tmp_path / "d.npz", x=numbered(180), y=np.arange(180) % 3, groups=groups)
    d = open_(name="arrays", path="d.npz")
    subjects = [set(groups[rows_of(split.x, d.info)]) for split in (d.train, d.validation, d.test)]
    assert [len(names) for names in subjects] == [10, 2, 3]
    assert len(subjects[0] | subjects[1] | subjects[2]) == 15


def test_a_class_without_training_samples_is_named(tmp_path: Path, open_: Open) -> None:
    x = numbered(20)
    save(tmp_path / "t.npz", x_train=x, y_train=np.arange(20) % 2, x_test=x[:1], y_test=np.array([5]))
    with pytest.raises(BadInput, match="dataset arrays: y_test has the label 5, which the training part does not have"):
        open_(name="arrays", path="t.npz")
    groups = np.repeat([0, 1, 2, 3, 4], 4)
    y = np.where(groups == 3, 1, np.where(groups == 1, 2, 0))
    save(tmp_path / "g.npz", x=x, y=y, groups=groups)
    with pytest.raises(BadInput, match=r"class '[12]' is in the (test|validation) part and has no sample in the train"):
        for seed in range(8):
            open_(name="arrays", path="g.npz", split_seed=seed)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": numbered(9), "y_train": [0, 1, 2] * 3, "x_test": numbered(3)}, "x_test without y_test; give both"),
        ({"x_train": numbered(9), "y_train": [0, 1, 2] * 3, "y_test": [0]}, "y_test without x_test; give both or"),
        ({"x": numbered(9), "y": [0, 1, 2] * 3, "groups": [0, 1]}, "groups_train has shape [2]; give one group for"),
        ({"x": numbered(9) * np.nan, "y": [0, 1, 2] * 3}, "every row of x_train or y_train holds NaN or infinity"),
        ({"x": numbered(4), "y": [0, 1, 2, 3]}, "no class has 2 samples, so no test part can be carved out"),
    ],
)
def test_data_that_cannot_be_used_are_refused(
    tmp_path: Path, open_: Open, arrays: dict[str, Any], message: str
) -> None:
    save(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadInput, match=re.escape(message)) as refused:
        open_(name="arrays", path="d.npz")
    assert str(refused.value).startswith("dataset arrays: ") and "\n" not in str(refused.value)


def test_unknown_names_and_options_are_refused(open_: Open) -> None:
    with pytest.raises(BadInput, match=r"unknown dataset 'digit': did you mean digits\?"):
        open_(name="digit")
    with pytest.raises(BadInput, match=r"dataset.colour: is not a known key; remove it"):
        open_(name="digits", colour="red")


def test_making_a_source_writes_nothing(tmp_path: Path, cache: Path) -> None:
    make_source(DatasetSettings(name="digits"), folder=tmp_path, cache=cache)
    with pytest.raises(BadInput, match=r"dataset.path: .*nowhere does not exist; set it to an .npz or .h5 file or"):
        make_source(DatasetSettings(name="arrays", path="nowhere"), folder=tmp_path, cache=cache)
    assert list(tmp_path.iterdir()) == []


def test_small_arrays_are_read_only_as_mapped_ones_are(open_: Open) -> None:
    d = open_(name="digits")
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(d.train.x)[0] = 0


def test_info_survives_json(tmp_path: Path, open_: Open) -> None:
    import json

    save(tmp_path / "d.npz", x=numbered(60), y=np.array(["b", "a", "c"] * 20))
    for info in (open_(name="digits").info, open_(name="arrays", path="d.npz").info):
        assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_processes_with_other_hash_seeds_get_the_same(tmp_path: Path) -> None:
    script = (
        "import sys, hashlib, numpy as np\nfrom pathlib import Path\nfrom nord_hpc.datasets import open_dataset\n"
        "from nord_hpc.job import DatasetSettings\n"
        "d = open_dataset(DatasetSettings(name='digits', fraction=0.7), folder=Path('.'), cache=Path(sys.argv[1]))\n"
        "digest = hashlib.sha256(repr(d.info).encode())\n"
        "for split in (d.train, d.validation, d.test):\n"
        "    digest.update(np.asarray(split.x).tobytes() + split.y.tobytes())\n"
        "print(digest.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for hash_seed in ("0", "12345")
    }  # fmt: skip
    assert len(digests) == 1 and len(digests.pop()) == 65


def test_plug_ins_that_go_wrong_are_told_so(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "source.py").write_text(
        "from pathlib import Path\nfrom pydantic import BaseModel\n"
        "class NoData:\n    class Options(BaseModel): pass\n    def __init__(self, options, *, path, cache): pass\n"
        "    def load(self): return [1, 2]\n"
        "class NoFile(NoData):\n    def files(self): return [Path('/nowhere/x.bin')]\n"
    )
    with pytest.raises(BadInput, match=r"dataset source.py:NoData: load\(\) gave list; return a RawData"):
        open_(name="source.py:NoData")
    with pytest.raises(BadInput, match=r"dataset.path: /nowhere/x.bin: cannot be read: No such file or directory"):
        open_(name="source.py:NoFile")

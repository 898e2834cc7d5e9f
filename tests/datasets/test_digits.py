"""Digits: the real counts and values, the same test part for every seed, and how fast they open."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets import Dataset, make_source
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]


def test_counts_shapes_and_statistics(open_: Open, cache: Path) -> None:
    digits = open_(name="digits")
    info = digits.info
    assert (info.n_train, info.n_validation, info.n_test) == (1150, 288, 359)
    assert info.n_train + info.n_validation + info.n_test == 1797
    assert info.input_shape == (1, 8, 8) and info.n_outputs == 10 and info.task == "classification"
    assert info.class_labels == {k: k for k in range(10)}
    assert digits.train.x.shape == (1150, 1, 8, 8) and digits.train.x.dtype == np.float32
    assert digits.train.y.dtype == np.int64
    counts = sum(np.bincount(part.y) for part in (digits.train, digits.validation, digits.test))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.mean(digits.train.x) == pytest.approx(0, abs=1e-6)
    assert np.std(digits.train.x) == pytest.approx(1, abs=1e-5)
    assert 4.8 < info.mean[0] < 4.95 and 5.9 < info.std[0] < 6.1  # all 1,797: 4.884 and 6.017
    assert info.storage == "host" and info.normalized and info.notes[0].startswith("no test part of its own: 359")
    assert not cache.exists()


def test_the_values_are_those_of_scikit_learn(cache: Path, tmp_path: Path) -> None:
    raw = make_source(DatasetSettings(name="digits"), folder=tmp_path, cache=cache).load()
    table = np.concatenate([raw.x_train.reshape(1797, 64), raw.y_train[:, None]], axis=1)
    # Of the table of load_digits() as bytes, computed with scikit-learn itself.
    assert hashlib.sha256(table.astype(np.uint8).tobytes()).hexdigest() == (
        "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
    )
    assert raw.x_train.dtype == np.float32 and raw.licence.startswith("scikit-learn: BSD-3-Clause")


def test_every_seed_has_one_test_part(open_: Open) -> None:
    first, second = open_(name="digits", split_seed=1), open_(name="digits", split_seed=2, validation=0.3)
    raw_first = first.test.x * first.info.std[0] + first.info.mean[0]
    raw_second = second.test.x * second.info.std[0] + second.info.mean[0]
    assert np.array_equal(first.test.y, second.test.y) and np.allclose(raw_first, raw_second, atol=1e-4)
    assert not np.array_equal(first.validation.y, second.validation.y)
    assert first.info.fingerprint == second.info.fingerprint


@pytest.mark.timing
def test_it_opens_fast_and_without_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom nord_hpc.datasets import open_dataset\n"
        "from nord_hpc.job import DatasetSettings\nstart = time.perf_counter()\n"
        "open_dataset(DatasetSettings(name='digits'), folder=Path('.'), cache=Path(sys.argv[1]))\n"
        "heavy = {'torch', 'sklearn', 'PIL', 'pooch', 'requests', 'mpi4py', 'scipy'} & set(sys.modules)\n"
        "print(time.perf_counter() - start, sorted(heavy))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    seconds, _, heavy = result.stdout.strip().partition(" ")
    assert heavy == "[]" and float(seconds) < 1.0


def test_a_path_is_refused(open_: Open) -> None:
    with pytest.raises(BadInput, match=r"dataset.path: digits come with scikit-learn and take no path; remove it"):
        open_(name="digits", path="somewhere")

"""Channel statistics and their use: against numpy on the whole array, in chunks, and with great offsets."""

from __future__ import annotations

import numpy as np
import pytest

from nord_hpc.datasets import rows
from nord_hpc.datasets.normalization import channel_statistics, normalize, normalized_chunks
from nord_hpc.datasets.rows import Rows


@pytest.mark.parametrize("shape", [(40, 3, 5, 6), (40, 2, 9), (20, 1, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_statistics_are_numpys(shape: tuple[int, ...], dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 700)
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    mean, std = channel_statistics(Rows(x))
    axes = (0, *range(2, x.ndim))
    assert mean == pytest.approx(x.mean(axis=axes, dtype=np.float64), rel=1e-6)
    assert std == pytest.approx(x.std(axis=axes, dtype=np.float64), rel=1e-6)


def test_a_great_offset_loses_no_digits() -> None:
    x = (1e6 + np.random.default_rng(0).normal(size=(1000, 1, 8))).astype(np.float64)
    mean, std = channel_statistics(Rows(x))
    assert mean[0] == pytest.approx(1e6, rel=1e-6) and std[0] == pytest.approx(x.std(), rel=1e-5)


def test_a_constant_channel_has_deviation_one() -> None:
    x = np.full((4, 2, 3), 7, dtype=np.uint8)
    assert channel_statistics(Rows(x)) == ((7.0, 7.0), (1.0, 1.0))
    assert channel_statistics(Rows(x.astype(np.float32))) == ((7.0, 7.0), (1.0, 1.0))
    assert not normalize(x, mean=(7.0, 7.0), std=(1.0, 1.0)).any()


def test_bytes_and_floats_of_equal_value_give_equal_bits() -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 7)).astype(np.uint8)
    mean, std = channel_statistics(Rows(x))
    whole = normalize(x, mean=mean, std=std)
    assert whole.dtype == np.float32 and whole.mean() == pytest.approx(0, abs=1e-6)
    assert whole.std() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(whole, normalize(x.astype(np.float32), mean=mean, std=std))
    pieces = np.concatenate(list(normalized_chunks(Rows(x), mean=mean, std=std)))
    assert np.array_equal(whole, pieces)
    assert whole[0, 1, 2] == np.float32((int(x[0, 1, 2]) - mean[1]) / std[1])

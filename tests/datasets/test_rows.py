"""Rows of arrays: what is read, in which order, and that selecting reads nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets import rows
from nord_hpc.datasets.rows import Rows


def test_selections_compose_and_index_like_arrays() -> None:
    array = np.arange(40).reshape(10, 1, 4)
    chosen = Rows(array).select(np.array([9, 1, 5, 7])).select(np.array([3, 0]))
    assert chosen.shape == (2, 1, 4) and len(chosen) == 2 and chosen.nbytes == 64
    assert chosen[:][:, 0, 0].tolist() == [28, 36]
    assert chosen[1].tolist() == array[9].tolist()
    assert chosen[np.array([1, 1, 0])][:, 0, 0].tolist() == [36, 36, 28]
    assert np.asarray(chosen).tolist() == array[[7, 9]].tolist()
    with pytest.raises(ValueError, match="without a copy"):
        chosen.__array__(copy=False)


def test_chunks_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 100)
    array = np.arange(23 * 6, dtype=np.int32).reshape(23, 2, 3)
    order = np.random.default_rng(0).permutation(23)
    chunks = list(Rows(array, order).chunks())
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 4, 4, 3]
    assert np.array_equal(np.concatenate(chunks), array[order])


def test_views_of_mapped_files_are_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 4, 3), dtype=np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Rows(mapped).mapped and Rows(np.moveaxis(mapped, -1, 1)).mapped and Rows(mapped[:, None]).mapped
    assert not Rows(np.zeros((5, 4, 3))).mapped

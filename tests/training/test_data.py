"""Parts of data as a loop reads them."""

from __future__ import annotations

from pathlib import Path

import example
import numpy as np
import torch

from nord_hpc.datasets.rows import Rows
from nord_hpc.training.data import Part, as_tensor


def test_slices_and_orders() -> None:
    split = example.images(20, seed=0)
    part = Part(split, example.Info(), device=example.CPU)
    order = np.random.default_rng(0).permutation(20)
    x, y = part.in_order(order)[slice(3, 8)]
    assert np.array_equal(x.numpy(), split.x[order[3:8]])
    assert np.array_equal(y.numpy(), split.y[order[3:8]])
    x, y = part[15:25]
    assert np.array_equal(x.numpy(), split.x[15:])
    assert (len(part), len(y)) == (20, 5)


def test_rows_of_a_file_are_normalized_batch_by_batch(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (20, 1, 2, 2), dtype=np.uint8)
    np.save(tmp_path / "x.npy", raw)
    chosen = np.arange(0, 20, 2)
    rows = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), chosen)
    info = example.Info(normalized=False, storage="mmap")
    part = Part(example.Split(rows, np.arange(10)), info, device=example.CPU)
    order = np.array([9, 0, 4])
    x, y = part.in_order(order)[slice(0, 2)]
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), info.normalize(raw[chosen[[9, 0]]]))
    assert y.tolist() == [9, 0]
    assert np.array_equal(part[2:4][0].numpy(), info.normalize(raw[[4, 6]]))


def test_arrays_are_aligned_as_torch_aligns_them() -> None:
    base = np.zeros(1000, dtype=np.float32)
    for offset in range(16):
        array = base[offset : offset + 64]
        tensor = as_tensor(array)
        assert tensor.data_ptr() % 64 == 0
        shared = tensor.data_ptr() == array.ctypes.data
        assert shared == (array.ctypes.data % 64 == 0)


def test_read_only_arrays_are_read_without_a_warning() -> None:
    array = np.arange(6.0)
    array.flags.writeable = False
    assert as_tensor(array).tolist() == [0, 1, 2, 3, 4, 5]
    assert as_tensor(np.arange(6.0).reshape(2, 3).T).is_contiguous()

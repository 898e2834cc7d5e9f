"""The user's arrays: npz and npy, layouts, mapping, and what is said of wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nord_hpc.datasets import Dataset
from nord_hpc.datasets import dataset as dataset_module
from nord_hpc.datasets.rows import Rows
from nord_hpc.errors import BadInput

Open = Callable[..., Dataset]


def test_layouts_give_one_data_set(tmp_path: Path, open_: Open) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 5)).astype(np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "first.npz", x=x, y=y)
    np.savez(tmp_path / "last.npz", x=x.transpose(0, 2, 3, 1), y=y)
    first = open_(name="arrays", path="first.npz")
    last = open_(name="arrays", path="last.npz", layout="channels_last")
    assert first.info.input_shape == last.info.input_shape == (3, 6, 5)
    assert np.array_equal(first.train.x, last.train.x) and first.info.fingerprint == last.info.fingerprint
    np.savez(tmp_path / "grey.npz", x=x[:, 0], y=y)
    assert open_(name="arrays", path="grey.npz", layout="no_channels").info.input_shape == (1, 6, 5)


@pytest.mark.parametrize("shape", [(40, 3, 52), (40, 2, 4, 5, 6)])
def test_sequences_and_volumes(tmp_path: Path, open_: Open, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones(shape), y=np.arange(40) % 2)
    d = open_(name="arrays", path="d.npz")
    assert d.info.input_shape == shape[1:] and d.train.x.dtype == np.float32 and not np.asarray(d.train.x).any()


def test_a_table_is_a_sequence_of_one_channel(tmp_path: Path, open_: Open) -> None:
    np.savez(tmp_path / "d.npz", x=np.eye(40), y=np.arange(40) % 2)
    assert open_(name="arrays", path="d.npz", layout="no_channels").info.input_shape == (1, 40)
    with pytest.raises(
        BadInput, match=r"x_train has shape \[40, 40\], and dataset.layout channels_first .* no_channels"
    ):
        open_(name="arrays", path="d.npz")


def npy_folder(tmp_path: Path, n: int = 50) -> np.ndarray:
    x = np.random.default_rng(0).normal(5, 3, (n, 2, 30)).astype(np.float32)
    x[4, 0, 0] = np.nan
    folder = tmp_path / "npy"
    folder.mkdir()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.arange(n) % 5)
    np.save(folder / "extra.npy", np.zeros(3))
    return x


@pytest.mark.parametrize("small", [True, False])
def test_mapped_arrays_stay_where_they_are(
    tmp_path: Path, cache: Path, open_: Open, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    npy_folder(tmp_path)
    if not small:
        monkeypatch.setattr(dataset_module, "SMALL_BYTES", 0)
        monkeypatch.setattr(dataset_module, "LOCK_FIRST_BYTES", 0)
    host = open_(name="arrays", path="npy", storage="host")
    for _ in range(2):  # made, then found
        mapped = open_(name="arrays", path="npy", storage="mmap")
        assert mapped.info.storage == "mmap" and not mapped.info.normalized
        assert mapped.info.storage_reason.startswith("as the job asks")
        for name in ("train", "validation", "test"):
            part, same = getattr(mapped, name), getattr(host, name)
            assert isinstance(part.x, Rows) and part.x.mapped
            assert np.array_equal(part.y, same.y)
            index = np.array([3, 0, 5])
            assert np.array_equal(mapped.info.normalize(part.x[index]), np.asarray(same.x)[index])
        assert mapped.info.notes == host.info.notes
    assert host.info.notes[0] == "arrays that are not used: extra"
    assert host.info.notes[1].endswith("row 4")
    stored = sum(f.stat().st_size for f in cache.rglob("*.npy")) if cache.exists() else 0
    assert (stored == 0) == small and stored < 50_000


def test_arrays_in_memory_are_mapped_from_a_prepared_copy(tmp_path: Path, open_: Open) -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 1, 8)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(50) % 5)
    host, mapped = (open_(name="arrays", path="d.npz", storage=storage) for storage in ("host", "mmap"))
    assert isinstance(mapped.train.x, np.memmap) and mapped.train.x.dtype == np.uint8
    assert np.array_equal(mapped.info.normalize(mapped.train.x), host.train.x)


def test_wrong_files_are_named(tmp_path: Path, open_: Open) -> None:
    np.savez(tmp_path / "names.npz", X_train=np.zeros(3), labels=np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([None, 1]), y=np.zeros(2))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for settings, message in [
        ({}, "dataset.path: is missing; set it to an .npz file or a folder of .npy files"),
        ({"path": "none.npz"}, "none.npz does not exist; set it to an .npz file"),
        ({"path": "data.csv"}, "data.csv is not an .npz file; set it to one, or to a folder of .npy files"),
        ({"path": "text.npz"}, "text.npz cannot be read: File is not a zip file"),
        ({"path": "names.npz"}, "names.npz has X_train, labels; give x_train and y_train"),
        ({"path": "objects.npz"}, "array x cannot be read: it holds Python objects; save plain numbers or strings"),
        ({"path": "empty"}, "empty has no arrays; give x_train and y_train"),
    ]:
        with pytest.raises(BadInput) as refused:
            open_(name="arrays", **settings)
        assert message in str(refused.value)


def test_a_truncated_array_is_named(tmp_path: Path, open_: Open) -> None:
    npy_folder(tmp_path)
    whole = (tmp_path / "npy" / "x.npy").read_bytes()
    (tmp_path / "npy" / "x.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="npy: array x cannot be read: mmap length is greater than file size"):
        open_(name="arrays", path="npy")

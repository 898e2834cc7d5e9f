"""The user's arrays: npz and npy, layouts, mapping, and what is said of wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from nord_hpc.datasets import Dataset
from nord_hpc.datasets import dataset as dataset_module
from nord_hpc.datasets.rows import Rows
from nord_hpc.errors import BadInput
from nord_hpc.training.batches import epoch_order, plan_batches
from nord_hpc.training.data import Part

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


def test_a_table_is_vectors_or_a_sequence_of_one_channel(tmp_path: Path, open_: Open) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)) * (1, 10, 100)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 2)
    assert open_(name="arrays", path="d.npz", layout="no_channels").info.input_shape == (1, 3)
    for layout in ("channels_first", "channels_last"):
        vectors = open_(name="arrays", path="d.npz", layout=layout)
        assert vectors.info.input_shape == (3,) and vectors.train.x.shape == (vectors.info.n_train, 3)
        assert np.allclose(np.std(vectors.train.x, axis=0), 1.0) and len(vectors.info.mean) == 3
    np.savez(tmp_path / "d.npz", x=x[:, 0], y=np.arange(40) % 2)
    with pytest.raises(BadInput, match=r"x_train has shape \[40\], and dataset.layout channels_first .* no_channels"):
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
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for settings, message in [
        ({}, "dataset.path: is missing; set it to an .npz or .h5 file or a folder of .npy files"),
        ({"path": "none.npz"}, "none.npz does not exist; set it to an .npz or .h5 file"),
        ({"path": "data.csv"}, "data.csv is not an .npz or .h5 file or a folder of .npy files; set it to one"),
        ({"path": "text.npz"}, "text.npz cannot be read: File is not a zip file"),
        ({"path": "text.h5"}, "text.h5 cannot be read: Unable to synchronously open file (file signature not found)"),
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


def test_hdf5_is_read_like_npz(tmp_path: Path, open_: Open) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(size=(40, 2, 9)).astype(np.float32), "x_test": np.ones((8, 2, 9), np.float32)}
    labels = {"y_train": np.arange(40) % 4, "y_test": np.arange(8) % 4}
    np.savez(tmp_path / "d.npz", **arrays, **labels)
    names = np.array(["ab", "c", "d", "é"], dtype=object)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for name, value in {**arrays, **labels}.items():
            file[name] = value
        file["more"] = 3
        file.create_group("group")
    with h5py.File(tmp_path / "named.hdf5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
        for name, value in labels.items():
            file.create_dataset(name, data=names[value], dtype=h5py.string_dtype())
    packed, hierarchical, named = (open_(name="arrays", path=path) for path in ("d.npz", "d.h5", "named.hdf5"))
    assert hierarchical.info.fingerprint == packed.info.fingerprint
    assert hierarchical.info.notes == ("arrays that are not used: more",)
    assert np.array_equal(hierarchical.validation.x, packed.validation.x)
    assert named.info.class_names == ("ab", "c", "d", "é") and np.array_equal(named.test.y, packed.test.y)


def test_each_row_of_an_hdf5_file_is_seen_once_in_an_epoch(tmp_path: Path, open_: Open) -> None:
    """Row i holds i; what the batches of all ranks hold in an epoch is every row of the training part, once."""
    rows = np.arange(100, dtype=np.float32)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x_train"], file["y_train"] = rows.reshape(100, 1, 1), np.arange(100) % 2
        file["x_validation"], file["y_validation"] = rows[:4].reshape(4, 1, 1), np.arange(4) % 2
        file["x_test"], file["y_test"] = rows[:4].reshape(4, 1, 1), np.arange(4) % 2
    d = open_(name="arrays", path="d.h5")
    train = Part(d.train, d.info, device=torch.device("cpu"))
    batches = plan_batches(n_train=100, fraction=1.0, batch_size=10, shards=2)
    orders = []
    for epoch in (1, 2):
        samples = train.in_order(epoch_order(np.arange(100), seed=3, epoch=epoch))
        seen = []
        for step in range(batches.steps):
            for part in range(2):
                x, y = samples[batches.bounds(step, part, parts=2)]
                values = np.round(x.numpy().reshape(-1) * d.info.std[0] + d.info.mean[0]).astype(int)
                assert (values % 2 == y.numpy()).all()
                seen += values.tolist()
        assert sorted(seen) == list(range(100)) and sum(seen) == 4950
        orders.append(seen)
    assert orders[0] != orders[1]

"""Whatever a user's function may give, as one data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import blobs
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nord_hpc.data_curators import get_activity_recognition_data, get_cifar10
from nord_hpc.datasets import RawData
from nord_hpc.errors import BadInput
from nord_hpc.scripting.loading import Joined, NamedData, load, whole_training_split


def sizes(data_load: Any, **options: Any) -> tuple[int, int, int]:
    info = load(data_load, name="mine", task=None, **options).info
    return info.n_train, info.n_validation, info.n_test


def test_arrays_and_tensors() -> None:
    x, y = blobs()
    # 20 % for the test, then 20 % for validation.
    assert sizes(lambda: (x, y)) == (192, 48, 60)
    assert sizes(lambda: (torch.from_numpy(x), torch.from_numpy(y)), validation=0.5) == (120, 120, 60)
    assert sizes(lambda: (x[:200], y[:200], x[200:], y[200:])) == (160, 40, 100)
    assert sizes(lambda: RawData(x_train=x, y_train=y, source="here", licence="none")) == (192, 48, 60)


def test_the_share_is_asked_for_whole() -> None:
    asked = []

    def get(percentage: float) -> tuple[np.ndarray, np.ndarray]:
        asked.append(percentage)
        return blobs()

    assert sizes(get) == (192, 48, 60)
    assert asked == [1.0]
    assert sizes(blobs) == (192, 48, 60)  # whose first parameter is something else, and need not be given
    made = load(lambda: blobs(), name="mine", task=None)
    assert load(lambda: made, name="mine", task=None) is made


def test_loaders_of_batches() -> None:
    x, y = map(torch.from_numpy, blobs())
    train, test = TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:])
    # Helper processes are never started: the samples are read one by one, in order.
    loaders = DataLoader(train, batch_size=7, shuffle=True, num_workers=2), DataLoader(test, batch_size=9)
    dataset = load(lambda share: (*loaders, ("low", "middle", "high")), name="mine", task=None)
    assert (dataset.info.n_train, dataset.info.n_validation, dataset.info.n_test) == (160, 40, 100)
    assert dataset.info.class_names == ("low", "middle", "high")
    assert np.array_equal(dataset.test.y, y[200:])
    plain = load(lambda: (x[:200], y[:200], x[200:], y[200:]), name="mine", task=None)
    assert np.array_equal(dataset.train.x, plain.train.x)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = blobs(40)
        yield from zip(torch.from_numpy(x), torch.from_numpy(y), strict=True)


def test_streams_of_batches() -> None:
    stream = DataLoader(Stream(), batch_size=6)
    assert sizes(lambda: (stream, stream, 3)) == (32, 8, 40)
    helped = DataLoader(Stream(), batch_size=6, num_workers=1)
    with pytest.raises(
        BadInput, match=r"dataset mine: the loader starts helper processes, which MPI forbids; set num_w"
    ):
        sizes(lambda: (helped, stream, 3))


def test_targets_tell_the_task() -> None:
    x, y = blobs()
    one_hot = np.eye(3, dtype=np.float32)[y]
    cases = [(y, None, "classification", 3), (y.astype(float), None, "regression", 1), (one_hot, None, "regression", 3)]
    cases += [(one_hot, "classification", "regression", 3), (y, "regression", "regression", 1)]
    for targets, told, task, n_outputs in cases:
        info = load(lambda targets=targets: (x, targets), name="mine", task=told).info  # type: ignore[misc,arg-type]
        assert (info.task, info.n_outputs) == (task, n_outputs)


def test_what_is_no_data() -> None:
    with pytest.raises(BadInput, match=r"dataset mine: data_load gave int; return a RawData, \(x, y\), \(x_train"):
        sizes(lambda: 3)
    x, y = blobs()
    with pytest.raises(BadInput, match=r"dataset mine: .*"):
        sizes(lambda: (x, y[:-1]))


def test_parts_joined() -> None:
    joined = Joined(np.arange(4), np.arange(10, 13))
    assert len(joined) == 7
    for where in (slice(2, 6), slice(0, 3), slice(5, 7), np.array([6, 0, 3, 4]), np.array([1]), np.array([5, 5])):
        assert np.array_equal(joined[where], np.array([0, 1, 2, 3, 10, 11, 12])[where])
    dataset = load(lambda: blobs(), name="mine", task=None)
    whole = whole_training_split(dataset)
    assert np.array_equal(whole.x[:], np.concatenate([dataset.train.x, dataset.validation.x]))
    assert len(whole.y) == 240


def test_data_that_are_there_already(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    assert NamedData("cifar10").found() is None
    monkeypatch.setenv("NORD_HPC_DATA", str(data_folder))
    assert NamedData("cifar10").found() == data_folder / "cifar10"
    assert NamedData("activity_recognition").found() == data_folder / "activity_recognition.npz"
    assert NamedData("digits").found() is None
    info = NamedData("cifar10").open(validation=0.25, device="cpu").info
    assert (info.n_train, info.n_validation, info.n_test) == (1200, 400, 400)
    assert any("2000 training images" in note for note in info.notes)
    with pytest.raises(BadInput, match=r"has no data_batch_2.bin"):
        NamedData("cifar10", path=data_folder / "cifar10").open(validation=0.25, device="cpu")


def test_curators(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    monkeypatch.setenv("NORD_HPC_DATA", str(data_folder))
    train, test, names = get_cifar10(0.25, train_batch=100, test_batch=150)
    assert [len(y) for _, y in train] == [100] * 4
    assert [x.shape[1:] for x, _ in test] == [(3, 32, 32)] * 3
    assert names[:2] == ("airplane", "automobile")
    train, _, names = get_activity_recognition_data(0.01, lag_window=20, lag_overlap_samples=100, test_subjects=2)
    x, y = next(iter(train))
    assert x.shape[1:] == (3, 20)
    assert len(names) == 7 and y.max() < 7
    with pytest.raises(BadInput, match=r"percentage 25 is out of range; set a share above 0, at most 1"):
        get_cifar10(25)


def test_map_style_data_sets_without_tensors() -> None:
    class Squares(Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
            return torch.full((1, 2), float(index)), float(index) ** 2

    loader = DataLoader(Squares(), batch_size=4)
    dataset = load(lambda: (loader, loader, None), name="mine", task=None)
    assert dataset.info.task == "regression"
    assert np.array_equal(dataset.test.y.ravel(), np.arange(30.0) ** 2)

"""The known data sets as torch's loaders of batches, for loops of the user's own; evaluators do not need them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from nord_hpc.datasets.dataset import Dataset
from nord_hpc.errors import BadInput
from nord_hpc.scripting.loading import NamedData, whole_training_split
from nord_hpc.training.batches import share, subset

Loader = DataLoader[tuple[torch.Tensor, ...]]
Loaders = tuple[Loader, Loader, tuple[str, ...]]
"""Batches of the training part, in a new order in each epoch; those of the test part; and the names of the classes."""


def get_cifar10(percentage: float = 1.0, train_batch: int = 256, test_batch: int = 256) -> Loaders:
    """CIFAR-10 with a share `percentage` (0 to 1) of its training part."""
    return _loaders(NamedData("cifar10"), percentage, train_batch=train_batch, test_batch=test_batch)


def get_fashion_mnist(percentage: float = 1.0, train_batch: int = 128, test_batch: int = 128) -> Loaders:
    """Fashion-MNIST with a share `percentage` (0 to 1) of its training part."""
    return _loaders(NamedData("fashion_mnist"), percentage, train_batch=train_batch, test_batch=test_batch)


def get_activity_recognition_data(
    percentage: float = 1.0,
    train_batch: int = 128,
    test_batch: int = 128,
    differentiate: bool = True,
    lag_window: int = 52,
    lag_overlap_samples: int = 26,
    test_subjects: int = 4,
) -> Loaders:
    """Windows of `lag_window` accelerometer samples, one every `lag_overlap_samples`.

    Args:
        percentage: share of the training part, 0 to 1.
        test_subjects: how many participants make the test part.
    """
    options: dict[str, Any] = {
        "differentiate": differentiate,
        "window": lag_window,
        "stride": lag_overlap_samples,
        "test_subjects": test_subjects,
    }
    named = NamedData("activity_recognition", options=options)
    return _loaders(named, percentage, train_batch=train_batch, test_batch=test_batch)


def _loaders(named: NamedData, percentage: float, *, train_batch: int, test_batch: int) -> Loaders:
    if not 0 < percentage <= 1:
        raise BadInput(f"percentage {percentage} is out of range; set a share above 0, at most 1")
    dataset = named.open(validation=0.2, device="cpu")
    whole = whole_training_split(dataset)
    rows_N = subset(len(whole.y), share(len(whole.y), percentage))
    train = TensorDataset(_tensor(dataset, whole.x[rows_N]), torch.from_numpy(whole.y[rows_N]))
    test = TensorDataset(_tensor(dataset, dataset.test.x[:]), torch.from_numpy(np.array(dataset.test.y)))
    return (
        DataLoader(train, batch_size=train_batch, shuffle=True),
        DataLoader(test, batch_size=test_batch),
        dataset.info.class_names,
    )


def _tensor(dataset: Dataset, x: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(x) if dataset.info.normalized else dataset.info.normalize(x))

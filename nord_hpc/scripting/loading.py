"""Data sets for scripts: those of the registry by name, and whatever a user's function gives, as one `Dataset`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nord_hpc.datasets.dataset import Dataset, RawData, Split, Task, dataset_of, open_dataset
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

DATA_VARIABLE = "NORD_HPC_DATA"
"""A folder with data that are there already: NAME or NAME.npz in it is where the data set NAME is taken from."""

TAKEN_IN_PART = ("cifar10", "fashion_mnist")
"""Data sets of which fewer files than the official ones may stand there."""

SHARE_NAMES = ("percentage", "data_percentage", "share", "fraction")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class NamedData:
    """A data set of the registry, in the place of a user's function.

    Its files are looked for in `path`; without it in the folder that the environment variable NORD_HPC_DATA names,
    where fewer files than the official ones are taken, with a warning; else they are downloaded to the cache folder.

    Attributes:
        name: as in a job file.
        options: of that data set.
    """

    name: str
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, *, validation: float, device: str) -> Dataset:
        """See `nord_hpc.datasets.dataset.open_dataset`."""
        path, options = self.path or self.found(), dict(self.options)
        if self.found() is not None and self.name in TAKEN_IN_PART:
            options.setdefault("allow_partial", True)
        where = None if path is None else str(path.absolute())
        settings = DatasetSettings(name=self.name, path=where, validation=validation, **options)
        return open_dataset(settings, folder=Path.cwd(), device=device)

    def found(self) -> Path | None:
        """Where the folder NORD_HPC_DATA has this data set, if no path is given; None where it has not."""
        folder = os.environ.get(DATA_VARIABLE)
        if not folder or self.path is not None:
            return None
        places = [Path(folder) / self.name, Path(folder) / f"{self.name}.npz"]
        return next((place for place in places if place.exists()), None)


DataLoad = NamedData | Callable[..., Any]
"""What gives the data: one of the registry, or a function. If its first parameter asks for a share of the data, it gets
1, as the share is taken of what it gives. It may return a `RawData`; a `Dataset`; arrays or tensors (x, y) or (x_train,
y_train, x_test, y_test); or loaders of batches (train, test, class names). Samples are [N, channels, ...], with one to
three axes after the channels, or vectors [N, features]. Values are normalized by channel afterwards, in every case."""


def load(data_load: DataLoad, *, name: str, task: Task | None, validation: float = 0.2, device: str = "cpu") -> Dataset:
    """The data set that a user's function, or the registry, gives.

    Args:
        name: for messages.
        task: None to conclude it from the targets: integers [N] or text are classes.
        validation: share of the training part that is carved out for validation.
        device: "cpu" or "cuda", where the training takes place.

    Raises:
        BadInput: what is given is none of the forms that are known, or the data cannot be used.
    """
    if isinstance(data_load, NamedData):
        return data_load.open(validation=validation, device=device)
    given = data_load(1.0) if _takes_share(data_load) else data_load()
    if isinstance(given, Dataset):
        return given
    raw = given if isinstance(given, RawData) else _raw(given, name=name, task=task)
    return dataset_of(raw, DatasetSettings(name=name, validation=validation))


def _takes_share(function: Callable[..., Any]) -> bool:
    """Whether the first parameter is the share of the data: it must be given, or is named so."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return False
    return parameters[0].default is inspect.Parameter.empty or parameters[0].name in SHARE_NAMES


def _raw(given: Any, *, name: str, task: Task | None) -> RawData:
    if not isinstance(given, Sequence) or len(given) not in (2, 3, 4):
        kind = type(given).__name__
        raise BadInput(
            f"dataset {name}: data_load gave {kind}; return a RawData, (x, y), (x_train, y_train, x_test, y_test), or "
            "(train loader, test loader, class names)"
        )
    class_names: tuple[str, ...] | None = None
    x_test: Array | None = None
    y_test: Array | None = None
    if len(given) == 3:
        train, test, classes = given
        x, y = arrays_of(train, name=name)
        x_test, y_test = arrays_of(test, name=name)
        if isinstance(classes, Sequence) and all(isinstance(label, str) for label in classes):
            class_names = tuple(classes)
    else:
        x, y = _array(given[0]), _array(given[1])
        if len(given) == 4:
            x_test, y_test = _array(given[2]), _array(given[3])
    if task is None:
        task = "classification" if y.ndim == 1 and y.dtype.kind in "iubU" else "regression"
    if task == "classification" and y.ndim == 2:
        task = "regression"  # one-hot targets or distributions stay as they are; the loss knows what they mean
    return RawData(
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        task=task,
        class_names=class_names if task == "classification" else None,
        source=f"data_load of {name}",
        licence="as given by the owner of the data",
    )


def arrays_of(loader: Any, *, name: str) -> tuple[Array, Array]:
    """All samples and targets that a loader of batches gives, each once.

    Where it tells its data set, this is read sample by sample, in order and in this process, as helper processes that
    are forked from an MPI rank may crash.

    Raises:
        BadInput: it has helper processes, and a data set that can only be iterated over.
    """
    dataset = getattr(loader, "dataset", None)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        pairs = [dataset[index][:2] for index in range(len(dataset))]  # type: ignore[index,arg-type]
        return np.stack([_array(x) for x, _ in pairs]), np.stack([_array(y) for _, y in pairs])
    if getattr(loader, "num_workers", 0):
        raise BadInput(f"dataset {name}: the loader starts helper processes, which MPI forbids; set num_workers to 0")
    batches = [(_array(batch[0]), _array(batch[1])) for batch in loader]
    if not batches:
        raise BadInput(f"dataset {name}: the loader gave no batches")
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def whole_training_split(dataset: Dataset) -> Split:
    """The training part with what was carved out of it for validation."""
    train, validation = dataset.train, dataset.validation
    y = np.concatenate([train.y, validation.y])
    if dataset.info.normalized:
        return Split(np.concatenate([train.x, validation.x]), y)
    return Split(Joined(train.x, validation.x), y)  # type: ignore[arg-type]


class Joined:
    """Two parts of a data set as one that is read like each of them.

    Args:
        first, second: indexable by slices and int64 arrays.
    """

    def __init__(self, first: Any, second: Any) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, where: Any) -> Array:
        n = len(self._first)
        index_N = np.arange(len(self))[where] if isinstance(where, slice) else np.asarray(where)
        is_first_N = index_N < n
        if is_first_N.all():
            return np.asarray(self._first[index_N])
        second = np.asarray(self._second[index_N[~is_first_N] - n])
        if not is_first_N.any():
            return second
        joined = np.empty((len(index_N), *second.shape[1:]), dtype=second.dtype)
        joined[is_first_N], joined[~is_first_N] = self._first[index_N[is_first_N]], second
        return joined

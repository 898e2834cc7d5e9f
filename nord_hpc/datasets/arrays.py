"""The user's own arrays: an npz or HDF5 file, or a folder of npy files that stay mapped. Cleaning is done elsewhere."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.datasets.dataset import RawData, Task
from nord_hpc.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]

PARTS = ("x_train", "y_train", "x_validation", "y_validation", "x_test", "y_test", "groups_train")
WHOLE = ("x", "y", "groups")
"""Arrays that the file or folder may hold: the parts, or x and y (and groups) from which all parts are carved."""

HDF5_SUFFIXES = (".h5", ".hdf5")
EXPECTED = "an .npz or .h5 file or a folder of .npy files"


class Arrays:
    """`path` is an .npz or HDF5 file or a folder of .npy files with x_train and y_train (and more of `PARTS`), or x, y.

    An HDF5 file has the arrays as datasets of its root. Each process reads it whole and closes it again, before any
    training: an open handle is never shared, as positions in it would be.
    """

    class Options(BaseModel):
        """What the arrays mean.

        Attributes:
            task: `regression` for numbers to predict, [N] or [N, K].
            layout: of x: `channels_first` is [N, C, ...], `channels_last` [N, ..., C], `no_channels` [N, ...]. Vectors
                [N, F] stay vectors with the first two, and are sequences of one channel with `no_channels`.
            class_names: where given, labels are positions in it.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        task: Task = "classification"
        layout: Literal["channels_first", "channels_last", "no_channels"] = "channels_first"
        class_names: tuple[str, ...] | None = None

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        if path is None:
            raise BadInput(f"dataset.path: is missing; set it to {EXPECTED}")
        if not path.exists():
            raise BadInput(f"dataset.path: {path} does not exist; set it to {EXPECTED}")
        if path.is_file() and path.suffix not in (".npz", *HDF5_SUFFIXES):
            raise BadInput(f"dataset.path: {path} is not {EXPECTED}; set it to one")
        self._options = options
        self._path = path
        self._found = self._names()
        self._used = _used_names(self._found, path)

    def files(self) -> list[Path]:
        if self._path.is_file():
            return [self._path]
        return [self._path / f"{name}.npy" for name in self._used]

    def load(self) -> RawData:
        arrays = {_canonical(name): self._read(name) for name in self._used}
        for name in arrays:
            if name.startswith("x_"):
                arrays[name] = self._channels_first(name, arrays[name])
        ignored = [name for name in self._found if name not in self._used]
        notes = (f"arrays that are not used: {', '.join(ignored)}",) if ignored else ()
        return RawData(
            **arrays,
            task=self._options.task,
            class_names=self._options.class_names,
            source=str(self._path),
            licence="as given by the owner of the arrays",
            notes=notes,
        )

    def _names(self) -> list[str]:
        try:
            if self._path.is_dir():
                return sorted(file.stem for file in self._path.glob("*.npy"))
            if self._path.suffix in HDF5_SUFFIXES:
                return _hdf5_names(self._path)
            with zipfile.ZipFile(self._path) as archive:
                return sorted(name.removesuffix(".npy") for name in archive.namelist())
        except (OSError, zipfile.BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadInput(f"dataset.path: {self._path} cannot be read: {reason}") from error

    def _read(self, name: str) -> Array:
        try:
            if self._path.is_dir():
                mapped = name.startswith("x")
                array = np.load(self._path / f"{name}.npy", mmap_mode="r" if mapped else None, allow_pickle=False)
            elif self._path.suffix in HDF5_SUFFIXES:
                array = _from_hdf5(self._path, name)
            else:
                with np.load(self._path, allow_pickle=False) as archive:
                    array = archive[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"dataset.path: {self._path}: array {name} cannot be read: {_one_line(error)}") from error
        return np.asanyarray(array)

    def _channels_first(self, name: str, x: Array) -> Array:
        """A view, so that mapped arrays stay mapped."""
        if self._options.layout == "no_channels":
            return x[:, None] if x.ndim >= 1 else x
        if x.ndim < 2:
            raise BadInput(
                f"dataset.path: {self._path}: {name} has shape {list(x.shape)}, and dataset.layout "
                f"{self._options.layout} needs samples and features, or channels; set layout: no_channels"
            )
        return np.moveaxis(x, -1, 1) if self._options.layout == "channels_last" else x


def _hdf5_names(path: Path) -> list[str]:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r", locking=False) as file:
        return sorted(name for name, item in file.items() if isinstance(item, h5py.Dataset))


def _from_hdf5(path: Path, name: str) -> Array:
    """A dataset of the file's root as an array; texts as texts."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        dataset = file[name]
        if h5py.check_string_dtype(dataset.dtype) is not None:
            return np.asarray(dataset.asstr()[()]).astype(str)
        return np.asarray(dataset[()])


def _used_names(found: list[str], path: Path) -> list[str]:
    if "x_train" in found and "y_train" in found:
        return [name for name in PARTS if name in found]
    if "x" in found and "y" in found:
        return [name for name in WHOLE if name in found]
    raise BadInput(
        f"dataset.path: {path} has {', '.join(found[:8]) or 'no arrays'}; give x_train and y_train "
        "(and x_test, y_test), or x and y"
    )


def _canonical(name: str) -> str:
    return f"{name}_train" if name in WHOLE else name


def _one_line(error: BaseException) -> str:
    if "allow_pickle" in str(error):
        return "it holds Python objects; save plain numbers or strings"
    return " ".join(str(error).split()) or type(error).__name__

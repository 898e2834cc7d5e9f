"""The parts of a data set as a training loop reads them: batches on the device, wherever the arrays live."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

SEQUENCE_TASK = "language_modelling"
"""The task of data whose samples follow each other."""

PADDING = -1
"""Target of a place of a sequence that is none; it counts in no loss and no metric."""

ALIGNMENT_BYTES = 64
"""Of torch's own memory. Kernels may add in another order on arrays that start elsewhere."""


class Info(Protocol):
    """What a loop needs to know of a data set; `nord_hpc.datasets.dataset.DatasetInfo` is one.

    Attributes:
        task: "classification", "regression" or "language_modelling".
        n_outputs: classes, or numbers to predict.
        storage: "device" puts the arrays onto the GPU; "host" and "mmap" leave them where they are.
        normalized: whether the parts' x are normalized already.
        evaluation_streams: of a sequence: in how many parallel streams it is scored.
    """

    @property
    def task(self) -> str: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def storage(self) -> str: ...
    @property
    def normalized(self) -> bool: ...
    @property
    def evaluation_streams(self) -> int: ...
    def normalize(self, x_NC: Any) -> npt.NDArray[np.float32]: ...


class Split(Protocol):
    """One part as it comes from the data set: x indexable by slices and int64 arrays, y an array."""

    @property
    def x(self) -> Any: ...
    @property
    def y(self) -> Any: ...


Batch = tuple[torch.Tensor, torch.Tensor]


class Part:
    """One part of a data set, ready to be read by the batch.

    Args:
        split: the arrays.
        info: of the data set.
        device: where batches are wanted.
    """

    def __init__(self, split: Split, info: Info, *, device: torch.device) -> None:
        self._info = info
        self.device = device
        self._x: Any = split.x
        if info.normalized:
            self._x = as_tensor(split.x)
            if info.storage == "device" or device.type == "cpu":
                self._x = self._x.to(device)
        self._y = as_tensor(split.y).to(device)

    def __len__(self) -> int:
        return len(self._y)

    @property
    def targets(self) -> torch.Tensor:
        """Of all samples, on the device."""
        return self._y

    def __getitem__(self, where: slice) -> Batch:
        """The samples of consecutive positions."""
        return self._on_device(self._x[where]), self._y[where]

    def pieces(self, where: slice) -> Iterator[Batch]:
        """The samples of consecutive positions, in the pieces in which a network sees them one after the other."""
        yield self[where]

    def in_order(self, order_N: npt.NDArray[np.int64]) -> OrderedPart:
        """The samples with these indices, in this order."""
        return OrderedPart(self, order_N)

    def take(self, index_B: torch.Tensor) -> Batch:
        """The samples with these indices; the index stands where `index_device` says."""
        y_B = self._y.index_select(0, index_B.to(self.device))
        if isinstance(self._x, torch.Tensor):
            return self._on_device(self._x.index_select(0, index_B)), y_B
        return self._on_device(self._x[index_B.numpy()]), y_B

    @property
    def index_device(self) -> torch.device:
        return self._x.device if isinstance(self._x, torch.Tensor) else torch.device("cpu")

    def _on_device(self, x: Any) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            x = as_tensor(self._info.normalize(x))
        x_BC: torch.Tensor = x
        if self.device.type == "cuda":
            if x_BC.device.type == "cpu":
                x_BC = x_BC.pin_memory().to(self.device, non_blocking=True)
            if x_BC.dim() == 4:
                x_BC = x_BC.contiguous(memory_format=torch.channels_last)
        return x_BC


class StreamedPart:
    """Validation or test part of a sequence: its windows in parallel streams, each of which counts as one sample.

    Args:
        split: windows [N, T] in the order of the text.
        streams: at most so many; each but the last has equally many windows.
    """

    def __init__(self, split: Split, info: Info, *, device: torch.device, streams: int) -> None:
        self.device = device
        n_windows, length = split.x.shape
        self._length = length
        self._windows = -(-n_windows // streams)
        n_streams = -(-n_windows // self._windows)
        self._x, self._y = (
            self._in_streams(as_tensor(array).to(device), n_streams, filling=filling)
            for array, filling in ((split.x, 0), (split.y, PADDING))
        )

    def __len__(self) -> int:
        return len(self._y)

    @property
    def targets(self) -> torch.Tensor:
        """Of all streams, on the device."""
        return self._y

    def __getitem__(self, where: slice) -> Batch:
        """Whole streams."""
        return self._x[where], self._y[where]

    def pieces(self, where: slice) -> Iterator[Batch]:
        """The windows of some streams, one after the other."""
        x_BL, y_BL = self[where]
        for window in range(self._windows):
            place = slice(window * self._length, (window + 1) * self._length)
            yield x_BL[:, place], y_BL[:, place]

    def _in_streams(self, windows_NT: torch.Tensor, n_streams: int, *, filling: int) -> torch.Tensor:
        """[streams, tokens], the last stream filled up."""
        all_NT = windows_NT.new_full((n_streams * self._windows, self._length), filling)
        all_NT[: len(windows_NT)] = windows_NT
        return all_NT.view(n_streams, -1)


def scored_part(split: Split, info: Info, *, device: torch.device) -> Part | StreamedPart:
    """A part as it is scored: samples one by one, or the streams of a sequence."""
    if info.task == SEQUENCE_TASK:
        return StreamedPart(split, info, device=device, streams=info.evaluation_streams)
    return Part(split, info, device=device)


class OrderedPart:
    """A part in the order of one epoch; slices of it are batches."""

    def __init__(self, part: Part, order_N: npt.NDArray[np.int64]) -> None:
        self._part = part
        self._order_N = torch.from_numpy(order_N).to(part.index_device)

    def __getitem__(self, where: slice) -> Batch:
        return self._part.take(self._order_N[where])


def as_tensor(array: Any) -> torch.Tensor:
    """An array as a tensor: the same memory where it is aligned as torch's own, else a copy."""
    plain = np.asarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(plain)
    return (
        tensor
        if plain.flags.c_contiguous and plain.ctypes.data % ALIGNMENT_BYTES == 0
        else tensor.clone(memory_format=torch.contiguous_format)
    )

"""Data as found to data as used: rows that are not finite go, labels become 0 .. K-1; each change leaves a note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nord_hpc.datasets.rows import Rows
from nord_hpc.errors import BadInput

SHOWN_ROWS = 10
"""A note names this many of the rows that were dropped."""

Label = int | str


def check_shapes(parts: Mapping[str, tuple[Rows, np.ndarray[Any, Any]]]) -> None:
    """Every part has samples, a channel axis, as many targets as samples, and the sample shape of the training part.

    Args:
        parts: name to (x, y), "train" among them.

    Raises:
        BadInput: names the array at fault and its shape.
    """
    sample_shape = parts["train"][0].shape[1:]
    for name, (x, y) in parts.items():
        if x.dtype.kind not in "buif":
            raise BadInput(f"x_{name} holds {x.dtype}, not numbers; give uint8 or float32")
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise BadInput(
                f"x_{name} has shape {_shown(x.shape)}; give [samples, features] or [samples, channels, ...] with no "
                "empty axis"
            )
        if len(x) != len(y):
            raise BadInput(f"x_{name} has {len(x)} samples and y_{name} has {len(y)}; give one target for each")
        if len(x) == 0:
            raise BadInput(f"x_{name} has no samples; give at least one")
        if x.shape[1:] != sample_shape:
            raise BadInput(f"x_{name} has samples of {_shown(x.shape[1:])} and x_train of {_shown(sample_shape)}")


def finite_rows(x: Rows, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whether each row is finite as float32, in x and in y: bool [N]."""
    keep = np.ones(len(x), dtype=bool)
    if x.dtype.kind == "f":
        start = 0
        with np.errstate(over="ignore"):
            for chunk in x.chunks():
                finite = np.isfinite(chunk.astype(np.float32, copy=False))
                keep[start : start + len(chunk)] = finite.reshape(len(chunk), -1).all(axis=1)
                start += len(chunk)
    if y.dtype.kind == "f":
        keep &= np.isfinite(y).reshape(len(y), -1).all(axis=1)
    return keep


def dropped_note(part: str, keep: np.ndarray[Any, Any]) -> str:
    """What was dropped, with the first row numbers, counted from 0."""
    rows = np.flatnonzero(~keep)
    more = ", ..." if len(rows) > SHOWN_ROWS else ""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
    return f"{part}: {len(rows)} of {len(keep)} rows dropped as they hold NaN or infinity: row {shown}{more}"


def plain_labels(y: np.ndarray[Any, Any], *, part: str) -> np.ndarray[Any, Any]:
    """Class labels as int64 [N] or str [N].

    Raises:
        BadInput: they are of no such kind; says where.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise BadInput(
            f"y_{part} has shape {_shown(y.shape)}; give one label for each sample (of one-hot rows the argmax), or "
            "set dataset.task: regression"
        )
    if y.dtype.kind == "f":
        odd = np.flatnonzero(y != np.floor(y))
        if len(odd):
            raise BadInput(
                f"y_{part} is {float(y[odd[0]])} in row {odd[0]}, which is no class label; give integers or strings, "
                "or set dataset.task: regression"
            )
    if y.dtype.kind in "buif":
        return y.astype(np.int64)
    if y.dtype.kind in "US":
        return y.astype(str)
    raise BadInput(f"y_{part} holds {y.dtype}; give integers or strings")


def class_indices(
    labels_train: np.ndarray[Any, Any], class_names: tuple[str, ...] | None
) -> tuple[dict[Label, int], tuple[str, ...]]:
    """The classes: original label to index 0 .. K-1, in sorted order, and a name for each.

    Args:
        labels_train: of the whole training part, from `plain_labels`.
        class_names: the source's own; then the labels are positions in it, and classes may lack samples.

    Raises:
        BadInput: a label has no name, or there is only one class.
    """
    found: list[Label] = np.unique(labels_train).tolist()
    if class_names is not None:
        outside = [label for label in found if not isinstance(label, int) or not 0 <= label < len(class_names)]
        if outside:
            raise BadInput(
                f"y_train has the label {outside[0]!r}, and class_names has {len(class_names)} names; "
                "labels are positions in it, from 0"
            )
        found = list(range(len(class_names)))
    if len(found) < 2:
        raise BadInput(f"y_train has one class only ({found[0]!r}); give at least two")
    labels = {label: index for index, label in enumerate(found)}
    return labels, class_names or tuple(str(label) for label in found)


def to_indices(
    labels_N: np.ndarray[Any, Any], class_labels: Mapping[Label, int], *, part: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels to class indices, int64 [N].

    Raises:
        BadInput: a label that the training part does not have; names it.
    """
    found, inverse = np.unique(labels_N, return_inverse=True)
    unknown = [label for label in found.tolist() if label not in class_labels]
    if unknown:
        raise BadInput(
            f"y_{part} has the label {unknown[0]!r}, which the training part does not have; it has "
            f"{_listed(class_labels)}"
        )
    table = np.array([class_labels[label] for label in found.tolist()], dtype=np.int64)
    return table[inverse.reshape(-1)]


def targets(y: np.ndarray[Any, Any], *, part: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Regression targets as float32 [N] or [N, K].

    Raises:
        BadInput: they are no numbers, or have more axes.
    """
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2):
        raise BadInput(f"y_{part} is {y.dtype} {_shown(y.shape)}; give numbers, [samples] or [samples, outputs]")
    return y.astype(np.float32)


def _listed(class_labels: Mapping[Label, int]) -> str:
    shown = ", ".join(repr(label) for label in list(class_labels)[:SHOWN_ROWS])
    return shown + (", ..." if len(class_labels) > SHOWN_ROWS else "")


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"

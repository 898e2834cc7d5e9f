"""Raw data to clean train, validation and test parts, with their statistics; nothing is copied or normalized."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nord_hpc.datasets import cleaning
from nord_hpc.datasets.normalization import channel_statistics
from nord_hpc.datasets.rows import Rows
from nord_hpc.datasets.splits import TEST_SEED, TEST_SHARE, carve, share_of
from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    from nord_hpc.datasets.dataset import RawData

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Part:
    """Samples in the source's own numbers, and their final targets."""

    x: Rows
    y: Array

    def select(self, rows: Array) -> Part:
        return Part(self.x.select(rows), self.y[rows])


@dataclass(frozen=True)
class Carved:
    """The parts of a data set, and what was found on the way; see `nord_hpc.datasets.dataset.DatasetInfo`."""

    parts: Mapping[str, Part]
    n_outputs: int
    class_labels: Mapping[cleaning.Label, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    fingerprint: str


def carve_parts(raw: RawData, *, validation: float, fraction: float, split_seed: int) -> Carved:
    """Drop what is not finite, map the labels, carve the parts, take the share, and measure the training part.

    In this order: test (where the source has none) by a fixed seed, then validation (likewise) and the share of the
    training part by `split_seed`.

    Raises:
        BadInput: the data cannot be used; one line says why.
    """
    parts = _given_parts(raw)
    cleaning.check_shapes({name: (part.x, part.y) for name, part in parts.items()})
    if raw.groups_train is not None and raw.groups_train.shape != (len(raw.x_train),):
        raise BadInput(f"groups_train has shape {list(raw.groups_train.shape)}; give one group for each sample")
    fingerprint = _fingerprint(parts, raw.groups_train)
    notes = list(raw.notes)
    parts, groups = _finite(parts, raw.groups_train, notes)
    parts, class_labels, class_names = _with_targets(parts, raw)
    parts = _split(parts, groups, raw, validation=validation, fraction=fraction, split_seed=split_seed, notes=notes)
    y_train = parts["train"].y
    if raw.task == "classification":
        n_outputs = len(class_names)
        _check_classes(parts, class_names)
    else:
        n_outputs = y_train.shape[1] if y_train.ndim == 2 else 1
    mean, std = channel_statistics(parts["train"].x)
    return Carved(
        parts=parts,
        n_outputs=n_outputs,
        class_labels=class_labels,
        class_names=class_names,
        mean=mean,
        std=std,
        notes=tuple(notes),
        fingerprint=fingerprint,
    )


def _given_parts(raw: RawData) -> dict[str, Part]:
    pairs = {
        "train": (raw.x_train, raw.y_train),
        "validation": (raw.x_validation, raw.y_validation),
        "test": (raw.x_test, raw.y_test),
    }
    parts = {}
    for name, (x, y) in pairs.items():
        if (x is None) != (y is None):
            present, absent = ("x", "y") if y is None else ("y", "x")
            raise BadInput(f"there is {present}_{name} without {absent}_{name}; give both or neither")
        if x is not None and y is not None:
            parts[name] = Part(Rows(x), np.asarray(y))
    return parts


def _fingerprint(parts: Mapping[str, Part], groups: Array | None) -> str:
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {part.x.shape} {part.x.dtype.str} {part.y.shape} {part.y.dtype.str}\n".encode())
        for chunk in part.x.chunks():
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(part.y.tobytes())
    if groups is not None:
        digest.update(f"groups {groups.dtype.str}\n".encode() + groups.tobytes())
    return digest.hexdigest()


def _finite(parts: Mapping[str, Part], groups: Array | None, notes: list[str]) -> tuple[dict[str, Part], Array | None]:
    kept = {}
    for name, part in parts.items():
        keep = cleaning.finite_rows(part.x, part.y)
        if not keep.any():
            raise BadInput(f"every row of x_{name} or y_{name} holds NaN or infinity; give finite numbers")
        kept[name] = part if keep.all() else part.select(np.flatnonzero(keep))
        if not keep.all():
            notes.append(cleaning.dropped_note(name, keep))
        if name == "train" and groups is not None:
            groups = groups[keep]
    return kept, groups


def _with_targets(
    parts: Mapping[str, Part], raw: RawData
) -> tuple[dict[str, Part], Mapping[cleaning.Label, int], tuple[str, ...]]:
    """The parts with class indices or regression targets, the original labels, and the classes' names."""
    if raw.task == "regression":
        numbers = {name: cleaning.targets(part.y, part=name) for name, part in parts.items()}
        if len({y.shape[1:] for y in numbers.values()}) > 1:
            raise BadInput("the parts' y have different numbers of outputs; give equal ones")
        return {name: Part(part.x, numbers[name]) for name, part in parts.items()}, {}, ()
    labels = {name: cleaning.plain_labels(part.y, part=name) for name, part in parts.items()}
    class_labels, class_names = cleaning.class_indices(labels["train"], raw.class_names)
    indexed = {
        name: Part(part.x, cleaning.to_indices(labels[name], class_labels, part=name)) for name, part in parts.items()
    }
    return indexed, class_labels, class_names


def _split(
    parts: Mapping[str, Part],
    groups: Array | None,
    raw: RawData,
    *,
    validation: float,
    fraction: float,
    split_seed: int,
    notes: list[str],
) -> dict[str, Part]:
    done = dict(parts)
    stratified = raw.task == "classification"
    wanted = [("test", TEST_SHARE, TEST_SEED), ("validation", validation, split_seed)]
    for name, share, seed in wanted:
        if name in done:
            continue
        train = done["train"]
        labels = train.y if stratified else None
        keep, carved = carve(len(train.y), share=share, seed=seed, purpose=name, labels=labels, groups=groups)
        done["train"], done[name] = train.select(keep), train.select(carved)
        groups = None if groups is None else groups[keep]
    if "test" not in parts:
        notes.append(
            f"no test part of its own: {len(done['test'].y)} samples were carved out, the same ones in every job"
        )
    if "validation" in parts:
        notes.append("a validation part of its own: dataset.validation is not used")
    train = done["train"]
    rows = share_of(len(train.y), share=fraction, seed=split_seed, labels=train.y if stratified else None)
    done["train"] = train if fraction >= 1 else train.select(rows)
    return {name: done[name] for name in PARTS}


def _check_classes(parts: Mapping[str, Part], class_names: tuple[str, ...]) -> None:
    """Every class of the validation and test parts has a training sample."""
    for name in ("validation", "test"):
        unseen = np.setdiff1d(parts[name].y, parts["train"].y)
        if len(unseen):
            raise BadInput(
                f"class {class_names[unseen[0]]!r} is in the {name} part and has no sample in the training part; give "
                "samples of it, or another dataset.split_seed"
            )

"""Which rows go to training, validation and test: functions of the labels, groups and one seed; no data is touched."""

from __future__ import annotations

from typing import Any

import numpy as np

from nord_hpc.errors import BadInput
from nord_hpc.seeding import derived_seed

TEST_SHARE = 0.2
"""Share of the samples that becomes the test part of a data set that comes without one."""

TEST_SEED = 0
"""Seed of that choice: fixed, so that every job, whatever its seeds, reports on the same test part."""

Index = np.ndarray[Any, np.dtype[np.int64]]


def carve(
    n: int,
    *,
    share: float,
    seed: int,
    purpose: str,
    labels: np.ndarray[Any, Any] | None = None,
    groups: np.ndarray[Any, Any] | None = None,
) -> tuple[Index, Index]:
    """Divide the rows 0 .. n - 1 into what is kept and what is carved out.

    With `groups`, whole groups are carved out: round(groups x share) of them, at least one, never all. Else with
    `labels` the choice is stratified (see `class_counts`). Else round(n x share) rows, at least one, never all.
    Which rows (or groups) they are follows from `seed` and `purpose` alone.

    Args:
        n: rows, at least 2.
        share: of the rows to carve out, above 0 and below 1.
        labels: int [n], the class of each row.
        groups: [n], of any sortable type; for example the subject that a sample was measured on.

    Returns:
        Kept and carved rows, each sorted.

    Raises:
        BadInput: there are too few rows or groups to divide.
    """
    if groups is not None:
        carved = _carved_groups(groups, share=share, seed=seed, purpose=purpose)
    elif labels is not None:
        carved = _carved_by_class(labels, share=share, seed=seed, purpose=purpose)
    else:
        if n < 2:
            raise BadInput(f"{n} sample is too few to carve out a {purpose} part; give 2 or more")
        wanted = min(max(round(n * share), 1), n - 1)
        carved = np.argsort(_keys(n, seed=seed, purpose=purpose), kind="stable")[:wanted]
    mask = np.zeros(n, dtype=bool)
    mask[carved] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def share_of(n: int, *, share: float, seed: int, labels: np.ndarray[Any, Any] | None = None) -> Index:
    """The rows of a stratified share of 0 .. n - 1, sorted; at least one of each class (or one row) remains.

    A smaller share is a part of a larger one, but for a row that rounding moves between classes.
    """
    if share >= 1:
        return np.arange(n)
    keys = _keys(n, seed=seed, purpose="fraction")
    if labels is None:
        return np.sort(np.argsort(keys, kind="stable")[: max(round(n * share), 1)])
    sizes = np.bincount(labels)
    counts = _largest_remainder(sizes, share=share, lowest=np.minimum(sizes, 1), highest=sizes)
    return np.sort(_first_of_each_class(labels, keys=keys, counts=counts))


def class_counts(sizes: np.ndarray[Any, Any], *, share: float) -> Index:
    """How many rows of each class to carve out: largest remainders, in all round(sum x share).

    A class of 2 or more rows gives at least one and keeps at least one; a class of one keeps it. Where these bounds
    and the sum exclude each other, the bounds hold. Equal remainders go to the lower class.

    Args:
        sizes: rows of each class, int [K].
    """
    lowest = (sizes >= 2).astype(np.int64)
    highest = np.maximum(sizes - 1, 0)
    return _largest_remainder(sizes, share=share, lowest=lowest, highest=highest)


def _largest_remainder(
    sizes: np.ndarray[Any, Any], *, share: float, lowest: np.ndarray[Any, Any], highest: np.ndarray[Any, Any]
) -> Index:
    exact = sizes * share
    counts = np.clip(np.floor(exact).astype(np.int64), lowest, highest)
    total = min(max(round(int(sizes.sum()) * share), int(lowest.sum())), int(highest.sum()))
    while counts.sum() < total:
        counts[np.argmax(np.where(counts < highest, exact - counts, -np.inf))] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > lowest, counts - exact, -np.inf))] -= 1
    return counts


def _carved_by_class(labels: np.ndarray[Any, Any], *, share: float, seed: int, purpose: str) -> Index:
    counts = class_counts(np.bincount(labels), share=share)
    if counts.sum() == 0:
        raise BadInput(f"no class has 2 samples, so no {purpose} part can be carved out; give more samples")
    keys = _keys(len(labels), seed=seed, purpose=purpose)
    return _first_of_each_class(labels, keys=keys, counts=counts)


def _first_of_each_class(
    labels: np.ndarray[Any, Any], *, keys: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]
) -> Index:
    """Of each class k, the counts[k] rows with the lowest keys."""
    order = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[order], np.arange(len(counts)))
    return np.concatenate([order[start : start + count] for start, count in zip(starts, counts, strict=True)])


def _carved_groups(groups: np.ndarray[Any, Any], *, share: float, seed: int, purpose: str) -> Index:
    names, group_of_row = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"a {purpose} part is carved out by whole groups, and there is only {len(names)}; give more")
    wanted = min(max(round(len(names) * share), 1), len(names) - 1)
    chosen = np.argsort(_keys(len(names), seed=seed, purpose=purpose), kind="stable")[:wanted]
    return np.flatnonzero(np.isin(group_of_row, chosen))


def _keys(n: int, *, seed: int, purpose: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A random key for each row. Raw draws of the bit generator: numpy keeps them for ever, unlike its shuffles."""
    return np.asarray(np.random.PCG64(derived_seed(seed, "split", purpose)).random_raw(n), dtype=np.uint64)

"""Ranking by several objectives: non-dominated fronts, crowding and hypervolume. Smaller values are better throughout.

One vector dominates another if it is nowhere larger and somewhere smaller.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nord_hpc.strategies.objectives import Values

Floats = NDArray[np.float64]
_Item = TypeVar("_Item")


class Front(Generic[_Item]):
    """Vectors of which none dominates another, with an item each.

    Attributes:
        values_NM: the vectors, one a row.
        items: in the order of the rows.
    """

    def __init__(self, values_NM: Floats, items: list[_Item]) -> None:
        self.values_NM = values_NM
        self.items = items
        self._crowding_N: Floats | None = None

    @property
    def crowding_N(self) -> Floats:
        """See `crowding_distances`; computed when first wanted."""
        if self._crowding_N is None:
            self._crowding_N = crowding_distances(self.values_NM)
        return self._crowding_N


class Fronts(Generic[_Item]):
    """Items in fronts: nothing dominates the first, and each other is dominated by something in the one before it.

    Inserting one and removing one of the last front cost comparisons with few fronts, not a new sorting of all: Li et
    al., "Efficient Nondomination Level Update Method for Steady-State Evolutionary Multiobjective Optimization", 2017.
    """

    def __init__(self) -> None:
        self.levels: list[Front[_Item]] = []

    def __len__(self) -> int:
        return sum(len(front.items) for front in self.levels)

    def insert(self, values: Values, item: _Item) -> None:
        """Put an item into its front; those that it dominates move back."""
        values_NM = np.array([values], dtype=np.float64)
        # What is dominated by a front is dominated by all before it.
        level = bisect.bisect_left(self.levels, True, key=lambda front: not _dominated(values_NM, front.values_NM)[0])
        moving = Front(values_NM, [item])
        while moving.items and level < len(self.levels):
            front = self.levels[level]
            behind_N = _dominated(front.values_NM, moving.values_NM)
            self.levels[level] = _joined(_chosen(front, ~behind_N), moving)
            moving = _chosen(front, behind_N)
            level += 1
        if moving.items:
            self.levels.append(moving)

    def remove_last(self, index: int) -> _Item:
        """Take an item out of the last front, by its place there."""
        front = self.levels[-1]
        item = front.items[index]
        keep_N = np.arange(len(front.items)) != index
        self.levels[-1] = _chosen(front, keep_N)
        if not self.levels[-1].items:
            del self.levels[-1]
        return item

    def place(self, index: int) -> tuple[int, int]:
        """Front and place there of the item that comes as number `index` when the fronts follow each other."""
        for level, front in enumerate(self.levels):
            if index < len(front.items):
                return level, index
            index -= len(front.items)
        raise IndexError(f"there are {len(self)} items")


def nondominated_fronts(vectors: Sequence[Values]) -> list[list[int]]:
    """Places of the vectors front by front, ascending in each; Deb et al. 2002, "NSGA-II"."""
    fronts: Fronts[int] = Fronts()
    for place, values in enumerate(vectors):
        fronts.insert(values, place)
    return [sorted(front.items) for front in fronts.levels]


def crowding_distances(values_NM: Floats) -> Floats:
    """How much room each of a front has: over the objectives, the sum of the gaps between its two neighbours, as shares
    of the front's width; infinite at the ends of an objective. Deb et al. 2002, "NSGA-II".
    """
    n, _ = values_NM.shape
    if n <= 2:
        return np.full(n, np.inf)
    distances_N = np.zeros(n)
    for column_N in values_NM.T:
        order_N = column_N.argsort(kind="stable")
        ordered_N = column_N[order_N]
        width = ordered_N[-1] - ordered_N[0]
        if width > 0:
            distances_N[order_N[1:-1]] += (ordered_N[2:] - ordered_N[:-2]) / width
            distances_N[order_N[[0, -1]]] = np.inf
    return distances_N


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The volume that the points dominate, up to the reference point; exact.

    Args:
        points: [N, M] with 1, 2 or 3 objectives; those that are not below the reference everywhere count nothing.
        reference: one value for each objective.

    Raises:
        ValueError: another number of objectives.
    """
    n_objectives = len(reference)
    if n_objectives not in (1, 2, 3):
        raise ValueError(f"hypervolume is exact for 1, 2 or 3 objectives, not for {n_objectives}")
    points_NM = np.asarray(points, dtype=np.float64).reshape(-1, n_objectives)
    # Distances from the reference: from here on larger is better, and all are positive.
    depths_NM = np.asarray(reference, dtype=np.float64) - points_NM
    depths_NM = depths_NM[(depths_NM > 0).all(axis=1)]
    if not len(depths_NM):
        return 0.0
    if n_objectives == 1:
        return float(depths_NM.max())
    if n_objectives == 2:
        return _area(depths_NM)
    return _volume(depths_NM)


def _area(depths_N2: Floats) -> float:
    """Area of the union of rectangles from the origin."""
    ordered_N2 = depths_N2[np.argsort(-depths_N2[:, 0], kind="stable")]
    heights_N = np.maximum.accumulate(ordered_N2[:, 1])
    rises_N = np.diff(heights_N, prepend=0.0)
    return float(np.sum(rises_N * ordered_N2[:, 0]))


def _volume(depths_N3: Floats) -> float:
    """Volume of the union of boxes from the origin: slabs of the third objective, each with the area above it."""
    ordered_N3 = depths_N3[np.argsort(-depths_N3[:, 2], kind="stable")]
    lower_N = np.append(ordered_N3[1:, 2], 0.0)
    thickness_N = ordered_N3[:, 2] - lower_N
    return float(sum(d * _area(ordered_N3[: k + 1, :2]) for k, d in enumerate(thickness_N) if d > 0))


def _dominated(values_NM: Floats, by_KM: Floats) -> NDArray[np.bool_]:
    """For each of N vectors, whether one of K dominates it."""
    no_larger_KN = (by_KM[:, None] <= values_NM).all(axis=2)
    smaller_KN = (by_KM[:, None] < values_NM).any(axis=2)
    dominated_N: NDArray[np.bool_] = np.logical_or.reduce(no_larger_KN & smaller_KN, axis=0)
    return dominated_N


def _chosen(front: Front[_Item], which_N: NDArray[np.bool_]) -> Front[_Item]:
    items = [item for item, chosen in zip(front.items, which_N.tolist(), strict=True) if chosen]
    return front if len(items) == len(front.items) else Front(front.values_NM[which_N], items)


def _joined(front: Front[_Item], other: Front[_Item]) -> Front[_Item]:
    return Front(np.concatenate([front.values_NM, other.values_NM]), [*front.items, *other.items])

"""Fronts, crowding and hypervolume against their definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nord_hpc.strategies.dominance import Fronts, crowding_distances, hypervolume, nondominated_fronts

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def vectors(n_objectives: int, *, most: int = 25) -> Any:
    return st.lists(st.tuples(*[st.integers(0, 6)] * n_objectives), min_size=1, max_size=most)


def dominates(one: Any, other: Any) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def peeled(points: list[Any]) -> list[list[int]]:
    """Fronts by their definition: what nothing dominates, then the same without these."""
    left, fronts = set(range(len(points))), []
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        fronts.append(sorted(front))
        left -= front
    return fronts


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
def test_fronts_are_those_of_the_definition(n_objectives: int) -> None:
    @quick
    @given(vectors(n_objectives))
    def check(points: list[Any]) -> None:
        assert nondominated_fronts(points) == peeled(points)

    check()


def test_fronts_stay_right_while_the_last_ones_leave() -> None:
    @quick
    @given(vectors(2), st.integers(0, 100))
    def check(points: list[Any], seed: int) -> None:
        fronts: Fronts[int] = Fronts()
        rng = np.random.Generator(np.random.PCG64(seed))
        inside: list[int] = []
        for number, point in enumerate(points):
            fronts.insert(point, number)
            inside.append(number)
            if len(inside) > 6:
                inside.remove(fronts.remove_last(int(rng.random() * len(fronts.levels[-1].items))))
            expected = [[inside[place] for place in front] for front in peeled([points[n] for n in inside])]
            assert [sorted(front.items) for front in fronts.levels] == expected
            assert len(fronts) == len(inside)
        flat = [fronts.place(index) for index in range(len(fronts))]
        assert flat == [(k, i) for k, front in enumerate(fronts.levels) for i in range(len(front.items))]
        with pytest.raises(IndexError, match=f"there are {len(inside)} items"):
            fronts.place(len(inside))

    check()


def test_crowding_is_the_gap_between_neighbours() -> None:
    values = np.array([[0.0, 10.0], [4.0, 4.0], [1.0, 8.0], [10.0, 0.0]])
    # Second: neighbours 1 and 10, 8 and 0, in fronts 10 wide; third: 0 and 4, 10 and 4.
    assert crowding_distances(values).tolist() == [math.inf, 0.9 + 0.8, 0.4 + 0.6, math.inf]
    assert crowding_distances(values[:2]).tolist() == [math.inf, math.inf]
    assert crowding_distances(np.ones((4, 2))).tolist() == [0.0] * 4


def counted(points: list[Any], reference: Any) -> int:
    """Unit cells below the reference that some point dominates."""
    cells = itertools.product(*map(range, reference))
    return sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)


@pytest.mark.parametrize("reference", [(5,), (5, 6), (5, 4, 6)])
def test_hypervolume_of_whole_numbers_is_a_count_of_cells(reference: Any) -> None:
    @quick
    @given(vectors(len(reference), most=8))
    def check(points: list[Any]) -> None:
        assert hypervolume(points, reference) == pytest.approx(counted(points, reference))

    check()


def test_hypervolume_of_nothing_is_zero_and_of_four_objectives_refused() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0
    assert hypervolume([[2.0, 0.0], [1.0, 0.5]], (1.0, 1.0)) == 0
    with pytest.raises(ValueError, match="exact for 1, 2 or 3 objectives, not for 4"):
        hypervolume([[0.0] * 4], (1.0,) * 4)

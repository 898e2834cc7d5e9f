"""Joins: the sizes and channels that several inputs get, and what that costs."""

from __future__ import annotations

import pytest

from nord_hpc.builder.joins import Adapter, SizePolicy, join_inputs
from nord_hpc.builder.shapes import Shape, Site
from nord_hpc.errors import Infeasible

SITE = Site("x", "Identity")


@pytest.mark.parametrize(
    ("join", "policy", "shapes", "joined"),
    [
        ("add", "smallest", [(16, 8, 8), (32, 8, 8)], (32, 8, 8)),
        ("mean", "smallest", [(16, 8, 4), (16, 4, 8)], (16, 4, 4)),
        ("add", "largest", [(16, 8, 4), (16, 4, 8)], (16, 8, 8)),
        ("add", 5, [(16, 8, 4), (16, 4, 8)], (16, 5, 5)),
        ("add", (5, 3), [(16, 8, 8), (16, 8, 8)], (16, 5, 3)),
        ("concat", "smallest", [(16, 8), (8, 3), (1, 5)], (25, 3)),
        ("concat", "largest", [(2, 1, 2, 3), (3, 3, 2, 1)], (5, 3, 2, 3)),
        ("add", "smallest", [(16,), (10,)], (16,)),
        ("add", "largest", [(16, 8, 8), (10,)], (16,)),
        ("concat", 5, [(16, 8, 8), (10,), (3, 2)], (29,)),
    ],
)
def test_joined_shape(join: str, policy: SizePolicy, shapes: list[Shape], joined: Shape) -> None:
    adapters, shape = join_inputs(SITE, range(len(shapes)), shapes, join=join, policy=policy)
    assert shape == joined
    assert [adapter.source for adapter in adapters] == list(range(len(shapes)))
    assert all(adapter.shape[1:] == joined[1:] for adapter in adapters)
    if join == "concat":
        assert sum(adapter.shape[0] for adapter in adapters) == joined[0]
    else:
        assert all(adapter.shape == joined for adapter in adapters)


def test_inputs_that_fit_are_left_alone() -> None:
    adapters, _ = join_inputs(SITE, [3, 5], [(16, 8, 8), (16, 8, 8)], join="add", policy="smallest")
    assert adapters == (Adapter(3, (16, 8, 8)), Adapter(5, (16, 8, 8)))


def test_pooling_comes_before_projection_and_enlargement_after() -> None:
    adapters, _ = join_inputs(SITE, [0, 1], [(4, 8, 2), (6, 4, 6)], join="add", policy=(4, 4))
    first = Adapter(
        source=0,
        shape=(6, 4, 4),
        pool_to=(4, 2),
        project=(4, 6),
        enlarge_to=(4, 4),
        n_parameters=24,
        multiply_adds=24 * 8,
        n_values=4 * 8 + 6 * 8 + 6 * 16,
    )
    assert adapters == (first, Adapter(1, (6, 4, 4), pool_to=(4, 4), n_values=6 * 16))


def test_maps_of_different_dimensions_do_not_meet() -> None:
    with pytest.raises(Infeasible, match=r"^layer 'x' \(Identity\) joins maps of different dimensions: 8x8, 8$"):
        join_inputs(SITE, [0, 1], [(4, 8, 8), (4, 8)], join="add", policy="smallest")


def test_a_fixed_size_has_the_maps_dimensions() -> None:
    with pytest.raises(Infeasible, match=r"^layer 'x' \(Identity\) joins 1-D maps, but the fixed size is 8x8$"):
        join_inputs(SITE, [0, 1], [(4, 8), (4, 4)], join="add", policy=(8, 8))

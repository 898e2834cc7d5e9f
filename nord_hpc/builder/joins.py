"""How several inputs of a layer become one: sizes and channels made compatible, by integer arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

from nord_hpc.builder.shapes import Shape, Site

SizePolicy = Literal["smallest", "largest"] | int | Sequence[int]
"""To which spatial size maps are scaled where they meet: the smallest or the largest of them in each dimension, or a
fixed size, for all dimensions or each. Down by average pooling, up by repeating the nearest value."""


class Adapter(NamedTuple):
    """One input of a layer, and what happens to it on the way: pooling, then projection, then enlargement.

    Attributes:
        source: index of the step that it comes from.
        shape: as it arrives.
        pool_to: spatial sizes after average pooling; () makes a vector of a map. None: not pooled.
        project: input and output channels of a 1x1 convolution without bias. None: not projected.
        enlarge_to: spatial sizes after enlargement. None: not enlarged.
        n_parameters, multiply_adds: of the projection.
        n_values: numbers in all results on the way, which the backward pass may keep.
    """

    source: int
    shape: Shape
    pool_to: Shape | None = None
    project: tuple[int, int] | None = None
    enlarge_to: Shape | None = None
    n_parameters: int = 0
    multiply_adds: int = 0
    n_values: int = 0


def join_inputs(
    site: Site, sources: Sequence[int], shapes: Sequence[Shape], *, join: str, policy: SizePolicy
) -> tuple[tuple[Adapter, ...], Shape]:
    """The adapters of at least two inputs, and the shape that they have together.

    Where a vector meets a map, the map is averaged to a vector. For "add" and "mean" channels are projected to the
    widest among the inputs; for "concat" they add up.

    Raises:
        Infeasible: maps of different dimensions meet.
    """
    sizes = shapes[0][1:]
    channels = max(shape[0] for shape in shapes)
    if any(shape[1:] != sizes for shape in shapes) or not isinstance(policy, str):
        sizes = _common_sizes(site, [shape[1:] for shape in shapes], policy)
    adapters = tuple(
        _adapter(source, shape, shape[0] if join == "concat" else channels, sizes)
        for source, shape in zip(sources, shapes, strict=True)
    )
    if join == "concat":
        channels = sum(shape[0] for shape in shapes)
    return adapters, (channels, *sizes)


def _common_sizes(site: Site, sizes: Sequence[Shape], policy: SizePolicy) -> Shape:
    dims = {len(size) for size in sizes}
    if 0 in dims:
        return ()
    if len(dims) > 1:
        site.refuse(f"joins maps of different dimensions: {', '.join('x'.join(map(str, size)) for size in sizes)}")
    if policy == "smallest":
        return tuple(map(min, *sizes))
    if policy == "largest":
        return tuple(map(max, *sizes))
    fixed = (policy,) * len(sizes[0]) if isinstance(policy, int) else tuple(map(int, policy))
    if len(fixed) != len(sizes[0]):
        site.refuse(f"joins {len(sizes[0])}-D maps, but the fixed size is {'x'.join(map(str, fixed))}")
    return fixed


def _adapter(source: int, shape: Shape, channels: int, sizes: Shape) -> Adapter:
    given = shape[1:]
    if shape[0] == channels and given == sizes:
        return Adapter(source, shape)
    n_values = 0
    pool_to = enlarge_to = project = None
    n_parameters = multiply_adds = 0
    pooled = tuple(map(min, given, sizes)) if sizes else ()
    if pooled != given:
        pool_to = pooled
        n_values += shape[0] * prod(pooled)
    if shape[0] != channels:
        project = (shape[0], channels)
        n_parameters = shape[0] * channels
        multiply_adds = n_parameters * prod(pooled)
        n_values += channels * prod(pooled)
    if pooled != sizes:
        enlarge_to = sizes
        n_values += channels * prod(sizes)
    return Adapter(source, (channels, *sizes), pool_to, project, enlarge_to, n_parameters, multiply_adds, n_values)

"""The lines of a network's picture: lanes around the boxes, edges between them; where boxes stand is left to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nord_hpc.report.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# All lengths are inches.
LANE, JOIN_RADIUS, ARROW, CORNER = 0.13, 0.085, 0.07, 0.06


class Box(Protocol):
    """What stands at the ends of lines.

    Attributes:
        join: how several inputs become one; None for fewer than two.
        inputs: indices of the boxes that it reads.
        column: from the left.
        x, y: of the box's left side and middle.
        width: of the box.
    """

    join: str | None
    inputs: list[int]
    column: int
    x: float
    y: float

    @property
    def width(self) -> float: ...


@dataclass(frozen=True)
class Lane:
    """A line around the boxes, from one block to all that read it from more than one column away.

    Attributes:
        source: the block.
        targets: the blocks, by column.
        side: 1 above the boxes, -1 below.
        place: 0 is nearest to the boxes.
    """

    source: int
    targets: tuple[int, ...]
    side: int
    place: int


@dataclass(frozen=True)
class Tracks:
    """Where in the gaps between columns lines go up or down: apart from each other where their sources differ.

    Attributes:
        start: x of the vertical beside each lane's source, by the lane's index.
        end: x of the vertical before each target, by the lane's index and the target.
        turn: x of the verticals from each block to those in the next column.
    """

    start: Mapping[int, float]
    end: Mapping[tuple[int, int], float]
    turn: Mapping[int, float]


def lanes_of(blocks: Sequence[Box]) -> list[Lane]:
    """A lane for each block that is read from afar, so that no two lanes of a side and place overlap."""
    far: dict[int, list[int]] = {}
    for target, block in enumerate(blocks):
        for source in block.inputs:
            if block.column - blocks[source].column > 1:
                far.setdefault(source, []).append(target)
    lanes = []
    # The column up to which each place is taken: above, then below.
    taken: dict[int, list[int]] = {1: [], -1: []}
    spans = [(max(blocks[t].column for t in targets) - blocks[s].column, s, targets) for s, targets in far.items()]
    for span, source, targets in sorted(spans, key=lambda item: (blocks[item[1]].column, item[0], item[1])):
        start = blocks[source].column
        places = {}
        for side, ends in taken.items():
            places[side] = next((place for place, end in enumerate(ends) if end <= start), len(ends))
        side = 1 if places[1] <= places[-1] else -1
        place = places[side]
        if place == len(taken[side]):
            taken[side].append(0)
        taken[side][place] = start + span
        lanes.append(Lane(source, tuple(sorted(targets, key=lambda t: blocks[t].column)), side, place))
    return lanes


def draw_short_edges(
    axes: Axes, blocks: Sequence[Box], tracks: Tracks, *, faint: frozenset[tuple[int, int]] = frozenset()
) -> None:
    """The edges to the next column.

    Args:
        faint: those (source, target) that are drawn as of no effect.
    """
    for number, target in enumerate(blocks):
        for index in target.inputs:
            source = blocks[index]
            if target.column - source.column == 1:
                left, right = source.x + source.width, left_end(target)
                turn = tracks.turn[index]
                points = [(left, source.y), (turn, source.y), (turn, target.y), (right, target.y)]
                is_faint = (index, number) in faint
                draw_line(axes, points if source.y != target.y else [points[0], points[3]], faint=is_faint)
                draw_arrow(axes, right, target.y, faint=is_faint)


def draw_lane(
    axes: Axes,
    blocks: Sequence[Box],
    lane: Lane,
    index: int,
    tracks: Tracks,
    *,
    half: Mapping[int, float],
    faint: frozenset[tuple[int, int]] = frozenset(),
) -> None:
    """All edges of one lane.

    Args:
        half: by side, how far from y = 0 the boxes end.
        faint: see `draw_short_edges`.
    """
    source = blocks[lane.source]
    level = lane.side * (half[lane.side] + LANE * (lane.place + 0.5))
    left = tracks.start[index]
    for target_index in lane.targets:
        target = blocks[target_index]
        right, end = tracks.end[index, target_index], left_end(target)
        points = [
            (source.x + source.width, source.y),
            (left, source.y),
            (left, level),
            (right, level),
            (right, target.y),
            (end, target.y),
        ]
        is_faint = (lane.source, target_index) in faint
        draw_line(axes, points, faint=is_faint)
        draw_arrow(axes, end, target.y, faint=is_faint)


def draw_line(axes: Axes, points: list[tuple[float, float]], *, faint: bool = False) -> None:
    """A line through the points, its corners rounded."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
    colour, style = (COLOURS["rule"], "dashed") if faint else (COLOURS["muted"], "solid")
    axes.add_patch(
        PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.1, linestyle=style, zorder=0 if faint else 1)
    )


def draw_arrow(axes: Axes, x: float, y: float, *, faint: bool = False) -> None:
    """The head of an arrow that points to (x, y) from the left."""
    from matplotlib.patches import Polygon

    corners = [(x, y), (x - ARROW, y + 0.035), (x - ARROW, y - 0.035)]
    colour = COLOURS["rule" if faint else "muted"]
    axes.add_patch(Polygon(corners, closed=True, facecolor=colour, edgecolor="none", zorder=1 if faint else 2))


def left_end(box: Box) -> float:
    """x of the point where arrows end: the box, or the join before it."""
    return box.x - (2 * JOIN_RADIUS if box.join else 0)


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The point on the way from a corner to another point where the rounding ends."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = (dx * dx + dy * dy) ** 0.5
    share = min(CORNER, length / 2) / length if length else 0.0
    return corner[0] + share * dx, corner[1] + share * dy

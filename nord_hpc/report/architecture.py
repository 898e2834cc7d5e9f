"""A network drawn from the JSON form of its descriptor: blocks from left to right, joins, and skips as lanes around."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nord_hpc.report.edges import (
    ARROW,
    JOIN_RADIUS,
    LANE,
    Lane,
    Tracks,
    draw_arrow,
    draw_lane,
    draw_line,
    draw_short_edges,
    lanes_of,
)
from nord_hpc.report.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JOIN_SIGNS = {"add": "+", "mean": "ø", "concat": "‖"}
JOIN_WORDS = {"add": "inputs are added", "mean": "inputs are averaged", "concat": "inputs are concatenated"}

# All lengths are inches.
FONT_POINTS = 8
LINE, LETTER, PADDING = 0.155, 0.072, 0.1
GAP, TRACK, ROW_GAP, MARGIN = 0.34, 0.08, 0.22, 0.15
MOST_LETTERS, MOST_LINES = 26, 7


@dataclass
class Block:
    """Layers that follow one another and are drawn as one box.

    Attributes:
        layers: as in the descriptor.
        join: how several inputs become one; None for fewer than two.
        inputs: indices of the blocks that it reads.
        column: the most blocks on a way from the first one.
        x, y: of the box's left side and middle.
    """

    layers: list[Mapping[str, Any]]
    join: str | None
    inputs: list[int] = field(default_factory=list)
    column: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def lines(self) -> list[str]:
        texts = [short(layer_text(layer["kind"], layer["parameters"])) for layer in self.layers]
        if self.layers[0]["kind"] == "Identity" and not self.layers[0]["inputs"]:
            texts[0] = "input"
        return texts

    @property
    def width(self) -> float:
        return max(0.55, LETTER * max(map(len, self.lines)) + 2 * PADDING)

    @property
    def height(self) -> float:
        return LINE * len(self.layers) + 1.4 * PADDING


def architecture_figure(descriptor: Mapping[str, Any]) -> Figure:
    """The layers between the first and the last one, from left to right, as wide as it needs to be read.

    Args:
        descriptor: JSON form of a `NeuralDescriptor`.
    """
    blocks = blocks_of(descriptor)
    lanes = lanes_of(blocks)
    tracks, width = _place_columns(blocks, lanes)
    tops = [block.y + block.height / 2 for block in blocks]
    half = max(tops) + 0.12
    n_above, n_below = (max((lane.place + 1 for lane in lanes if lane.side == side), default=0) for side in (1, -1))
    joins = [join for join in JOIN_SIGNS if any(block.join == join for block in blocks)]
    notes = [f"{JOIN_SIGNS[join]} {JOIN_WORDS[join]}" for join in joins]
    n_unused = len(descriptor["layers"]) - sum(len(block.layers) for block in blocks)
    if n_unused:
        notes.append(f"{n_unused} layer{'s' * (n_unused > 1)} without effect not drawn")
    above, below = half + LANE * n_above + MARGIN, half + LANE * n_below + MARGIN + (0.2 if notes else 0)
    width = max(width, LETTER * len("   ".join(notes)) + 2 * MARGIN)
    figure = new_figure(width, above + below)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(-below, above))
    axes.axis("off")
    draw_short_edges(axes, blocks, tracks)
    for index, lane in enumerate(lanes):
        draw_lane(axes, blocks, lane, index, tracks, half={1: half, -1: half})
    for block in blocks:
        _draw_block(axes, block)
    _draw_head(axes, blocks)
    axes.text(
        MARGIN,
        0.06 - below,
        "   ".join(notes),
        fontsize=FONT_POINTS,
        color=COLOURS["muted"],
        va="bottom",
        parse_math=False,
    )
    return figure


def layer_text(kind: str, parameters: Mapping[str, Any]) -> str:
    """A layer in a few words: kind, sides of the window, output channels, and what else is set."""
    rest = {key: value for key, value in parameters.items() if key not in ("padding", "bias")}
    words = [kind.rpartition(":")[2]]
    kernel = rest.pop("kernel_size", None)
    if kernel is not None:
        sides = kernel if isinstance(kernel, list) else [kernel] * _dimensions(kind)
        words.append("\N{MULTIPLICATION SIGN}".join(map(str, sides)))
    facts = [str(rest.pop(key)) for key in ("out_channels", "out_features") if key in rest]
    if rest.get("stride") == (kernel if "Pool" in kind else 1):
        rest.pop("stride", None)
    facts += [f"{key} {value}" for key, value in rest.items()]
    return " ".join(words) + (" · " + ", ".join(facts) if facts else "")


def blocks_of(descriptor: Mapping[str, Any]) -> list[Block]:
    """The layers on ways from the first to the last, in topological order, light ones joined to the one they follow."""
    layers = {layer["name"]: layer for layer in descriptor["layers"]}
    order = _live_order(layers, first=descriptor["first"], last=descriptor["last"])
    live = set(order)
    inputs = {name: [source for source in layers[name]["inputs"] if source in live] for name in order}
    inputs[descriptor["first"]] = []
    n_readers = dict.fromkeys(order, 0)
    for sources in inputs.values():
        for source in sources:
            n_readers[source] += 1
    blocks: list[Block] = []
    block_of: dict[str, int] = {}
    for name in order:
        sources = inputs[name]
        if len(sources) == 1 and n_readers[sources[0]] == 1 and not is_heavy(layers[name]["kind"]):
            index = block_of[sources[0]]
            if len(blocks[index].layers) < MOST_LINES and not _is_input(blocks[index]):
                blocks[index].layers.append(layers[name])
                block_of[name] = index
                continue
        block_of[name] = len(blocks)
        reads = [block_of[source] for source in sources]
        column = 1 + max((blocks[index].column for index in reads), default=-1)
        join = layers[name]["join"] if len(sources) > 1 else None
        blocks.append(Block([layers[name]], join, reads, column))
    return blocks


def _dimensions(kind: str) -> int:
    return int(kind[-2]) if kind[-2:] in ("1d", "2d", "3d") else 1


def short(text: str, *, most: int = MOST_LETTERS) -> str:
    """The text, cut where it has more letters than that."""
    return text if len(text) <= most else text[: most - 1] + "…"


def is_heavy(kind: str) -> bool:
    """Whether a layer opens a box of its own: those with weights that mix channels, and custom ones."""
    return ":" in kind or any(word in kind for word in ("Conv", "Linear", "LSTM", "GRU", "RNN", "Attention"))


def _is_input(block: Block) -> bool:
    return block.layers[0]["kind"] == "Identity" and not block.layers[0]["inputs"]


def _live_order(layers: Mapping[str, Mapping[str, Any]], *, first: str, last: str) -> list[str]:
    """The layers on ways from first to last, each after its inputs, else in the descriptor's order."""
    backward = {last}
    open_names = [last]
    while open_names:
        name = open_names.pop()
        for source in layers[name]["inputs"] if name != first else ():
            if source not in backward:
                backward.add(source)
                open_names.append(source)
    readers: dict[str, list[str]] = {name: [] for name in layers}
    for name in layers:
        for source in layers[name]["inputs"]:
            readers[source].append(name)
    live = {first}
    open_names = [first]
    while open_names:
        for reader in readers[open_names.pop()]:
            if reader in backward and reader not in live:
                live.add(reader)
                open_names.append(reader)
    missing = {name: sum(source in live for source in layers[name]["inputs"]) for name in live if name != first}
    order, ready = [], [first]
    place = {name: k for k, name in enumerate(layers)}
    while ready:
        name = min(ready, key=place.__getitem__)
        ready.remove(name)
        order.append(name)
        for reader in readers[name]:
            if reader in missing:
                missing[reader] -= 1
                if not missing[reader]:
                    ready.append(reader)
    return order


def _place_columns(blocks: list[Block], lanes: list[Lane]) -> tuple[Tracks, float]:
    """Give each block its place; say where the lanes go up and down, and the width of the whole."""
    columns: list[list[int]] = [[] for _ in range(1 + max(block.column for block in blocks))]
    for index, block in enumerate(blocks):
        columns[block.column].append(index)
    start: dict[int, float] = {}
    end: dict[tuple[int, int], float] = {}
    turn: dict[int, float] = {}
    x = MARGIN
    for members in columns:
        # Before the boxes: one track for each lane that ends here, then the arrow and the join.
        ending = [(k, target) for k, lane in enumerate(lanes) for target in lane.targets if target in members]
        for track, key in enumerate(ending):
            end[key] = x + TRACK * track
        x += TRACK * len(ending) + ARROW + 2 * JOIN_RADIUS * any(blocks[index].join for index in members)
        members.sort(key=lambda index: (_mean(blocks[source].y for source in blocks[index].inputs), index))
        y = sum(blocks[index].height + ROW_GAP for index in members) / 2
        for index in reversed(members):
            block = blocks[index]
            block.x, block.y = x, y - (block.height + ROW_GAP) / 2
            y -= block.height + ROW_GAP
        x += max(blocks[index].width for index in members)
        starting = [k for k, lane in enumerate(lanes) if lane.source in members]
        for track, k in enumerate(starting):
            start[k] = x + TRACK * (track + 1)
        x += TRACK * len(starting) + GAP
        for rank, index in enumerate(members):
            turn[index] = x - GAP * (rank + 1) / (len(members) + 1)
    return Tracks(start, end, turn), x + 0.45


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return sum(collected) / len(collected) if collected else 0.0


def _draw_block(axes: Axes, block: Block) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

    top, left = block.y + block.height / 2, block.x
    colour = COLOURS[role(block.layers[0]["kind"])]
    axes.add_patch(
        FancyBboxPatch(
            (left, top - block.height),
            block.width,
            block.height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=COLOURS["panel"],
            edgecolor=COLOURS["rule"],
            linewidth=1,
            zorder=3,
        )
    )
    stripe = Rectangle((left + 0.03, top - block.height + 0.05), 0.03, block.height - 0.1, color=colour, lw=0, zorder=4)
    axes.add_patch(stripe)
    for number, text in enumerate(block.lines):
        axes.text(
            left + PADDING,
            top - 0.7 * PADDING - LINE * (number + 0.5),
            text,
            fontsize=FONT_POINTS,
            color=COLOURS["ink"] if number == 0 or "Pool" in text else COLOURS["muted"],
            va="center_baseline",
            parse_math=False,
            zorder=5,
        )
    if block.join:
        centre = (left - JOIN_RADIUS, block.y)
        axes.add_patch(
            Circle(centre, JOIN_RADIUS, facecolor=COLOURS["paper"], edgecolor=COLOURS["ink"], lw=1, zorder=4)
        )
        axes.text(
            *centre, JOIN_SIGNS[block.join], fontsize=FONT_POINTS, color=COLOURS["ink"], ha="center",
            va="center_baseline", zorder=5,
        )  # fmt: skip


def _draw_head(axes: Axes, blocks: list[Block]) -> None:
    """An arrow out of the last block, to the head that the builder puts there."""
    last = blocks[-1]
    left = last.x + last.width
    draw_line(axes, [(left, last.y), (left + 0.2, last.y)])
    draw_arrow(axes, left + 0.24, last.y)
    axes.text(left + 0.28, last.y, "head", fontsize=FONT_POINTS, color=COLOURS["muted"], va="center_baseline")


def role(kind: str) -> str:
    """The colour of a kind of layer, as `nord_hpc.report.figures` names it."""
    roles = {"Conv": "conv", "Linear": "dense", "Pool": "pool"}
    return next((role for word, role in roles.items() if word in kind), "other")

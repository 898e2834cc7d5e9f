"""Two pictures of a network in one layout: what was specified, and what was realized of it for one data set.

Boxes have one width, columns and rows one distance, and the order follows from the graph and not from names. So a layer
stands at the same place in both pictures of a network, and networks that begin alike look alike, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nord_hpc.builder.plan import NetworkPlan, Step
from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.report.architecture import JOIN_SIGNS, JOIN_WORDS, is_heavy, layer_text, role, short
from nord_hpc.report.edges import ARROW, JOIN_RADIUS, LANE, Lane, Tracks, draw_lane, draw_short_edges, lanes_of
from nord_hpc.report.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All lengths are inches.
FONT_POINTS = 7
LINE, LETTER, PADDING, MARGIN = 0.135, 0.063, 0.09, 0.15
WIDTH, GAP, ROW, TITLE = 1.65, 0.66, 1.42, 0.3
MOST_LAYERS, MOST_FITTED, MOST_LINES = 4, 2, 9
"""Layers of a box, inputs of it whose projection or scaling is told, and lines of text in it."""

MOST_LETTERS = int((WIDTH - 2 * PADDING) / LETTER)


@dataclass
class Cell:
    """Layers that follow one another and are drawn as one box.

    Attributes:
        layers: their names; those of the plan's head too.
        lines: texts and the roles of their colours.
        kind: of the first layer.
        dead: whether the layers have no effect on the output.
        join, inputs, column, x, y: see `nord_hpc.report.edges.Box`.
    """

    layers: list[str]
    kind: str
    dead: bool
    join: str | None
    inputs: list[int] = field(default_factory=list)
    column: int = 0
    lines: list[tuple[str, str]] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return WIDTH

    @property
    def height(self) -> float:
        return LINE * len(self.lines) + 1.4 * PADDING


def specification_figure(descriptor: NeuralDescriptor, *, title: str | None = None) -> Figure:
    """The layers and parameters as they are written, whether they have an effect or not.

    Descriptors that no network can be built from are drawn, too.
    """
    return _draw(_specification(descriptor, title))


def realization_figure(descriptor: NeuralDescriptor, plan: NetworkPlan, *, title: str | None = None) -> Figure:
    """What is built of a descriptor: inferred channels, projections, scaled inputs, clamped windows, shapes, the head.

    Layers without effect are grey. The places are those of `specification_figure`; the head is added on the right.

    Args:
        plan: of this descriptor.
    """
    return _draw(_realization(descriptor, plan, title))


def both_figure(descriptor: NeuralDescriptor, plan: NetworkPlan, *, title: str | None = None) -> Figure:
    """The specification and below it the realization, each layer below itself. See the functions for one of them."""
    before = f"{title}, " if title else ""
    specified = _specification(descriptor, f"{before}specification: {len(descriptor)} layers")
    return _draw(specified, _realization(descriptor, plan, f"{before}{_facts(plan)}"))


def _specification(descriptor: NeuralDescriptor, title: str | None) -> Drawing:
    cells = cells_of(descriptor)
    for cell in cells:
        cell.dead = False
        for name in cell.layers:
            layer = descriptor.layers[name]
            text = layer_text(layer.kind, layer.parameters)
            cell.lines += _wrapped(text, "muted" if cell.lines else "ink")
    return _laid_out(cells, title or f"specification: {len(descriptor)} layers", last=descriptor.last_layer)


def _realization(descriptor: NeuralDescriptor, plan: NetworkPlan, title: str | None) -> Drawing:
    cells = cells_of(descriptor)
    head = [step.layer for step in plan.steps if step.layer not in descriptor.layers]
    steps = {step.layer: step for step in plan.steps}
    place = {name: number for number, cell in enumerate(cells) for name in cell.layers}
    if head:
        before = place[plan.steps[len(plan.steps) - len(head) - 1].layer]
        column = max(cell.column for cell in cells) + 1
        cells.append(Cell(head, steps[head[0]].kind, False, None, [before], column))
    for cell in cells:
        if cell.dead:
            cell.lines = [(layer_text(layer.kind, {}), "muted") for layer in _layers(descriptor, cell)]
            cell.lines.append(("not built", "muted"))
        else:
            cell.lines = _realized_lines([steps[name] for name in cell.layers], plan)
    return _laid_out(cells, title or _facts(plan), last=None)


def _facts(plan: NetworkPlan) -> str:
    return (
        f"realization: {_sizes(plan.input_shape)} to {_sizes(plan.output_shape)}, {plan.n_parameters:,} parameters, "
        f"{plan.multiply_adds:,} multiply-adds, depth {plan.depth}"
    )


def cells_of(descriptor: NeuralDescriptor) -> list[Cell]:
    """All layers, those in use in canonical order and then the others; light layers with the one that they follow."""
    try:
        live = descriptor.canonical_order()
    except Infeasible:
        live = []
    order = [*live, *(name for name in descriptor.layers if name not in set(live))]
    n_readers = dict.fromkeys(descriptor.layers, 0)
    for source, _ in descriptor.connections:
        n_readers[source] += 1
    cells: list[Cell] = []
    place: dict[str, int] = {}
    alive = set(live) or set(descriptor.layers)
    for name in order:
        layer, sources = descriptor.layers[name], descriptor.inputs(name)
        dead = name not in alive
        if len(sources) == 1 and n_readers[sources[0]] == 1 and sources[0] in place and not is_heavy(layer.kind):
            cell = cells[place[sources[0]]]
            first = descriptor.layers[cell.layers[0]]
            is_end = first.kind in ("Identity", "Input") and not descriptor.inputs(cell.layers[0])
            if len(cell.layers) < MOST_LAYERS and cell.dead == dead and not is_end:
                cell.layers.append(name)
                place[name] = place[cell.layers[0]]
                continue
        place[name] = len(cells)
        cells.append(Cell([name], layer.kind, dead, layer.join if len(sources) > 1 else None))
    for cell in cells:
        cell.inputs = [place[source] for source in descriptor.inputs(cell.layers[0])]
    _set_columns(cells)
    return cells


def _set_columns(cells: Sequence[Cell]) -> None:
    """The most boxes on a way to each; where there is a cycle, connections that go back do not count."""
    state = [0] * len(cells)  # 0 not begun, 1 begun, 2 done
    for start in range(len(cells)):
        waiting = [start]
        while waiting:
            number = waiting[-1]
            state[number] = max(state[number], 1)
            open_ones = [source for source in cells[number].inputs if state[source] == 0]
            if open_ones:
                waiting.append(open_ones[0])
                continue
            waiting.pop()
            state[number] = 2
            cells[number].column = 1 + max(
                (cells[source].column for source in cells[number].inputs if state[source] == 2 and source != number),
                default=-1,
            )


def _layers(descriptor: NeuralDescriptor, cell: Cell) -> list[Layer]:
    return [descriptor.layers[name] for name in cell.layers]


def _realized_lines(steps: Sequence[Step], plan: NetworkPlan) -> list[tuple[str, str]]:
    """What is done to the inputs, the layers, and the shape and parameters that come out."""
    lines: list[tuple[str, str]] = []
    fitted = []
    for adapter in steps[0].inputs:
        given = plan.steps[adapter.source]
        changes = []
        if adapter.project is not None:
            changes.append(f"{adapter.project[0]}→{adapter.project[1]}")
        if adapter.pool_to is not None:
            changes.append(f"{_sizes(given.output_shape[1:])}↓{_sizes(adapter.pool_to) or '1'}")
        if adapter.enlarge_to is not None:
            changes.append(f"↑{_sizes(adapter.enlarge_to)}")
        if changes:
            fitted.append(f"{short(given.layer, most=8)}: {', '.join(changes)}")
    for text in fitted[:MOST_FITTED]:
        lines += _wrapped(text, "accent")
    if len(fitted) > MOST_FITTED:
        lines.append((f"and {len(fitted) - MOST_FITTED} more inputs fitted", "accent"))
    for number, step in enumerate(steps):
        lines += _wrapped(_realized_text(step), "muted" if number else "ink")
        if step.note is not None:
            lines += _wrapped(step.note.partition(", as")[0].replace(" clamped", ", clamped"), "accent")
    n_parameters = sum(step.n_parameters for step in steps)
    n_parameters += sum(adapter.n_parameters for step in steps for adapter in step.inputs)
    weights = f" · {n_parameters:,} par." if n_parameters else ""
    lines.append((f"{_sizes(steps[-1].output_shape)}{weights}", "ink"))
    return lines


def _realized_text(step: Step) -> str:
    """A layer with the channels that it has got, and without what follows from them."""
    words = [step.kind.rpartition(":")[2]]
    kernel = step.parameters.get("kernel_size")
    if kernel is not None:
        words.append(_sizes(kernel))
    if "Conv" in step.kind or step.kind == "Linear":
        n_inputs = step.parameters.get("in_features", step.input_shape[0])
        words.append(f"{n_inputs}→{step.output_shape[0]}")
    stride = step.parameters.get("stride")
    if stride is not None and tuple(stride) not in ((1,) * len(stride), tuple(kernel or ())):
        words.append(f"/{_sizes(stride)}")
    if "p" in step.parameters:
        words.append(f"{step.parameters['p']:g}")
    return " ".join(words)


def _sizes(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def _wrapped(text: str, of_text: str) -> list[tuple[str, str]]:
    """A text of several facts as lines that fit into a box."""
    first, *others = text.split(", ")
    lines = [first]
    for fact in others:
        if len(lines[-1]) + 2 + len(fact) < MOST_LETTERS:
            lines[-1] += f", {fact}"
        else:
            lines[-1] += ","
            lines.append(f"  {fact}")
    return [(line, of_text) for line in lines]


@dataclass(frozen=True)
class Drawing:
    """Boxes that have their places, and the size of what is drawn of them, in inches.

    Attributes:
        last: the layer whose output is the network's, to be marked.
        above, below: how far the picture reaches from y = 0.
    """

    cells: Sequence[Cell]
    lanes: Sequence[Lane]
    tracks: Tracks
    title: str
    notes: str
    last: str | None
    half: dict[int, float]
    width: float
    above: float
    below: float

    @property
    def height(self) -> float:
        return self.above + self.below


def _draw(*drawings: Drawing) -> Figure:
    """A figure of the drawings, one below the other; their columns stand below each other."""
    width, height = max(drawing.width for drawing in drawings), sum(drawing.height for drawing in drawings)
    figure = new_figure(width, height)
    bottom = height
    for drawing in drawings:
        bottom -= drawing.height
        axes = figure.add_axes((0, bottom / height, 1, drawing.height / height))
        axes.set(xlim=(0, width), ylim=(-drawing.below, drawing.above))
        axes.axis("off")
        _paint(axes, drawing)
    return figure


def _laid_out(cells: Sequence[Cell], title: str, *, last: str | None) -> Drawing:
    for cell in cells:
        if len(cell.lines) > MOST_LINES:
            cell.lines = [*cell.lines[: MOST_LINES - 2], ("…", "muted"), cell.lines[-1]]
    lanes = lanes_of(cells)
    tracks = _place(cells, lanes)
    # Whatever stands in the boxes: so the first box is as far from the upper edge in every picture with as many rows.
    half = {side: max(side * cell.y for cell in cells) + ROW / 2 for side in (1, -1)}
    n_above, n_below = (max((lane.place + 1 for lane in lanes if lane.side == side), default=0) for side in (1, -1))
    backwards = sum(cells[source].column >= cell.column for cell in cells for source in cell.inputs)
    notes = _notes(cells, backwards=backwards)
    return Drawing(
        cells=cells,
        lanes=lanes,
        tracks=tracks,
        title=title,
        notes=notes,
        last=last,
        half=half,
        width=max(
            2 * MARGIN + (WIDTH + GAP) * (1 + max(cell.column for cell in cells)),
            2 * MARGIN + 1.1 * LETTER * max(len(title), len(notes)),
        ),
        above=half[1] + LANE * n_above + MARGIN + TITLE,
        below=half[-1] + LANE * n_below + MARGIN + (0.2 if notes else 0),
    )


def _paint(axes: Axes, drawing: Drawing) -> None:
    cells, last = drawing.cells, drawing.last
    faint = frozenset(
        (source, target)
        for target, cell in enumerate(cells)
        for source in cell.inputs
        if cell.dead or cells[source].dead
    )
    draw_short_edges(axes, cells, drawing.tracks, faint=faint)
    for index, lane in enumerate(drawing.lanes):
        draw_lane(axes, cells, lane, index, drawing.tracks, half=drawing.half, faint=faint)
    for cell in cells:
        _draw_cell(axes, cell, is_last=last is not None and last in cell.layers)
    _write(axes, MARGIN, drawing.above - MARGIN, drawing.title, "ink", va="top", fontsize=FONT_POINTS + 1)
    _write(axes, MARGIN, 0.06 - drawing.below, drawing.notes, "muted", va="bottom")


def _place(cells: Sequence[Cell], lanes: Sequence[Lane]) -> Tracks:
    """Give each box its place on the grid, and lines theirs in the gaps: the first third, the middle, the last."""
    columns: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        columns.setdefault(cell.column, []).append(number)
    start: dict[int, float] = {}
    end: dict[tuple[int, int], float] = {}
    turn: dict[int, float] = {}
    lines = (GAP - 2 * JOIN_RADIUS - ARROW) / 3
    for column, members in columns.items():
        x = MARGIN + GAP + (WIDTH + GAP) * column - GAP / 2
        for rank, number in enumerate(members):
            cells[number].x = x
            cells[number].y = ROW * ((rank + 1) // 2) * (1 if rank % 2 else -1)
            turn[number] = x + WIDTH + lines * (1 + (rank + 1) / (len(members) + 1))
        starting = [index for index, lane in enumerate(lanes) if lane.source in members]
        for rank, index in enumerate(starting):
            start[index] = x + WIDTH + lines * (rank + 1) / (len(starting) + 1)
        ending = [(index, target) for index, lane in enumerate(lanes) for target in lane.targets if target in members]
        for rank, key in enumerate(ending):
            end[key] = x - 2 * JOIN_RADIUS - ARROW - lines * (1 - (rank + 1) / (len(ending) + 1))
    return Tracks(start, end, turn)


def _notes(cells: Sequence[Cell], *, backwards: int) -> str:
    joins = [join for join in JOIN_SIGNS if any(cell.join == join for cell in cells)]
    notes = [f"{JOIN_SIGNS[join]} {JOIN_WORDS[join]}" for join in joins]
    if any(cell.dead for cell in cells):
        notes.append("grey: without effect on the output")
    if backwards:
        notes.append(f"{backwards} connection{'s' * (backwards > 1)} that go back not drawn")
    return "   ".join(notes)


def _draw_cell(axes: Axes, cell: Cell, *, is_last: bool) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

    top, bottom = cell.y + cell.height / 2, cell.y - cell.height / 2
    panel, rule = COLOURS["panel"], COLOURS["rule"]
    box = FancyBboxPatch(
        (cell.x, bottom),
        WIDTH,
        cell.height,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor=COLOURS["paper"] if cell.dead else panel,
        edgecolor=COLOURS["muted"] if is_last else rule,
        linewidth=1.6 if is_last else 1,
        linestyle="dashed" if cell.dead else "solid",
        zorder=3,
    )
    axes.add_patch(box)
    colour = rule if cell.dead else COLOURS[role(cell.kind)]
    axes.add_patch(Rectangle((cell.x + 0.03, bottom + 0.05), 0.03, cell.height - 0.1, color=colour, lw=0, zorder=4))
    for number, (text, of_text) in enumerate(cell.lines):
        y = top - 0.7 * PADDING - LINE * (number + 0.5)
        _write(
            axes, cell.x + PADDING, y, short(text, most=MOST_LETTERS), of_text, va="center_baseline", faint=cell.dead
        )
    if cell.join:
        centre = (cell.x - JOIN_RADIUS, cell.y)
        edge = rule if cell.dead else COLOURS["ink"]
        axes.add_patch(Circle(centre, JOIN_RADIUS, facecolor=COLOURS["paper"], edgecolor=edge, lw=1, zorder=4))
        _write(axes, *centre, JOIN_SIGNS[cell.join], "ink", va="center_baseline", ha="center", faint=cell.dead)


def _write(axes: Axes, x: float, y: float, text: str, of_text: str, *, faint: bool = False, **how: Any) -> None:
    options: dict[str, Any] = {"fontsize": FONT_POINTS, "alpha": 0.55 if faint else 1.0, **how}
    axes.text(x, y, text, color=COLOURS[of_text], parse_math=False, zorder=5, **options)

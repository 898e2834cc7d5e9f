"""The best fitness so far, against trials and against time, as numbers and as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nord_hpc.report.figures import COLOURS, EITHER, new_figure
from nord_hpc.trial import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Against = Literal["trials", "time"]

# More points than this are drawn as pixels, which keeps the page small.
MOST_VECTOR_POINTS = 1500


class Point(NamedTuple):
    """One completed trial on the way of the search.

    Attributes:
        trial: its number.
        n_trials: trials that had completed or failed by then, this one included, in commit order.
        seconds: since the start of the search.
        fitness: its own.
        best: the best of all until then.
    """

    trial: int
    n_trials: int
    seconds: float
    fitness: float
    best: float


def best_so_far(rows: Iterable[Row], *, direction: str, against: Against) -> list[Point]:
    """The completed trials, in the order of commits or (against time) of their ends, with the best until each.

    Trials that have ended and are not committed come after those that are.
    """
    counted = [row for row in rows if row["state"] in (TrialState.COMPLETED, TrialState.FAILED)]
    counted.sort(key=_by_end if against == "time" else _by_commit)
    points: list[Point] = []
    for n_trials, row in enumerate(counted, 1):
        if row["fitness"] is None:
            continue
        fitness = float(row["fitness"])
        best = fitness
        if points:
            best = min(fitness, points[-1].best) if direction == "minimize" else max(fitness, points[-1].best)
        points.append(Point(row["number"], n_trials, row["finished_seconds"] or 0.0, fitness, best))
    return points


def best_so_far_figure(rows: Iterable[Row], *, direction: str, metric: str, against: Against) -> Figure:
    """A dot for each completed trial, and the best so far as steps.

    Args:
        rows: of all trials; see `nord_hpc.report.html.write_report`.
        direction: "maximize" or "minimize".
        metric: what fitness is, for the axis.
        against: "trials", or "time" in hours, or in minutes or seconds for short searches.
    """
    points = best_so_far(rows, direction=direction, against=against)
    figure = new_figure(5.6, 3.4)
    axes = figure.add_axes((0.13, 0.16, 0.84, 0.8))
    _dress(axes)
    axes.set_ylabel(f"validation {metric}", parse_math=False)
    if not points:
        axes.set_xlabel("trials" if against == "trials" else "hours")
        axes.text(0.5, 0.5, "no trial has completed yet", ha="center", color=COLOURS["muted"], transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return figure
    unit, divisor = ("trials", 1.0) if against == "trials" else time_unit(points[-1].seconds)
    axes.set_xlabel(unit)
    positions = [(point.n_trials if against == "trials" else point.seconds) / divisor for point in points]
    _draw(axes, positions, points)
    _scale(axes, positions, points, direction=direction)
    axes.locator_params(axis="x", integer=against == "trials")
    return figure


def time_unit(seconds: float) -> tuple[str, float]:
    """In what a span of time is best told, and how many seconds that is."""
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _by_commit(row: Row) -> tuple[bool, int, float, int]:
    commit = row["commit"]
    return (commit is None, 0 if commit is None else commit, row["finished_seconds"] or 0.0, row["number"])


def _by_end(row: Row) -> tuple[float, int]:
    return (row["finished_seconds"] or 0.0, row["number"])


def _draw(axes: Axes, positions: list[float], points: list[Point]) -> None:
    many = len(points) > MOST_VECTOR_POINTS
    axes.plot(
        positions,
        [point.fitness for point in points],
        linestyle="none",
        marker="o",
        markersize=2 if many else 4,
        markeredgewidth=0,
        alpha=0.4 if many else 0.75,
        color=EITHER if many else COLOURS["muted"],
        rasterized=many,
        label="trials",
    )
    steps = [k for k, point in enumerate(points) if k == 0 or point.best != points[k - 1].best]
    if steps[-1] != len(points) - 1:
        steps.append(len(points) - 1)
    axes.plot(
        [positions[k] for k in steps],
        [points[k].best for k in steps],
        drawstyle="steps-post",
        color=COLOURS["accent"],
        linewidth=2,
        solid_capstyle="round",
        label="best so far",
    )
    winner = next(k for k, point in enumerate(points) if point.best == points[-1].best)
    axes.plot(
        [positions[winner]],
        [points[winner].best],
        marker="o",
        markersize=7,
        color=COLOURS["accent"],
        markeredgecolor=COLOURS["paper"],
        linestyle="none",
        label=f"trial {points[winner].trial}: {points[winner].best:.4g}",
    )
    legend = axes.legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.85, borderpad=0.5)
    legend.get_frame().set(facecolor=COLOURS["paper"], edgecolor="none")
    for text in legend.get_texts():
        text.set_color(COLOURS["ink"])


def _scale(axes: Axes, positions: list[float], points: list[Point], *, direction: str) -> None:
    """Limits that show the better nine tenths of the trials and the whole of the curve; the rest is said, not shown."""
    values = sorted((point.fitness for point in points), reverse=direction == "minimize")
    worst = values[len(values) // 10]
    # The curve's own beginning may be off the scale: what matters is where it goes.
    best = points[-1].best
    margin = 0.08 * abs(best - worst) or 0.05 * abs(best) or 0.05
    low, high = sorted((worst, best))
    axes.set_ylim(low - margin, high + margin)
    last = positions[-1]
    axes.set_xlim(-0.02 * last if last else -1, 1.03 * last if last else 1)
    hidden = sum(not low - margin <= point.fitness <= high + margin for point in points)
    if hidden:
        side = "above" if direction == "minimize" else "below"
        axes.text(
            1.0,
            -0.105,
            f"{hidden} worse trial{'s' * (hidden > 1)} {side}",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color=COLOURS["muted"],
        )


def _dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOURS["muted"], labelsize=8.5, length=0)
    axes.xaxis.label.set(color=COLOURS["ink"], size=9.5)
    axes.yaxis.label.set(color=COLOURS["ink"], size=9.5)
    axes.ticklabel_format(axis="y", useOffset=False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["rule"])

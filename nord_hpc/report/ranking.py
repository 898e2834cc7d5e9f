"""How well cheap evaluations rank, against how much they save, as a figure; what was measured is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nord_hpc.report.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Ranking(NamedTuple):
    """One cheap evaluation.

    Attributes:
        tau: Kendall's, with its interval.
        speed_up: None for what costs nothing, such as the number of parameters.
    """

    name: str
    tau: float
    low: float
    high: float
    speed_up: float | None


def ranking_figure(rankings: Sequence[Ranking], *, note: str) -> Figure:
    """Kendall's tau with its interval against the speed-up; what costs nothing stands at the right edge.

    Args:
        note: stands below: the number of networks and the version.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.84))
    costly = [ranking.speed_up for ranking in rankings if ranking.speed_up is not None]
    free = 3.0 * max([1.0, *costly])
    ordered = sorted(rankings, key=lambda ranking: (ranking.speed_up or free, ranking.tau))
    for place, ranking in enumerate(ordered):
        x = free if ranking.speed_up is None else ranking.speed_up
        colour = COLOURS["muted"] if ranking.speed_up is None else COLOURS["accent"]
        axes.plot([x, x], [ranking.low, ranking.high], color=colour, linewidth=1.5)
        axes.plot([x], [ranking.tau], marker="o", color=colour)
        axes.annotate(
            ranking.name,
            (x, ranking.tau),
            xytext=(-6 if x == free else 6, -11 if place % 2 else 4),  # neighbours do not cover each other
            textcoords="offset points",
            ha="right" if x == free else "left",
            fontsize=8,
            color=COLOURS["ink"],
            parse_math=False,
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.axhline(0.0, color=COLOURS["rule"], linewidth=1)
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    axes.set_xlabel("speed-up over the full evaluation (grey: costs nothing)")
    axes.set_ylabel("Kendall's tau with the full evaluation")
    figure.text(0.99, 0.01, note, ha="right", va="bottom", fontsize=7, color=COLOURS["muted"], parse_math=False)
    return figure

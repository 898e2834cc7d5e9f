"""Curves of the incumbent over several seeds: the mean with its 95% interval, against trials and against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nord_hpc.report.curves import time_unit
from nord_hpc.report.figures import COLOURS, new_figure, save_figure
from nord_hpc.studies.incumbent import RunResult

POINTS = 60
RESAMPLES = 2000
FORMATS = ("png", "svg", "pdf")
AXES = ("trials", "seconds", "rank_seconds")

Floats = NDArray[np.float64]


def incumbent_at(result: RunResult, axis: str, at: Floats) -> Floats:
    """The best fitness at those points of an axis; NaN before the first result."""
    places = np.searchsorted(np.asarray(getattr(result, axis), dtype=np.float64), at, side="right") - 1
    values = np.asarray([*result.values, np.nan], dtype=np.float64)
    return np.where(places < 0, np.nan, values[places])


def mean_curve(results: Sequence[RunResult], axis: str, at: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and 95% bootstrap interval at those points; NaN where a search has no result yet."""
    values_RP = np.stack([incumbent_at(result, axis, at) for result in results])
    n = len(results)
    rng = np.random.Generator(np.random.PCG64(0))
    # Whole searches are drawn, so one draw serves all points.
    weights_BR = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    low, high = np.percentile(weights_BR @ values_RP, [2.5, 97.5], axis=0)
    return values_RP.mean(axis=0), low, high


def draw(
    curves: Mapping[str, Sequence[RunResult]],
    file: Path,
    *,
    axis: str,
    metric: str,
    scale: float,
    note: str,
    simulated: bool,
) -> list[Path]:
    """Write a figure of all variants in every format; returns the files.

    Args:
        file: its path without the end of the name.
        axis: one of `AXES`.
        note: stands below: the number of runs and the version.
        simulated: whether the time is virtual.
    """
    known = {name: results for name, results in curves.items() if results and all(r.values for r in results)}
    last = max((getattr(r, axis)[-1] for results in known.values() for r in results), default=1.0)
    first = min((getattr(r, axis)[0] for results in known.values() for r in results), default=1.0)
    at = np.unique(np.geomspace(max(first, last / 1000, 1e-6), max(last, 1e-5), POINTS))
    label, divisor = _label(axis, last, simulated=simulated)
    figure = new_figure(8.0, 5.0)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.84))
    for name, results in known.items():
        mean, low, high = mean_curve(results, axis, at)
        (line,) = axes.plot(at / divisor, scale * mean, label=f"{name} (n = {len(results)})")
        axes.fill_between(at / divisor, scale * low, scale * high, color=line.get_color(), alpha=0.2, linewidth=0)
    if at[-1] > 10 * at[0]:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel(f"best validation {metric} so far", parse_math=False)
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    if known:
        axes.legend(loc="best")
    figure.text(0.99, 0.01, note, ha="right", va="bottom", fontsize=7, color=COLOURS["muted"], parse_math=False)
    return [save_figure(figure, file.with_name(f"{file.name}.{suffix}")) for suffix in FORMATS]


def _label(axis: str, last: float, *, simulated: bool) -> tuple[str, float]:
    """What stands at the axis, and by what its values are divided."""
    kind = "simulated " if simulated else ""
    if axis == "trials":
        return "trials", 1.0
    if axis == "rank_seconds":
        return f"{kind}rank-hours", 3600.0
    if simulated:
        return "simulated seconds", 1.0
    unit, divisor = time_unit(last)
    return unit, divisor

"""Curves of the incumbent over several seeds: the mean with its 95% interval, against trials and against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nord_hpc.studies.incumbent import RunResult
from nord_hpc.studies.statistics import bootstrap_mean

POINTS = 60
FORMATS = ("png", "svg", "pdf")
AXES = {"trials": "trials", "seconds": "simulated seconds", "spent": "simulated seconds, summed over gangs"}

Floats = NDArray[np.float64]


def incumbent_at(result: RunResult, axis: str, at: Floats) -> Floats:
    """The best fitness at those points of an axis; NaN before the first result."""
    places = np.searchsorted(np.asarray(getattr(result, axis), dtype=np.float64), at, side="right") - 1
    values = np.asarray([*result.values, np.nan], dtype=np.float64)
    return np.where(places < 0, np.nan, values[places])


def mean_curve(results: Sequence[RunResult], axis: str, at: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and 95% bootstrap interval at those points; NaN where a search has no result yet."""
    values = np.stack([incumbent_at(result, axis, at) for result in results])
    mean, low, high = (np.full(len(at), np.nan) for _ in range(3))
    for place in np.flatnonzero(~np.isnan(values).any(axis=0)):
        mean[place] = values[:, place].mean()
        low[place], high[place] = bootstrap_mean(values[:, place])
    return mean, low, high


def draw(
    curves: Mapping[str, Sequence[RunResult]], folder: Path, *, axis: str, metric: str, scale: float, note: str
) -> list[Path]:
    """Write a figure of all variants in every format; returns the files.

    Args:
        note: stands below: the number of runs and the version.
    """
    from nord_hpc.report.figures import new_figure, save_figure

    last = max((max(getattr(r, axis), default=0.0) for results in curves.values() for r in results), default=1.0)
    at = np.unique(np.geomspace(max(1.0, last / 1000), max(last, 2.0), POINTS).round(3))
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    for name, results in curves.items():
        mean, low, high = mean_curve(results, axis, at)
        (line,) = axes.plot(at, scale * mean, label=f"{name} (n = {len(results)})")
        axes.fill_between(at, scale * low, scale * high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel(f"best {metric} so far")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.text(0.99, 0.005, note, ha="right", va="bottom", fontsize=7, color="gray")
    return [save_figure(figure, folder / f"incumbent_{axis}.{suffix}") for suffix in FORMATS]

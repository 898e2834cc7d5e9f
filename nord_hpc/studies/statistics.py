"""Comparisons of searches with the same seeds, and of rankings; what is compared is left to the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from nord_hpc.errors import BadInput

RESAMPLES = 10_000
LEVEL = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """How one method compares with another over the same seeds; larger values are better.

    Attributes:
        n: pairs.
        difference: mean of first - second.
        low, high: 95% bootstrap interval of that mean.
        p: of the Wilcoxon signed-rank test, two-sided; 1 where all pairs are equal.
        effect: matched-pairs rank-biserial correlation, -1 to 1 (Kerby 2014): the share of the rank sum in favour of
            the first, less that in favour of the second.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    effect: float


def compare_paired(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Paired:
    """Compare values that belong to the same seeds, in their order.

    Raises:
        ValueError: they are not equally many, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    low, high = bootstrap_mean(differences, seed=seed)
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return Paired(len(differences), 0.0, low, high, 1.0, 0.0)
    ranks = stats.rankdata(np.abs(nonzero))
    effect = float((ranks[nonzero > 0].sum() - ranks[nonzero < 0].sum()) / ranks.sum())
    p = float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
    return Paired(len(differences), float(differences.mean()), low, high, p, effect)


def bootstrap_mean(values: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean (Efron 1979)."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, 500):  # in parts, for memory
        picked = rng.integers(0, len(array), (500, len(array)))
        means[begin : begin + 500] = array[picked].mean(axis=1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for several comparisons (Holm 1979), in the same order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True, slots=True)
class Friedman:
    """Average ranks of methods over problems, 1 being best, and the test that they are all equal (Friedman 1937)."""

    average_ranks: list[float]
    p: float


def friedman(values_PM: Sequence[Sequence[float]], *, what: str = "problems") -> Friedman:
    """Rank methods over several problems; larger values are better.

    Args:
        values_PM: one row for each problem, one value for each method.
        what: the rows are. Seeds of one problem are not independent problems, and are refused.

    Raises:
        BadInput: fewer than 2 problems or 3 methods, or rows that are seeds.
    """
    if what == "seeds":
        raise BadInput("average ranks and Friedman's test need several problems: seeds of one problem are no problems")
    array = np.asarray(values_PM, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 3:
        raise BadInput(f"Friedman's test needs 2 problems and 3 methods or more, not {array.shape}")
    ranks = stats.rankdata(-array, axis=1)
    return Friedman(ranks.mean(axis=0).tolist(), float(stats.friedmanchisquare(*array.T).pvalue))


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """How well one ranking agrees with another: Kendall's tau-b and Spearman's rho, with 95% bootstrap intervals."""

    n: int
    tau: float
    tau_interval: tuple[float, float]
    rho: float
    rho_interval: tuple[float, float]


def rank_correlation(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 500
) -> RankCorrelation:
    """Compare two rankings of the same candidates; NaN where all of one ranking are equal."""
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    rng = np.random.Generator(np.random.PCG64(seed))
    picks = [rng.integers(0, len(x), len(x)) for _ in range(resamples)]
    resampled = [(_tau(x[picked], y[picked]), _rho(x[picked], y[picked])) for picked in picks]
    taus, rhos = zip(*resampled, strict=True)
    return RankCorrelation(len(x), _tau(x, y), _interval(taus), _rho(x, y), _interval(rhos))


def _tau(x: Floats, y: Floats) -> float:
    return float(stats.kendalltau(x, y).statistic) if _ranks(x, y) else float("nan")


def _rho(x: Floats, y: Floats) -> float:
    return float(stats.spearmanr(x, y).statistic) if _ranks(x, y) else float("nan")


def _ranks(x: Floats, y: Floats) -> bool:
    """Whether there is an order in both."""
    return len(x) > 1 and bool(np.ptp(x) and np.ptp(y))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if np.isfinite(value)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (float("nan"), float("nan"))
    return float(low), float(high)

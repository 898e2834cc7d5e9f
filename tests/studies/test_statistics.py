"""Statistics of comparisons, by value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from nord_hpc.errors import BadInput
from nord_hpc.studies import statistics
from nord_hpc.studies.statistics import bootstrap_mean, compare_paired, friedman, holm, rank_correlation


def test_paired_comparison_is_that_of_scipy() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    first, second = rng.normal(1.0, 1.0, 40), rng.normal(0.4, 1.0, 40)
    paired = compare_paired(first.tolist(), second.tolist())
    assert paired.p == pytest.approx(stats.wilcoxon(first - second).pvalue)
    assert paired.difference == pytest.approx((first - second).mean())
    assert paired.low < paired.difference < paired.high
    expected = stats.t.interval(0.95, 39, loc=paired.difference, scale=stats.sem(first - second))
    assert (paired.low, paired.high) == pytest.approx(expected, abs=0.05)


def test_effect_is_the_share_of_ranks() -> None:
    # Differences 1, 2, 3, -4: ranks 1 + 2 + 3 against 4.
    assert compare_paired([1, 2, 3, 0], [0, 0, 0, 4]).effect == pytest.approx((6 - 4) / 10)
    assert compare_paired([1.0, 2.0], [1.0, 2.0]) == statistics.Paired(2, 0.0, 0.0, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="3 and 2 values are no pairs"):
        compare_paired([1, 2, 3], [1, 2])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_method_against_its_own_copy_is_seldom_different() -> None:
    """Fresh seeds, 200 times: about one in twenty is called different, as the level says."""
    rng = np.random.Generator(np.random.PCG64(11))
    p_values = []
    for _ in range(200):
        accuracies = 91.2 - rng.gamma(2.0, 0.2, (2, 30))  # skewed, as best-of-a-search figures are
        p_values.append(stats.wilcoxon(accuracies[0] - accuracies[1]).pvalue)
        if len(p_values) % 20 == 0:
            assert compare_paired(*accuracies.tolist()).p == pytest.approx(p_values[-1])
    assert 0.02 <= np.mean(np.asarray(p_values) < 0.05) <= 0.08


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    covered = 0
    for seed in range(60):
        low, high = bootstrap_mean(rng.exponential(1.0, 40), seed=seed)
        covered += low <= 1.0 <= high
    assert 50 <= covered <= 60
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_average_ranks_over_problems_alone() -> None:
    values = [[0.9, 0.8, 0.7], [0.5, 0.4, 0.6], [0.9, 0.7, 0.6], [0.8, 0.6, 0.5]]
    found = friedman(values)
    assert found.average_ranks == pytest.approx([5 / 4, 9 / 4, 10 / 4])
    assert found.p == pytest.approx(stats.friedmanchisquare(*np.asarray(values).T).pvalue)
    with pytest.raises(BadInput, match="seeds of one problem are no problems"):
        friedman(values, what="seeds")
    with pytest.raises(BadInput, match="needs 2 problems and 3 methods"):
        friedman([[1.0, 2.0, 3.0]])


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    found = rank_correlation(x.tolist(), y.tolist())
    assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.tau_interval[0] < found.tau < found.tau_interval[1]
    assert 0 < found.rho_interval[0] < found.rho < found.rho_interval[1] < 1

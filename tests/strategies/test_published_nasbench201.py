"""The published search results on NAS-Bench-201: the same protocol gives the same figures.

Dong and Yang, "NAS-Bench-201", ICLR 2020 (arXiv 2001.00326), and Dong et al., "NATS-Bench" (arXiv 2009.00437):
CIFAR-10, 12,000 seconds of simulated time, validation accuracy after 12 epochs guides, the evaluation that would pass
the budget is dropped, figures are the means of 200 epochs, 500 runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nasbench201_example import needs_table
from published_searches import STRATEGIES, final_figures, in_processes, validation_of_each

PUBLISHED = {
    "random_search": ((90.93, 0.36), (93.70, 0.36), (0.10, 0.12)),
    "regularized_evolution": ((91.19, 0.31), (93.92, 0.30), (0.15, 0.20)),
    "reinforce": ((91.09, 0.37), (93.85, 0.37), (0.15, 0.20)),
    "reinforce_slow": ((91.09, 0.37), (93.85, 0.37), (0.15, 0.20)),
}
"""Mean and deviation in validation and in test, and how near the two means have to come."""

DEVIATION_FACTOR = 1.6

pytestmark = needs_table


def lower_bound(difference_N: Any) -> float:
    """Of the 95% interval of the mean of paired differences."""
    return float(difference_N.mean() - 1.96 * difference_N.std(ddof=1) / len(difference_N) ** 0.5)


def test_a_search_is_repeatable_and_stays_within_its_budget() -> None:
    first, again = final_figures("regularized_evolution", [3, 4]), final_figures("regularized_evolution", [4, 3])
    assert first == again[::-1]
    assert all(60 < n_trials < 200 for _, _, n_trials in first)
    assert all(80 < validation < 91.607 + 1e-9 for validation, _, _ in first)


def test_a_few_runs_are_near_the_published_means() -> None:
    """40 runs: within three standard errors of the mean and the bound of 500 runs."""
    for name in ("random_search", "regularized_evolution"):
        found = np.array(final_figures(name, range(40)))
        for column, (mean, deviation) in enumerate(PUBLISHED[name][:2]):
            bound = PUBLISHED[name][2][column] + 3 * deviation * DEVIATION_FACTOR / 40**0.5
            assert found[:, column].mean() == pytest.approx(mean, abs=bound), name


def test_reinforce_comes_to_good_cells() -> None:
    """The table's mean after 12 epochs is 68.9; the last hundred of a thousand evaluations are far above it."""
    scores = [validation_of_each("reinforce", seed, n_trials=1000) for seed in range(3)]
    early, late = (np.mean([run[begin : begin + 100] for run in scores]) for begin in (0, 900))
    assert early < 78
    assert late >= 80


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = in_processes(list(STRATEGIES), 500)
    with capsys.disabled():
        print("\nNAS-Bench-201, CIFAR-10, 12,000 s, 500 runs: validation, test, evaluations")
        for name, runs_N3 in found.items():
            mean, deviation = runs_N3.mean(axis=0), runs_N3.std(axis=0, ddof=1)
            figures = ", ".join(f"{mean[k]:.2f}±{deviation[k]:.2f}" for k in range(2))
            print(f"  {name:<22} {figures}, {mean[2]:.0f}")
    for name, (validation, test, bounds) in PUBLISHED.items():
        for column, (mean, deviation) in enumerate((validation, test)):
            values = found[name][:, column]
            assert values.mean() == pytest.approx(mean, abs=bounds[column]), (name, column)
            assert deviation / DEVIATION_FACTOR <= values.std(ddof=1) <= deviation * DEVIATION_FACTOR, (name, column)
    evolution = found["regularized_evolution"][:, 0]
    gain = evolution - found["random_search"][:, 0]
    assert gain.mean() >= 0.08
    assert lower_bound(gain) > 0
    assert lower_bound(found["local_search"][:, 0] - evolution) > -0.05
    assert lower_bound(found["local_search"][:, 1] - found["regularized_evolution"][:, 1]) > -0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reinforce_learns_over_twenty_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    late = np.mean([validation_of_each("reinforce", seed, n_trials=1000)[900:] for seed in range(20)])
    with capsys.disabled():
        print(f"\nREINFORCE, lr 0.1: mean 12-epoch validation accuracy of evaluations 901 to 1,000: {late:.2f}")
    assert late >= 80

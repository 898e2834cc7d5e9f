"""The best-so-far curve: its numbers in both directions and orders, and that the figure shows them."""

from __future__ import annotations

from typing import Any

import pytest

from nord_hpc.report.curves import best_so_far, best_so_far_figure, time_unit


def row(
    number: int, fitness: float | None, *, commit: int | None, end: float, state: str = "completed"
) -> dict[str, Any]:
    return {"number": number, "state": state, "fitness": fitness, "commit": commit, "finished_seconds": end}


ROWS = [
    row(0, 0.5, commit=1, end=30.0),
    row(1, 0.7, commit=0, end=10.0),
    row(2, None, commit=2, end=20.0, state="failed"),
    row(3, None, commit=3, end=1.0, state="infeasible"),
    row(4, 0.9, commit=None, end=5.0),
    row(5, 0.8, commit=4, end=40.0),
    row(6, None, commit=None, end=None, state="running"),  # type: ignore[arg-type]
]


def test_trials_are_counted_in_the_order_of_commits_and_failures_count() -> None:
    points = best_so_far(ROWS, direction="maximize", against="trials")
    assert [(p.trial, p.n_trials, p.fitness, p.best) for p in points] == [
        (1, 1, 0.7, 0.7),
        (0, 2, 0.5, 0.7),
        (5, 4, 0.8, 0.8),
        (4, 5, 0.9, 0.9),
    ]


def test_against_time_trials_are_in_the_order_of_their_ends() -> None:
    points = best_so_far(ROWS, direction="minimize", against="time")
    assert [(p.trial, p.seconds, p.best) for p in points] == [
        (4, 5.0, 0.9),
        (1, 10.0, 0.7),
        (0, 30.0, 0.5),
        (5, 40.0, 0.5),
    ]


@pytest.mark.parametrize(("seconds", "unit"), [(100, "seconds"), (600, "minutes"), (20_000, "hours")])
def test_time_is_told_in_a_unit_that_fits(seconds: float, unit: str) -> None:
    rows = [row(0, 0.5, commit=0, end=seconds / 2), row(1, 0.6, commit=1, end=seconds)]
    axes = best_so_far_figure(rows, direction="maximize", metric="accuracy", against="time").axes[0]
    assert axes.get_xlabel() == unit
    assert axes.lines[1].get_xdata()[-1] == pytest.approx(seconds / time_unit(seconds)[1])


@pytest.mark.parametrize(("direction", "best", "trial"), [("maximize", 0.9, 4), ("minimize", 0.5, 0)])
def test_the_figure_shows_dots_steps_and_the_winner(direction: str, best: float, trial: int) -> None:
    figure = best_so_far_figure(ROWS, direction=direction, metric="accuracy", against="trials")
    dots, steps, winner = figure.axes[0].lines
    assert list(dots.get_ydata()) == [0.7, 0.5, 0.8, 0.9]
    assert list(steps.get_ydata())[-1] == best
    assert list(winner.get_ydata()) == [best]
    assert winner.get_label() == f"trial {trial}: {best}"
    assert figure.axes[0].get_ylabel() == "validation accuracy"


def test_outliers_do_not_flatten_the_curve_and_are_told() -> None:
    rows = [row(k, 1e6 if k < 3 else 1.0 + 0.01 * k, commit=k, end=k) for k in range(60)]
    axes = best_so_far_figure(rows, direction="minimize", metric="loss", against="trials").axes[0]
    low, high = axes.get_ylim()
    assert low < 1.03 < high < 2
    assert [text.get_text() for text in axes.texts] == ["3 worse trials above"]


def test_without_a_completed_trial_the_figure_says_so() -> None:
    axes = best_so_far_figure(ROWS[2:4], direction="maximize", metric="accuracy", against="time").axes[0]
    assert [text.get_text() for text in axes.texts] == ["no trial has completed yet"]
    assert not axes.lines


def test_equal_fitness_from_the_first_trial_on_has_a_scale() -> None:
    rows = [row(k, 0.0, commit=k, end=0.0) for k in range(3)]
    axes = best_so_far_figure(rows, direction="maximize", metric="accuracy", against="time").axes[0]
    assert axes.get_ylim() == (-0.05, 0.05)

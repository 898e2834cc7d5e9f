"""Learning-rate schedules by value."""

from __future__ import annotations

import pytest

from nord_hpc.training.schedules import factor


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.8535533905932737, 0.5, 0.1464466094067262]),
    ],
)
def test_factors(name: str, expected: list[float]) -> None:
    assert [factor(name, step=step, n_steps=4) for step in range(4)] == pytest.approx(expected)

"""Scores as sums over samples: no average of averages."""

from __future__ import annotations

import example
import numpy as np
import pytest
import torch
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.errors import TrialFailed
from nord_hpc.training.data import Part
from nord_hpc.training.metrics import metrics_of
from nord_hpc.training.scoring import score
from nord_hpc.training.trainer import autocast_of


class Echo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def score_of(outputs: np.ndarray, targets: np.ndarray, *, batch_size: int) -> dict[str, float]:
    split = example.Split(outputs.astype(np.float32), targets)
    return score(
        Echo(),
        Part(split, example.Info(n_outputs=2), device=example.CPU),
        metrics=metrics_of("classification", n_outputs=2),
        batch_size=batch_size,
        autocast=autocast_of(example.CPU, "fp32"),
        data_parallel=SingleGang(),
        control=example.Free(),
        when="after epoch 2",
    )


def right(n: int, *, of: int) -> np.ndarray:
    return np.arange(of) >= n


def test_small_last_batch_does_not_count_more() -> None:
    # 50 of 100, 60 of 100 and 10 of 10 are right: 120 of 210, where the mean of the batches would be 0.7.
    wrong = np.concatenate([right(50, of=100), right(60, of=100), right(10, of=10)])
    targets = np.zeros(210, dtype=np.int64)
    values = score_of(np.eye(2)[wrong.astype(int)], targets, batch_size=100)
    assert values["accuracy"] == 120 / 210


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 210, 1000])
def test_size_of_batches_does_not_matter(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(211, 2)), rng.integers(0, 2, 211)
    expected = (outputs.argmax(1) == targets).sum() / 211
    assert score_of(outputs, targets, batch_size=batch_size)["accuracy"] == expected


def test_outputs_that_are_not_finite_are_counted() -> None:
    outputs = np.ones((9, 2))
    outputs[4, 0], outputs[7, 1] = np.nan, np.inf
    with pytest.raises(TrialFailed, match=r"^the outputs for 2 of 9 samples are not finite after epoch 2$") as caught:
        score_of(outputs, np.zeros(9, dtype=np.int64), batch_size=4)
    assert caught.value.kind == "not_finite"

"""The time of a forward pass."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nord_hpc.training import latency


class Sleeper(nn.Module):
    """Slow when it is called first, now and then very slow, and in between as slow as it is told."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.modes: list[bool] = []
        self.grads: list[bool] = []

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        n = len(self.modes)
        self.modes.append(self.training)
        self.grads.append(torch.is_grad_enabled())
        time.sleep(0.02 if n < latency.WARM_UP or n % 10 == 0 else self.seconds)
        return x_BC


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_median_after_warm_up_in_evaluation_mode(training: bool) -> None:
    network = Sleeper(0.003).train(training)
    measured = latency.latency_ms(network, torch.zeros(1, 3), autocast=nullcontext())
    assert 3.0 <= measured < 15.0
    assert len(network.modes) == 60 and not any(network.modes) and not any(network.grads)
    assert network.training is training

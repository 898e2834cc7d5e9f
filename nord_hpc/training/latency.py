"""How long a network takes for a batch on this rank's device. It is measured, so it is never twice the same."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager

import torch
from torch import nn

WARM_UP = 10
REPEATS = 50


def latency_ms(
    network: nn.Module, x_BC: torch.Tensor, *, autocast: AbstractContextManager[object], repeats: int = REPEATS
) -> float:
    """Milliseconds of a forward pass: the median of `repeats`, after some that do not count.

    The network is in evaluation mode meanwhile and in its own mode after that.

    Args:
        x_BC: a batch on the network's device; one sample, as a rule.
        autocast: the context of a forward pass.
    """
    was_training = network.training
    network.eval()
    seconds = []
    with torch.no_grad():
        for repeat in range(WARM_UP + repeats):
            _wait_for(x_BC.device)
            began = time.perf_counter()
            with autocast:
                network(x_BC)
            _wait_for(x_BC.device)
            if repeat >= WARM_UP:
                seconds.append(time.perf_counter() - began)
    network.train(was_training)
    return 1e3 * statistics.median(seconds)


def _wait_for(device: torch.device) -> None:
    """GPUs compute behind the caller's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""A small ensemble of neural networks that predicts a number with its uncertainty; in numpy, and repeatable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam; Kingma and Ba, arXiv 1412.6980."""


class Ensemble:
    """Dense networks with ReLU, each with initial weights and an order of the samples of its own, fitted when made.

    All are trained at once, as one product of stacks of matrices. Targets are standardized for the fit, and the loss is
    the mean absolute error, on which outliers pull no more than others.

    Args:
        x_NK: what is known of each sample.
        y_N: what is to be predicted.
        members: networks.
        hidden: widths of the hidden layers.
        epochs: passes over the samples.
        lr: learning rate of Adam at the start; it falls to zero along a line.
        batch: samples of a step.
        seed: of weights and orders.
    """

    def __init__(
        self,
        x_NK: Floats,
        y_N: Floats,
        *,
        members: int,
        hidden: Sequence[int],
        epochs: int,
        lr: float,
        batch: int,
        seed: int,
    ) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        n, width = x_NK.shape
        self._mean, self._deviation = float(y_N.mean()), float(y_N.std()) or 1.0
        target_N = (y_N - self._mean) / self._deviation
        widths = [width, *hidden, 1]
        self._parameters: list[Floats] = []
        for fan_in, fan_out in pairwise(widths):
            self._parameters.append(rng.normal(0, math.sqrt(2 / max(1, fan_in)), (members, fan_in, fan_out)))
            self._parameters.append(np.zeros((members, 1, fan_out)))
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self._parameters]
        n_batches = -(-n // batch)
        step, n_steps = 0, epochs * n_batches
        for _ in range(epochs):
            order_EN = rng.permuted(np.tile(np.arange(n), (members, 1)), axis=1)
            for start in range(0, n, batch):
                place_EB = order_EN[:, start : start + batch]
                gradients = self._gradients(x_NK[place_EB], target_N[place_EB])
                step += 1
                self._adam(gradients, moments, step=step, lr=lr * (1 - (step - 1) / n_steps))

    def predict(self, x_MK: Floats) -> tuple[Floats, Floats]:
        """Mean and deviation over the members, for each of M samples."""
        y_EM = self._forward(np.broadcast_to(x_MK, (len(self._parameters[0]), *x_MK.shape)))[-1][:, :, 0]
        y_EM = self._mean + self._deviation * y_EM
        return y_EM.mean(axis=0), y_EM.std(axis=0)

    def _forward(self, x_EBK: Floats) -> list[Floats]:
        """The input of each layer, and the output."""
        values = [x_EBK]
        last = len(self._parameters) - 2
        for place in range(0, last + 1, 2):
            weights, biases = self._parameters[place : place + 2]
            out = values[-1] @ weights + biases
            values.append(out if place == last else np.maximum(out, 0))
        return values

    def _gradients(self, x_EBK: Floats, target_EB: Floats) -> list[Floats]:
        values = self._forward(x_EBK)
        # Of the mean absolute error.
        slope_EBK = np.sign(values[-1] - target_EB[:, :, None]) / target_EB.shape[1]
        gradients: list[Floats] = []
        for place in reversed(range(0, len(self._parameters), 2)):
            inputs_EBK = values[place // 2]
            gradients = [inputs_EBK.swapaxes(1, 2) @ slope_EBK, slope_EBK.sum(axis=1, keepdims=True), *gradients]
            slope_EBK = (slope_EBK @ self._parameters[place].swapaxes(1, 2)) * (inputs_EBK > 0)
        return gradients

    def _adam(self, gradients: list[Floats], moments: list[tuple[Floats, Floats]], *, step: int, lr: float) -> None:
        size = lr * math.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
        for parameter, gradient, (first, second) in zip(self._parameters, gradients, moments, strict=True):
            first += (1 - BETA_1) * (gradient - first)
            second += (1 - BETA_2) * (gradient * gradient - second)
            parameter -= size * first / (np.sqrt(second) + EPSILON)

"""Which samples make which batch: sizes, steps and order, from integers and seeds alone, the same on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nord_hpc import seeding
from nord_hpc.errors import Infeasible

MIN_SHARD_SAMPLES = 2
"""Samples of a shard below which batch normalization is not defined."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The training batches of one trial.

    Attributes:
        n_samples: training samples of the trial, after its share of the data.
        batch: samples of a batch over all shards, a multiple of `shards`.
        shards: equal, consecutive parts of a batch.
        steps: batches of an epoch. The samples that fill no batch are left out; each epoch leaves out others.
    """

    n_samples: int
    batch: int
    shards: int
    steps: int

    @property
    def samples_used(self) -> int:
        """Samples that one epoch trains on, the same number on every rank of a gang."""
        return self.steps * self.batch

    def bounds(self, step: int, part: int, *, parts: int) -> slice:
        """Where in the epoch's order the samples of part `part` of `parts` equal parts of a batch stand."""
        size = self.batch // parts
        start = step * self.batch + part * size
        return slice(start, start + size)


def plan_batches(*, n_train: int, fraction: float, batch_size: int, shards: int) -> BatchPlan:
    """The batches of a trial that sees `fraction` of `n_train` samples.

    A last, incomplete batch is dropped. Where the samples do not fill one batch, the batch is the largest multiple of
    `shards` that they fill.

    Raises:
        Infeasible: a shard would have fewer than two samples.
    """
    n_samples = share(n_train, fraction)
    batch = batch_size if n_samples >= batch_size else n_samples - n_samples % shards
    if batch < MIN_SHARD_SAMPLES * shards:
        of = "" if n_samples == n_train else f" (fraction {fraction:g} of {n_train})"
        raise Infeasible(
            f"{n_samples} training samples{of} do not give each of {shards} shards {MIN_SHARD_SAMPLES} samples; set "
            f"resources.shards to at most {max(1, n_samples // MIN_SHARD_SAMPLES)}, or use more data"
        )
    return BatchPlan(n_samples=n_samples, batch=batch, shards=shards, steps=n_samples // batch)


def share(n_train: int, fraction: float) -> int:
    """Samples in a share of the training part; robust to fractions such as 0.1 that have no exact binary form."""
    return math.floor(n_train * fraction + 1e-6)


def subset(n_train: int, n_samples: int) -> npt.NDArray[np.int64]:
    """Indices of the samples of a share, [n_samples]: equal for all trials; a larger share holds the smaller."""
    if n_samples == n_train:
        return np.arange(n_train)
    return seeding.generator(0, "share").permutation(n_train)[:n_samples]


def epoch_order(indices_N: npt.NDArray[np.int64], *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which epoch `epoch` (from 1) of a trial visits its samples, [N]."""
    return seeding.generator(seed, "order", epoch).permutation(indices_N)


def stream_order(plan: BatchPlan, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Likewise for the windows of a sequence, [steps x batch]: each place in a batch reads a stream of its own.

    The streams are equal, consecutive parts of the sequence. The windows that fill no batch are left out before and
    behind them.
    """
    left_out = plan.n_samples - plan.samples_used
    start = int(seeding.generator(seed, "order", epoch).integers(left_out + 1))
    return start + np.arange(plan.samples_used).reshape(plan.batch, plan.steps).T.reshape(-1)


def noise_seed(base: int, *, epoch: int, step: int, part: int) -> int:
    """The seed of what is random inside the network in one part of one step; its low 32 bits are well mixed."""
    value = (base + 0x9E3779B97F4A7C15 * (epoch << 40 ^ step << 12 ^ part)) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 31) >> 1

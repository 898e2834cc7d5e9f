"""Sizes, steps, order and noise seeds of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nord_hpc.errors import Infeasible
from nord_hpc.training.batches import epoch_order, noise_seed, plan_batches, share, subset


@pytest.mark.parametrize(
    ("n_train", "batch_size", "shards", "batch", "steps", "used"),
    [
        (101, 10, 2, 10, 10, 100),
        (21, 10, 1, 10, 2, 20),
        (22, 6, 2, 6, 3, 18),
        (30, 64, 4, 28, 1, 28),  # less than a batch: the largest multiple of the shards
        (64, 64, 8, 64, 1, 64),
    ],
)
def test_sizes(n_train: int, batch_size: int, shards: int, batch: int, steps: int, used: int) -> None:
    plan = plan_batches(n_train=n_train, fraction=1.0, batch_size=batch_size, shards=shards)
    assert (plan.batch, plan.steps, plan.samples_used) == (batch, steps, used)


@given(st.integers(2, 500), st.integers(1, 8), st.integers(2, 20), st.floats(0.3, 1.0))
def test_parts_are_equal_and_disjoint(n_train: int, shards: int, per_shard: int, fraction: float) -> None:
    try:
        plan = plan_batches(n_train=n_train, fraction=fraction, batch_size=shards * per_shard, shards=shards)
    except Infeasible:
        assert share(n_train, fraction) < 2 * shards
        return
    order = np.arange(plan.n_samples)
    seen = [order[plan.bounds(step, part, parts=shards)] for step in range(plan.steps) for part in range(shards)]
    assert {len(part) for part in seen} == {plan.batch // shards}
    assert np.concatenate(seen).tolist() == list(range(plan.samples_used))


def test_too_few_samples_name_both_numbers() -> None:
    with pytest.raises(
        Infeasible, match=r"^3 training samples do not give each of 4 shards 2 samples; set .* at most 1"
    ):
        plan_batches(n_train=3, fraction=1.0, batch_size=8, shards=4)
    with pytest.raises(Infeasible, match=r"^10 training samples \(fraction 0.1 of 100\) do not .* 8 shards"):
        plan_batches(n_train=100, fraction=0.1, batch_size=16, shards=8)


def test_shares_without_binary_form() -> None:
    assert [share(n, 0.1) for n in (10, 30, 70, 1000, 60_000)] == [1, 3, 7, 100, 6000]
    assert share(10, 0.99) == 9


def test_larger_share_holds_the_smaller() -> None:
    small, large = set(subset(100, 20).tolist()), set(subset(100, 50).tolist())
    assert len(small) == 20
    assert small < large
    assert subset(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_order_follows_seed_and_epoch() -> None:
    samples = subset(50, 50)
    first = epoch_order(samples, seed=1, epoch=1)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() == epoch_order(samples, seed=1, epoch=1).tolist()
    assert first.tolist() != epoch_order(samples, seed=1, epoch=2).tolist()
    assert first.tolist() != epoch_order(samples, seed=2, epoch=1).tolist()


def test_noise_seeds_differ_in_their_low_bits() -> None:
    seeds = {
        noise_seed(12345, epoch=epoch, step=step, part=part) & 0xFFFFFFFF
        for epoch in range(1, 6)
        for step in range(100)
        for part in range(8)
    }
    assert len(seeds) == 4000
    assert 0 <= noise_seed(2**63 - 1, epoch=10**6, step=10**6, part=1000) < 2**63

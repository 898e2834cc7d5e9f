"""Training on gangs of real ranks: the result does not depend on the ranks, and nothing waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.data_parallel import available

SCRIPT = Path(__file__).with_name("gang_training_script.py")

pytestmark = pytest.mark.mpi

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["horovod", "torch_ddp"])
def ranks(request: pytest.FixtureRequest, run_ranks: Callable[..., Results]) -> Results:
    reason = available(request.param)
    if reason is not None:
        pytest.skip(reason)
    return run_ranks(SCRIPT, request.param, n=4)


@pytest.mark.parametrize("case", ["adam", "spare", "untrained", "part"])
def test_four_shards_train_alike_on_any_gang(ranks: Results, case: str) -> None:
    reference = ranks[0]["exact 1"][case]
    assert all(len(digest) == 64 for digest in reference["digests"])
    for seen in ranks:
        for size in (1, 2, 4):
            assert seen[f"exact {size}"][case] == reference


def test_training_learns(ranks: Results) -> None:
    adam = ranks[0]["exact 1"]["adam"]
    assert len(set(adam["digests"])) == 3
    assert adam["losses"][2] < adam["losses"][0]
    assert adam["metrics"][2]["accuracy"] > 0.8


def test_share_of_the_data(ranks: Results) -> None:
    part = ranks[0]["exact 1"]["part"]
    assert (part["steps"], part["samples_used"]) == (4, 48)  # half of 101 samples in batches of 12


def test_untrained_network_is_scored(ranks: Results) -> None:
    untrained = ranks[0]["exact 1"]["untrained"]
    assert (untrained["steps"], untrained["losses"]) == (0, [None])


def test_divergence_is_seen_by_all_members(ranks: Results) -> None:
    messages = {seen[f"exact {size}"]["diverged"] for seen in ranks for size in (1, 2, 4)}
    assert messages == {"TrialFailed: the training loss is not finite in epoch 1, step 2 of 8"}


def test_score_of_a_fixed_network_is_equal_to_the_last_bit(ranks: Results) -> None:
    reference = ranks[0]["scores 1"]
    assert 0 < reference["accuracy"] < 1
    assert reference["accuracy"] * 101 == pytest.approx(round(reference["accuracy"] * 101), abs=1e-9)
    for seen in ranks:
        for size in (1, 2, 4):
            assert seen[f"scores {size}"] == reference


def test_every_validation_sample_counts_once(ranks: Results) -> None:
    for seen in ranks:
        for size in (1, 2, 4):
            assert seen[f"five {size}"] == [[3.0, 3.0, 0.0], [0.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("case", "steps", "samples"), [("101 in batches of 10", 10, 100), ("22 in batches of 6", 3, 18)]
)
def test_incomplete_batch_is_dropped_by_all_members(ranks: Results, case: str, steps: int, samples: int) -> None:
    reference = ranks[0]["uneven 1"][case]
    assert (reference["steps"], reference["samples_used"]) == (2 * steps, samples)
    assert all(seen[f"uneven {size}"][case] == reference for seen in ranks for size in (1, 2))


def test_fewer_samples_than_shards_need(ranks: Results) -> None:
    for seen in ranks:
        assert seen["too few"].startswith("Infeasible: 3 training samples do not give each of 4 shards 2 samples")


def test_fast_reduction_agrees_within_the_gang(ranks: Results) -> None:
    digests = [seen["fast 2"]["digests"] for seen in ranks]
    assert all(digest == digests[0] for digest in digests)
    assert digests[0] != ranks[0]["fast 1"]["digests"]


def test_synchronized_batch_norm_is_that_of_the_whole_batch(ranks: Results) -> None:
    alone, plain, synchronized = (ranks[0][key] for key in ("fast 1", "fast 2", "synchronized 2"))
    assert ranks[0]["synchronized 1"] == alone
    assert synchronized["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert plain["losses"] != pytest.approx(alone["losses"], rel=1e-4)
    assert synchronized["weights"] == pytest.approx(alone["weights"], rel=1e-3, abs=1e-4)
    assert all(seen["synchronized 2"]["digests"] == synchronized["digests"] for seen in ranks)

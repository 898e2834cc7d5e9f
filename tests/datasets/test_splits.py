"""The choice of rows: counts by class, no overlap, the seed alone decides, whole groups."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nord_hpc.datasets.splits import carve, class_counts, share_of
from nord_hpc.errors import BadInput


def test_largest_remainders_give_the_whole_sum() -> None:
    # Exact shares 2.1, 3.3, 4.6: floors 2, 3, 4 lack one of round(10.0), which goes to the largest remainder.
    assert class_counts(np.array([21, 33, 46]), share=0.1).tolist() == [2, 3, 5]
    # Equal remainders: the lower classes first.
    assert class_counts(np.array([25, 25, 25, 25]), share=0.1).tolist() == [3, 3, 2, 2]


def test_a_class_of_two_is_on_both_sides_and_a_class_of_one_stays() -> None:
    assert class_counts(np.array([2, 1, 100]), share=0.1).tolist() == [1, 0, 9]
    assert class_counts(np.array([2, 2, 2]), share=0.9).tolist() == [1, 1, 1]
    assert class_counts(np.array([0, 4]), share=0.5).tolist() == [0, 2]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_counts_keep_their_bounds(sizes: list[int], share: float) -> None:
    n = np.array(sizes)
    counts = class_counts(n, share=share)
    assert (counts[n >= 2] >= 1).all() and (counts[n >= 2] <= n[n >= 2] - 1).all() and (counts[n < 2] == 0).all()
    possible = (int((n >= 2).sum()), int(np.maximum(n - 1, 0).sum()))
    assert counts.sum() == min(max(round(int(n.sum()) * share), possible[0]), possible[1])


@given(st.lists(st.integers(0, 3), min_size=8, max_size=80), st.floats(0.05, 0.9), st.integers(0, 5))
def test_a_carving_divides_all_rows(labels: list[int], share: float, seed: int) -> None:
    y = np.array(labels)
    kept, carved = carve(len(y), share=share, seed=seed, purpose="validation", labels=y)
    assert sorted([*kept, *carved]) == list(range(len(y)))
    assert (np.diff(kept) > 0).all() and (np.diff(carved) > 0).all()
    counts = class_counts(np.bincount(y), share=share)
    assert np.bincount(y[carved], minlength=len(counts)).tolist() == counts.tolist()


def test_seed_and_purpose_decide() -> None:
    y = np.arange(200) % 4

    def carved(*, seed: int, purpose: str) -> list[int]:
        return carve(200, share=0.25, seed=seed, purpose=purpose, labels=y)[1].tolist()

    assert carved(seed=1, purpose="validation") == carved(seed=1, purpose="validation")
    assert carved(seed=1, purpose="validation") != carved(seed=2, purpose="validation")
    assert carved(seed=1, purpose="validation") != carved(seed=1, purpose="test")
    # The very rows: a change would silently give every job another split.
    assert carved(seed=0, purpose="validation")[:8] == [1, 6, 8, 11, 16, 17, 18, 25]


def test_without_labels_the_count_is_rounded_and_bounded() -> None:
    kept, carved = carve(10, share=0.26, seed=0, purpose="validation")
    assert (len(kept), len(carved)) == (7, 3)
    assert len(carve(3, share=0.01, seed=0, purpose="validation")[1]) == 1
    assert len(carve(3, share=0.99, seed=0, purpose="validation")[0]) == 1
    with pytest.raises(BadInput, match="1 sample is too few to carve out a validation part; give 2 or more"):
        carve(1, share=0.5, seed=0, purpose="validation")


def test_whole_groups_are_carved_out() -> None:
    groups = np.repeat([7, 3, 9, 5, 1], [10, 20, 5, 40, 1])
    kept, carved = carve(76, share=0.4, seed=3, purpose="validation", labels=np.zeros(76, int), groups=groups)
    assert len(set(groups[carved])) == 2 and not set(groups[kept]) & set(groups[carved])
    with pytest.raises(BadInput, match="carved out by whole groups, and there is only 1; give more"):
        carve(4, share=0.5, seed=0, purpose="validation", groups=np.zeros(4))


def test_no_class_of_two_is_refused() -> None:
    with pytest.raises(BadInput, match="no class has 2 samples, so no validation part can be carved out"):
        carve(3, share=0.5, seed=0, purpose="validation", labels=np.arange(3))


def test_a_share_is_stratified_and_a_part_of_a_larger_one() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 10])
    small, large = share_of(160, share=0.1, seed=0, labels=y), share_of(160, share=0.5, seed=0, labels=y)
    assert np.bincount(y[small]).tolist() == [10, 5, 1] and np.bincount(y[large]).tolist() == [50, 25, 5]
    assert set(small) < set(large)
    assert np.bincount(y[share_of(160, share=0.001, seed=0, labels=y)]).tolist() == [1, 1, 1]
    assert share_of(5, share=1.0, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert len(share_of(100, share=0.3, seed=0)) == 30


def test_two_processes_with_other_hash_seeds_choose_the_same() -> None:
    script = (
        "import numpy as np\nfrom nord_hpc.datasets.splits import carve, share_of\n"
        "y = np.arange(500) % 7\n"
        "print(carve(500, share=0.2, seed=4, purpose='validation', labels=y)[1].tolist(), "
        "share_of(500, share=0.3, seed=4, labels=y).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1

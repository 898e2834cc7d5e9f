"""Parts of networks: credit, who leaves, and groups of modules."""

from __future__ import annotations

import json
from typing import Any

from nord_hpc.strategies.parts import Parts


def apart(first: Any, second: Any) -> float:
    return float(abs(first - second))


def filled(members: list[tuple[float, float, int]], *, capacity: int, n_groups: int = 1) -> Parts:
    """Parts of these genotypes, scores and groups."""
    parts = Parts(capacity=capacity, n_groups=n_groups)
    for number, (genotype, score, group) in enumerate(members):
        parts.credit(None, genotype, group=group, trial=number, score=score)
    return parts


def genotypes(parts: Parts) -> list[list[float]]:
    return [[part.genotype for part in group] for group in parts.groups]


def test_a_part_has_the_mean_of_its_networks() -> None:
    parts = filled([(1.0, 0.5, 0), (2.0, 0.9, 0)], capacity=3)
    parts.credit(0, 1.0, group=0, trial=7, score=0.2)
    parts.credit(None, 1.0, group=0, trial=8, score=0.8)  # new, but equal to one that lives
    first = parts.groups[0][0]
    assert (first.mean, first.count, first.trial) == (0.5, 3, 0)
    parts.credit(9, 5.0, group=0, trial=9, score=1.0)  # dead by now
    assert genotypes(parts) == [[1.0, 2.0]]


def test_the_lowest_mean_leaves_and_of_equal_ones_the_oldest() -> None:
    parts = filled([(1.0, 0.5, 0), (2.0, 0.3, 0), (3.0, 0.3, 0), (4.0, 0.9, 0)], capacity=3)
    assert genotypes(parts) == [[1.0, 3.0, 4.0]]


def test_groups_share_their_fitness_and_keep_their_last_part() -> None:
    # Fitness 1.0, 0.9 and 0.8 divided by 3 is more than 0.2, but that part is the last of its group.
    parts = filled([(1.0, 1.0, 0), (2.0, 0.9, 0), (3.0, 0.8, 0), (4.0, 0.2, 1)], capacity=4, n_groups=2)
    parts.credit(None, 5.0, group=0, trial=4, score=0.85)
    assert genotypes(parts) == [[1.0, 2.0, 5.0], [4.0]]
    # 0.2 / 2 of number 4 is less than 0.85 / 3.
    parts.credit(None, 6.0, group=1, trial=5, score=0.95)
    assert genotypes(parts) == [[1.0, 2.0, 5.0], [6.0]]


def test_parts_join_the_group_of_the_nearest_best_one() -> None:
    members = [(0.0, 0.9, 0), (9.0, 0.1, 0), (10.0, 0.8, 1), (1.0, 0.2, 1), (5.0, 0.3, 1), (10.0001, 0.7, 2)]
    parts = filled(members, capacity=9, n_groups=4)
    parts.regroup(apart)
    assert genotypes(parts) == [[0.0, 1.0, 5.0], [9.0, 10.0], [10.0001], []]


def test_they_survive_json() -> None:
    parts = filled([(1.0, 0.5, 0), (2.0, 0.3, 1)], capacity=5, n_groups=2)
    other = Parts(capacity=5, n_groups=2)
    other.load_state_dict(json.loads(json.dumps(parts.state_dict())))
    assert other.groups == parts.groups
    other.credit(None, 3.0, group=1, trial=2, score=0.4)
    assert other.groups[1][1].key == 2

"""Species: who joins which, the threshold, and what is kept of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from nord_hpc.strategies.species import Member, Speciation


def apart(first: Any, second: Any) -> float:
    return float(abs(first - second))


def grouped(members: list[Member], *, target: int = 3, threshold: float | None = 1.0) -> Speciation:
    groups = Speciation(apart, target=target, threshold=threshold)
    for now, member in enumerate(members):
        groups.place(member, now=now)
    return groups


def numbers(groups: Speciation) -> list[list[int]]:
    return [[member[1] for member in species.members] for species in groups.species]


def test_members_join_the_first_species_within_the_threshold() -> None:
    groups = grouped([(0.1, 0, 0.0), (0.5, 1, 5.0), (0.2, 2, 1.0), (0.3, 3, 3.9), (0.9, 4, 4.4), (0.4, 5, -0.5)])
    assert numbers(groups) == [[0, 2, 5], [1, 4], [3]]
    assert [species.representative for species in groups.species] == [0.0, 5.0, 3.9]
    assert [(species.best, species.improved_at) for species in groups.species] == [(0.4, 5), (0.9, 4), (0.3, 3)]
    assert groups.n_members == 6


def test_a_regrouping_compares_with_the_best_and_drops_empty_species() -> None:
    groups = grouped([(0.1, 0, 0.0), (0.9, 1, 1.0), (0.5, 2, 5.0)], target=2)
    groups.regroup([(0.9, 1, 1.0), (0.2, 7, 2.0), (0.2, 8, -0.5)], now=9)
    assert numbers(groups) == [[1, 7], [8]]
    assert [species.number for species in groups.species] == [0, 2], "numbers are not used again"
    assert [species.representative for species in groups.species] == [1.0, -0.5]


@pytest.mark.parametrize(("target", "factor"), [(1, 1.1), (2, 1.0), (5, 1 / 1.1)])
def test_the_threshold_follows_the_number_of_species(target: int, factor: float) -> None:
    members: list[Member] = [(0.1, 0, 0.0), (0.9, 1, 5.0)]
    groups = grouped(members, target=target)
    groups.regroup(members, now=2)
    assert groups.threshold == pytest.approx(factor)


@pytest.mark.parametrize("target", [2, 4, 7])
def test_a_first_threshold_makes_as_many_species_as_are_wanted(target: int) -> None:
    rng = np.random.Generator(np.random.PCG64(target))
    members: list[Member] = [(0.5, number, float(place)) for number, place in enumerate(rng.random(60))]
    groups = grouped(members, target=target, threshold=None)
    assert len(groups.species) == 1, "there is one until the first regrouping"
    groups.regroup(members, now=60)
    assert abs(len(groups.species) - target) <= 1
    for species in groups.species:
        assert groups.threshold is not None
        assert all(apart(species.representative, place) <= groups.threshold for _, _, place in species.members)


def test_equal_members_are_one_species() -> None:
    members: list[Member] = [(0.5, number, 1.0) for number in range(4)]
    groups = grouped(members, threshold=None)
    groups.regroup(members, now=4)
    assert numbers(groups) == [[0, 1, 2, 3]] and groups.threshold == 0


def test_species_end_with_their_last_member_and_survive_json() -> None:
    groups = grouped([(0.1, 0, 0.0), (0.5, 1, 5.0), (0.2, 2, 1.0)])
    groups.remove(groups.species[1], groups.species[1].members[0])
    assert numbers(groups) == [[0, 2]]
    other = Speciation(apart, target=3, threshold=None)
    other.load_state_dict(json.loads(json.dumps(groups.state_dict())))
    assert other.species == groups.species and other.threshold == 1.0
    other.place((0.7, 9, 9.0), now=4)
    assert [species.number for species in other.species] == [0, 2]

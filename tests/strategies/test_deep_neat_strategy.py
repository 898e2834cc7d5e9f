"""DeepNEAT: the conformance suite on spaces with a distance, shared fitness, parents, steady state and generations."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.strategy_cost import early_and_late_seconds
from conformance.strategy_suite import FULL, Driver, SinglePoint, StrategySuite, ToySpace, finish, schedule
from pydantic import ValidationError

from nord_hpc.interfaces import Wait
from nord_hpc.strategies.deep_neat import DeepNeat
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.trial import Proposal, TrialState


class Words(ToySpace):
    """Words whose distance is the share of letters that differ."""

    def distance(self, first: Any, second: Any) -> float:
        return sum(a != b for a, b in zip(first, second, strict=True)) / len(first)


class SingleWord(SinglePoint):
    def distance(self, first: Any, second: Any) -> float:
        return float(first != second)


class TestDeepNeat(StrategySuite):
    name = "deep_neat"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "steady": {"population": 16, "species": 3, "interspecies": 0.2, "stagnation": 2},
        "generations": {"population": 12, "generational": True, "threshold": 0.4},
    }
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"nasbench101": {"vertices": 4}}

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        driver = Driver(self.make(variant, SingleWord()))
        for event in schedule(8, 300):
            driver.step(event)
        assert {str(proposal.genotype) for proposal in driver.proposals} == {str([0] * 12)}

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        found = [self._best(self.make(variant, Words(), seed=seed), 200) for seed in range(12)]
        options = RandomSearch.Options()
        random = [
            self._best(RandomSearch(options, space=Words(), seed=seed, full_fidelity=FULL), 200) for seed in range(12)
        ]
        assert np.mean(found) > np.mean(random) + 0.1
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 10


@pytest.mark.slow
class TestDeepNeatOnItsOwnSpace(TestDeepNeat):
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"deep_neat": {}}


class Line(Words):
    """Numbers, whose operators do nothing, so that parents can be seen in their children."""

    def sample(self, rng: Any) -> Any:
        return [0.0]

    def mutate(self, genotype: Any, rng: Any) -> Any:
        return [*genotype, "mutated"]

    def crossover(self, first: Any, second: Any, rng: Any) -> Any:
        return [first, second, "crossed"]

    def distance(self, first: Any, second: Any) -> float:
        return float(abs(first[0] - second[0]))


def evolved(members: list[tuple[float, float]], **options: Any) -> DeepNeat:
    """A strategy with members of these scores at these places, in order; places up to 1 apart are one species."""
    given = DeepNeat.Options.model_validate({"population": max(2, len(members)), "threshold": 1.0, **options})
    strategy = DeepNeat(given, space=Line(), seed=0, full_fidelity=FULL)
    for number, (score, place) in enumerate(members):
        strategy.tell(finish(Proposal([place]), number, TrialState.COMPLETED, score))
    return strategy


def species_of(strategy: DeepNeat) -> list[list[int]]:
    return [[number for _, number, _ in s["members"]] for s in strategy.state_dict()["groups"]["species"]]


def test_species_stand_in_the_state() -> None:
    strategy = evolved([(0.5, 0.0), (0.4, 9.0), (0.3, 0.5), (0.2, 9.9)], population=5)
    assert species_of(strategy) == [[0, 2], [1, 3]]


def test_fitness_is_shared_when_somebody_has_to_leave() -> None:
    # Fitness from 0.2 to 1: 0.2 of number 3, alone; 0.36 of number 2, one of three: 0.12.
    strategy = evolved([(0.9, 0.0), (0.7, 0.1), (0.3, 0.2), (0.1, 9.0)], population=4, species=2)
    strategy.tell(finish(Proposal([0.3]), 4, TrialState.COMPLETED, 0.8))
    assert species_of(strategy) == [[0, 1, 4], [3]]
    # One species alone: the worst leaves, of equal ones the oldest.
    strategy = evolved([(0.2, 0.0), (0.2, 0.1), (0.9, 0.2)], population=3)
    strategy.tell(finish(Proposal([0.3]), 3, TrialState.COMPLETED, 0.8))
    assert species_of(strategy) == [[1, 2, 3]]


def test_species_breed_by_the_sum_of_their_shared_fitness() -> None:
    # Fitness 1.0 and 0.6 in the first species, on average 0.8; 0.2 in the second one.
    strategy = evolved([(0.9, 0.0), (0.5, 0.1), (0.1, 9.0)], survival=0.01, crossover=0.0)
    counts = Counter(strategy.ask(number).parents for number in range(3, 3003))  # type: ignore[union-attr]
    assert set(counts) == {(0,), (2,)}
    assert abs(counts[(0,)] - 2400) < 4 * np.sqrt(3000 * 0.16)


def test_parents_are_the_best_of_one_species_and_the_better_one_comes_first() -> None:
    strategy = evolved(
        [(0.5, 0.0), (0.9, 0.1), (0.1, 0.2), (0.8, 9.0), (0.7, 9.1), (0.2, 9.2)],
        survival=0.6, crossover=1.0, interspecies=0.0, mutation=0.0,
    )  # fmt: skip
    proposals: list[Any] = [strategy.ask(number) for number in range(6, 206)]
    assert {proposal.parents for proposal in proposals} == {(1, 0), (3, 4)}
    assert all(proposal.genotype[-1] == "crossed" for proposal in proposals)


def test_now_and_then_the_second_parent_is_of_another_species() -> None:
    strategy = evolved([(0.9, 0.0), (0.8, 0.1), (0.7, 9.0), (0.6, 9.1)], survival=1.0, crossover=1.0, interspecies=0.25)
    mixed = sum(
        len({number < 2 for number in strategy.ask(k).parents}) == 2  # type: ignore[union-attr]
        for k in range(4, 2004)
    )
    assert abs(mixed - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_species_that_does_not_improve_dies_out_unless_it_holds_the_best() -> None:
    strategy = evolved([(0.9, 0.0), (0.8, 20.0)], population=4, species=3, stagnation=2)

    def alive() -> list[int]:
        return [species["number"] for species in strategy.state_dict()["groups"]["species"]]

    for number in range(2, 10):  # the first two improved last when 1 and 2 were complete
        strategy.tell(finish(Proposal([40.0]), number, TrialState.COMPLETED, 0.1 + number / 100))
        assert alive() == [0, 1, 2]
    strategy.tell(finish(Proposal([40.0]), 10, TrialState.COMPLETED, 0.2))
    assert alive() == [0, 2]


def test_children_that_equal_a_parent_are_mutated() -> None:
    strategy = evolved([(0.9, 0.0), (0.8, 0.1)], crossover=0.0, mutation=0.0)
    child: Any = strategy.ask(2)
    assert child.genotype[-1] == "mutated" and len(child.parents) == 1


def test_a_generation_replaces_its_parents_but_for_champions() -> None:
    strategy = evolved([], population=7, generational=True, species=2)
    proposals: dict[int, Any] = {number: strategy.ask(number) for number in range(7)}
    for number in range(6):
        strategy.tell(finish(Proposal([0.0]), number, TrialState.COMPLETED, number / 10))
    assert isinstance(strategy.ask(7), Wait)
    strategy.tell(finish(proposals[6], 6, TrialState.FAILED, None))
    children: dict[int, Any] = {number: strategy.ask(number) for number in range(7, 14)}
    assert species_of(strategy) == [[0, 1, 2, 3, 4, 5]]
    assert all(set(child.parents) <= set(range(6)) for child in children.values())
    for number in children:
        strategy.tell(finish(Proposal([9.0 * (number > 9)]), number, TrialState.COMPLETED, 0.2))
    assert isinstance(strategy.ask(14), Proposal)
    assert species_of(strategy) == [[5, 7, 8, 9], [10, 11, 12, 13]]


def test_a_generation_in_which_nothing_completes_leaves_the_parents() -> None:
    strategy = evolved([(0.5, 0.0), (0.4, 0.1)], population=2, generational=True)
    for number in range(2, 6):
        proposal: Any = strategy.ask(number)
        strategy.tell(finish(proposal, number, TrialState.INFEASIBLE, None))
    strategy.ask(6)
    assert species_of(strategy) == [[0, 1]]


def test_a_space_without_distances_is_refused() -> None:
    with pytest.raises(ValueError, match="groups points by their distance, and ToySpace has no method distance; set"):
        DeepNeat(DeepNeat.Options(), space=ToySpace(), seed=0, full_fidelity=FULL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "greater than or equal to 2"),
        ({"species": 0}, "greater than or equal to 1"),
        ({"threshold": 0}, "greater than 0"),
        ({"survival": 0}, "greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DeepNeat.Options.model_validate(options)


@pytest.mark.parametrize("generational", [False, True])
def test_asks_and_tells_are_cheap_and_do_not_grow_with_the_trials_behind(generational: bool) -> None:
    options = DeepNeat.Options(population=100, generational=generational)
    strategy = DeepNeat(options, space=Words(), seed=0, full_fidelity=FULL)
    early, late = early_and_late_seconds(strategy, between=5_000)
    assert late < 100e-6
    assert late < 3 * early

"""Regularized evolution: the conformance suite, and the rules of its paper: tournament, ageing, start."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from conformance.strategy_cost import early_and_late_seconds
from conformance.strategy_suite import FULL, StrategySuite, ToySpace, finish
from pydantic import ValidationError

from nord_hpc.strategies.regularized_evolution import RegularizedEvolution
from nord_hpc.trial import Proposal, TrialState


class TestRegularizedEvolution(StrategySuite):
    name = "regularized_evolution"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"population": 16, "sample": 5},
        "tiny": {"population": 2, "sample": 1},
        "greedy": {"population": 10, "sample": 10},
    }
    without_selection = frozenset({"tiny"})


class CountingSpace(ToySpace):
    """Genotypes that tell where they come from: samples are numbered, mutations extend their parent."""

    def __init__(self) -> None:
        super().__init__()
        self.n_samples = 0

    def sample(self, rng: Any) -> Any:
        self.n_samples += 1
        return [self.n_samples - 1]

    def mutate(self, genotype: Any, rng: Any) -> Any:
        return [*genotype, "mutated"]


def evolution(population: int, sample: int, *, seed: int = 0) -> RegularizedEvolution:
    options = RegularizedEvolution.Options(population=population, sample=sample)
    return RegularizedEvolution(options, space=CountingSpace(), seed=seed, full_fidelity=FULL)


def complete(strategy: RegularizedEvolution, proposal: Proposal, number: int, score: float) -> None:
    strategy.tell(finish(proposal, number, TrialState.COMPLETED, score))


def test_starts_with_as_many_samples_as_the_population_then_mutates() -> None:
    strategy = evolution(4, 2)
    for number in range(4):
        assert strategy.independent_asks() == 4 - number
        complete(strategy, strategy.ask(number), number, 0.5)
    assert strategy.independent_asks() == 0
    child = strategy.ask(4)
    assert child.genotype == [child.parents[0], "mutated"]


def test_pending_samples_count_and_bad_ones_are_replaced_by_further_samples() -> None:
    strategy = evolution(3, 3)
    proposals = [strategy.ask(number) for number in range(3)]
    complete(strategy, proposals[0], 0, 0.1)
    assert strategy.ask(3).parents == (0,)  # three good ones are told or pending
    strategy.tell(finish(proposals[1], 1, TrialState.FAILED, None))
    strategy.tell(finish(proposals[2], 2, TrialState.INFEASIBLE, None))
    assert strategy.ask(4).genotype == [3]
    assert strategy.ask(5).parents == (0,)


def test_samples_while_there_is_no_parent_however_many_are_pending() -> None:
    strategy = evolution(2, 1)
    assert [strategy.ask(number).genotype for number in range(5)] == [[0], [1], [2], [3], [4]]


def test_the_oldest_leaves_even_when_it_is_the_best() -> None:
    strategy = evolution(3, 3)
    proposals = [strategy.ask(number) for number in range(4)]
    for number in (2, 0, 1):  # age follows the order of telling, not of asking
        complete(strategy, proposals[number], number, 0.9 if number == 2 else 0.1)
    assert 2 in {strategy.ask(number).parents[0] for number in range(4, 24)}
    complete(strategy, proposals[3], 3, 0.2)
    parents = {strategy.ask(number).parents[0] for number in range(24, 124)}
    assert parents == {0, 1, 3}


def test_the_best_of_the_sample_is_the_parent_and_ties_go_to_the_lowest_number() -> None:
    strategy = evolution(4, 4, seed=1)
    proposals = [strategy.ask(number) for number in range(4)]
    for number, score in ((3, 0.7), (1, 0.7), (2, 0.1), (0, 0.2)):
        complete(strategy, proposals[number], number, score)
    parents = [strategy.ask(number).parents[0] for number in range(4, 4004)]
    # Drawn with replacement: a member is the parent when it is drawn and no better one is.
    expected = {1: 1 - 0.75**4, 3: 0.75**4 - 0.5**4, 0: 0.5**4 - 0.25**4, 2: 0.25**4}
    for number, share in expected.items():
        deviation = math.sqrt(share * (1 - share) / len(parents))
        assert abs(parents.count(number) / len(parents) - share) < 4 * deviation


def test_scores_decide_and_not_fitness_so_that_minimizing_works() -> None:
    strategy = evolution(2, 2)
    proposals = [strategy.ask(number) for number in range(2)]
    for number, fitness in enumerate((5.0, 0.5)):
        finished = finish(proposals[number], number, TrialState.COMPLETED, fitness)
        strategy.tell(replace(finished, score=-fitness))
    parents = [strategy.ask(number).parents[0] for number in range(2, 402)]
    assert 0.65 < parents.count(1) / len(parents) < 0.85  # three of four samples hold it


@pytest.mark.parametrize(
    "values", [[math.nan, 0.9, 0.5, math.inf, 0.1], [math.nan, -0.9, -0.5, math.inf, -0.1]], ids=["max", "min"]
)
def test_nan_and_infinite_scores_never_enter_the_population(values: list[float]) -> None:
    strategy = evolution(5, 5)
    proposals = [strategy.ask(number) for number in range(5)]
    for number, value in enumerate(values):
        finished = finish(proposals[number], number, TrialState.COMPLETED, 0.0)
        strategy.tell(replace(finished, score=value))
    assert [strategy.ask(5 + k).parents for k in range(2)] == [(), ()]  # two samples in the place of the two
    parents = [strategy.ask(number).parents[0] for number in range(7, 207)]
    finite = [value for value in values if math.isfinite(value)]
    assert {values[parent] for parent in parents} <= set(finite)
    assert max(set(parents), key=parents.count) == values.index(max(finite))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 4, "sample": 5}, "sample 5 is larger than population 4; set sample to 4 or less"),
        ({"population": 1, "sample": 1}, "greater than or equal to 2"),
        ({"population": 4, "sample": 0}, "greater than or equal to 1"),
        ({"tournament": 3}, "tournament"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RegularizedEvolution.Options.model_validate(options)


@pytest.mark.timing
def test_asks_and_tells_are_cheap_and_do_not_grow_with_the_trials_behind() -> None:
    strategy = RegularizedEvolution(
        RegularizedEvolution.Options(population=100, sample=25), space=ToySpace(), seed=0, full_fidelity=FULL
    )
    early, late = early_and_late_seconds(strategy, between=10_000)
    assert late < 100e-6
    assert late < 3 * early

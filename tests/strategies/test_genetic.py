"""The genetic algorithm: the conformance suite, and the rules of generations, steady state, selection and elites."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

import pytest
from conformance.strategy_cost import early_and_late_seconds
from conformance.strategy_suite import FULL, StrategySuite, ToySpace, finish
from pydantic import ValidationError

from nord_hpc.interfaces import Wait
from nord_hpc.strategies.genetic import Genetic
from nord_hpc.trial import Proposal, TrialState


class TestGenetic(StrategySuite):
    name = "genetic"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "generations": {"population": 16, "elites": 2},
        "steady": {"generational": False, "population": 16, "selection": "roulette"},
        "tiny": {"generational": False, "population": 2, "tournament": 1, "crossover": 1.0, "mutation": 0.0},
    }
    without_selection = frozenset({"tiny"})


class CountingSpace(ToySpace):
    """Genotypes that tell where they come from: samples are numbered, operators write down what they did."""

    def __init__(self) -> None:
        super().__init__()
        self.n_samples = 0

    def sample(self, rng: Any) -> Any:
        self.n_samples += 1
        return [self.n_samples - 1]

    def mutate(self, genotype: Any, rng: Any) -> Any:
        return [*genotype, "mutated"]

    def crossover(self, first: Any, second: Any, rng: Any) -> Any:
        return [first, second, "crossed"]


def genetic(seed: int = 0, **options: Any) -> Genetic:
    given = Genetic.Options.model_validate({"tournament": 2, **options})
    return Genetic(given, space=CountingSpace(), seed=seed, full_fidelity=FULL)


def complete(strategy: Genetic, proposal: Any, number: int, score: float) -> None:
    strategy.tell(finish(proposal, number, TrialState.COMPLETED, score))


def grown(n: int, *, scores: list[float], **options: Any) -> Genetic:
    """A strategy whose first samples, numbered from 0, have these scores."""
    strategy = genetic(population=n, **options)
    for number, proposal in enumerate([strategy.ask(number) for number in range(n)]):
        complete(strategy, proposal, number, scores[number])
    return strategy


def test_a_generation_waits_for_its_last_result() -> None:
    strategy = genetic(population=3, elites=1)
    proposals = [strategy.ask(number) for number in range(3)]
    assert [proposal.genotype for proposal in proposals] == [[0], [1], [2]]
    for number in (2, 0):
        assert isinstance(strategy.ask(3), Wait)
        complete(strategy, proposals[number], number, 0.5)
    strategy.tell(finish(proposals[1], 1, TrialState.FAILED, None))
    children = [strategy.ask(3), strategy.ask(4)]  # one of three is the elite
    assert all(set(child.parents) <= {0, 2} for child in children)
    assert isinstance(strategy.ask(5), Wait)


def test_elites_stay_parents_and_others_do_not() -> None:
    strategy = grown(4, scores=[0.9, 0.1, 0.2, 0.3], elites=1, tournament=1, crossover=0.0)
    for number in range(4, 7):
        complete(strategy, strategy.ask(number), number, 0.5)
    parents = {strategy.ask(number).parents[0] for number in range(7, 10)}
    assert parents <= {0, 4, 5, 6}
    for number in range(7, 10):
        complete(strategy, Proposal([number]), number, 0.4)
    seen = set()
    for generation in range(20):  # each of children that are worse
        first = 10 + 3 * generation
        for number in range(first, first + 3):
            proposal = strategy.ask(number)
            seen |= set(proposal.parents)
            complete(strategy, proposal, number, 0.4)
    assert 0 in seen and not seen & {1, 2, 3, 4, 5, 6}


def test_without_elites_a_generation_is_gone_with_the_next() -> None:
    strategy = grown(3, scores=[0.9, 0.8, 0.7], elites=0)
    for number in range(3, 6):
        complete(strategy, strategy.ask(number), number, 0.1)
    assert {parent for number in range(6, 9) for parent in strategy.ask(number).parents} <= {3, 4, 5}


def test_the_parents_of_a_generation_that_failed_stay() -> None:
    strategy = grown(3, scores=[0.9, 0.8, 0.7], elites=1, tournament=1, crossover=0.0)
    seen = set()
    for number in range(3, 33):
        proposal = strategy.ask(number)
        seen |= set(proposal.parents)
        strategy.tell(finish(proposal, number, TrialState.FAILED, None))
    assert seen == {0, 1, 2}


def test_a_first_generation_that_failed_is_sampled_again() -> None:
    strategy = genetic(population=3)
    for number in range(3):
        strategy.tell(finish(strategy.ask(number), number, TrialState.INFEASIBLE, None))
    assert [strategy.ask(number).genotype for number in range(3, 6)] == [[3], [4], [5]]
    assert isinstance(strategy.ask(6), Wait)


def test_the_steady_state_replaces_the_worst_and_of_equals_the_oldest() -> None:
    strategy = grown(3, scores=[0.2, 0.9, 0.2], generational=False, tournament=1, crossover=0.0)
    complete(strategy, strategy.ask(3), 3, 0.5)
    parents = {strategy.ask(number).parents[0] for number in range(4, 54)}
    assert parents == {1, 2, 3}
    complete(strategy, strategy.ask(54), 54, 0.1)  # worse than all: it comes and goes
    assert {strategy.ask(number).parents[0] for number in range(55, 105)} == {1, 2, 3}


def test_the_steady_state_never_waits_and_replaces_failures_by_samples() -> None:
    strategy = genetic(population=3, generational=False)
    proposals = [strategy.ask(number) for number in range(5)]
    assert [proposal.genotype for proposal in proposals] == [[0], [1], [2], [3], [4]]
    complete(strategy, proposals[0], 0, 0.5)
    for number in range(1, 5):
        strategy.tell(finish(proposals[number], number, TrialState.FAILED, None))
    assert strategy.ask(5).genotype == [5]
    assert strategy.ask(6).genotype == [6]
    assert strategy.ask(7).parents == (0,)


def test_roulette_draws_in_proportion_to_what_is_above_the_worst() -> None:
    strategy = grown(4, scores=[-5.0, -4.0, -2.0, -4.0], generational=False, selection="roulette", crossover=0.0)
    counts = Counter(strategy.ask(number).parents[0] for number in range(4, 5004))
    expected = {1: 0.2, 2: 0.6, 3: 0.2}
    assert set(counts) == set(expected)
    for number, share in expected.items():
        assert abs(counts[number] - 5000 * share) < 4 * math.sqrt(5000 * share * (1 - share))


def test_roulette_of_equal_scores_is_uniform() -> None:
    strategy = grown(3, scores=[0.5, 0.5, 0.5], generational=False, selection="roulette", crossover=0.0)
    counts = Counter(strategy.ask(number).parents[0] for number in range(3, 3003))
    assert all(abs(counts[number] - 1000) < 4 * math.sqrt(3000 * 2 / 9) for number in range(3))


def test_tournaments_prefer_the_best_and_ties_go_to_the_lowest_number() -> None:
    strategy = grown(3, scores=[0.1, 0.7, 0.7], generational=False, crossover=0.0, tournament=2)
    counts = Counter(strategy.ask(number).parents[0] for number in range(3, 3003))
    for number, share in {0: 1 / 9, 1: 5 / 9, 2: 3 / 9}.items():
        assert abs(counts[number] - 3000 * share) < 4 * math.sqrt(3000 * share * (1 - share))


def test_crossover_and_mutation_happen_as_often_as_asked() -> None:
    strategy = grown(10, scores=[0.5] * 10, generational=False, crossover=0.6, mutation=0.3)
    proposals = [strategy.ask(number) for number in range(10, 4010)]
    crossed = [proposal for proposal in proposals if "crossed" in proposal.genotype]
    assert all(len(set(proposal.parents)) == 2 for proposal in crossed)
    assert all(len(proposal.parents) == 1 for proposal in proposals if "crossed" not in proposal.genotype)
    assert abs(len(crossed) - 2400) < 4 * math.sqrt(4000 * 0.24)
    mutated = [proposal for proposal in crossed if proposal.genotype[-1] == "mutated"]
    assert abs(len(mutated) / len(crossed) - 0.3) < 4 * math.sqrt(0.21 / len(crossed))
    # A copy of a parent is always mutated.
    assert all(proposal.genotype[-1] == "mutated" for proposal in proposals if len(proposal.parents) == 1)


@pytest.mark.parametrize("generational", [True, False])
def test_results_before_the_first_ask_stand_for_samples(generational: bool) -> None:
    strategy = genetic(population=4, generational=generational, elites=0)
    for number in range(3):
        complete(strategy, Proposal([f"given {number}"]), number, 0.5)
    strategy.tell(finish(Proposal(["given bad"]), 3, TrialState.FAILED, None))
    assert strategy.independent_asks() == 1
    sample = strategy.ask(4)
    assert sample.genotype == [0]
    complete(strategy, sample, 4, 0.4)
    seen = {parent for number in range(5, 9) for parent in strategy.ask(number).parents}
    assert seen and seen <= {0, 1, 2, 4}


def test_more_results_than_a_population_need_no_sample() -> None:
    strategy = genetic(population=3, elites=0)
    for number in range(10):
        complete(strategy, Proposal([number]), number, number / 10)
    assert {parent for number in range(10, 13) for parent in strategy.ask(number).parents} <= {7, 8, 9}


@pytest.mark.parametrize("generational", [True, False])
def test_results_that_come_between_do_not_change_the_asks_that_were_promised(generational: bool) -> None:
    strategy = genetic(population=4, generational=generational)
    strategy.ask(5)
    assert strategy.independent_asks() == 3
    for number in range(5):
        complete(strategy, Proposal([f"given {number}"]), number, 0.5)
    assert [strategy.ask(number).genotype for number in (6, 7, 8)] == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 4, "tournament": 5}, "tournament 5 is larger than population 4; set tournament to 4 or less"),
        ({"population": 4, "elites": 4}, "elites 4 leave no room for children in a population of 4; set elites to 3"),
        ({"population": 1}, "greater than or equal to 2"),
        ({"crossover": 1.5}, "less than or equal to 1"),
        ({"selection": "rank"}, "tournament"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Genetic.Options.model_validate(options)


@pytest.mark.parametrize("options", [{"generational": False, "selection": "roulette"}, {}], ids=str)
@pytest.mark.timing
def test_asks_and_tells_are_cheap_and_do_not_grow_with_the_trials_behind(options: dict[str, Any]) -> None:
    given = Genetic.Options.model_validate({"population": 100, **options})
    strategy = Genetic(given, space=ToySpace(), seed=0, full_fidelity=FULL)
    early, late = early_and_late_seconds(strategy, between=4_000)
    assert late < 100e-6
    assert late < 3 * early

"""Local search: the suite of all strategies, and how a climb goes."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from conformance.space_suite import make_space, text_of
from conformance.strategy_suite import FULL, Driver, StrategySuite, ToySpace, finish
from spaces_of_decisions import Words, with_decisions

from nord_hpc.strategies.local_search import LocalSearch
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

N_NEIGHBOURS = 36
"""Of a toy word: three other letters at each of twelve places."""


class TestLocalSearch(StrategySuite):
    name = "local_search"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"first": {}, "steepest": {"improvement": "steepest"}}
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"toy": None, "conv_graph": {"max_layers": 2}}
    budget = 500

    def make(self, variant: str, space: Any, *, seed: int = 7) -> Any:
        return super().make(variant, with_decisions(space), seed=seed)


def strategy(improvement: str = "first", *, seed: int = 3) -> LocalSearch:
    options = LocalSearch.Options.model_validate({"improvement": improvement})
    return LocalSearch(options, space=Words(), seed=seed, full_fidelity=FULL)


def toy(proposal: Proposal, number: int) -> FinishedTrial:
    return finish(proposal, number, TrialState.COMPLETED, ToySpace.score(proposal.genotype))


def step(driver: Driver) -> FinishedTrial:
    """One ask and its tell."""
    driver.ask()
    driver.tell()
    return driver.told[len(driver.proposals) - 1]


def test_the_first_improvement_is_taken_at_once() -> None:
    driver = Driver(strategy(), toy)
    here = step(driver)
    assert here.trial.parents == ()
    n_moves = 0
    proposed = {text_of(here.trial.genotype)}
    while here.score != 1:
        finished = step(driver)
        assert finished.trial.parents == (here.trial.number,)
        changed = [a != b for a, b in zip(finished.trial.genotype, here.trial.genotype, strict=True)]
        assert sum(changed) == 1
        assert text_of(finished.trial.genotype) not in proposed
        proposed.add(text_of(finished.trial.genotype))
        assert finished.score is not None and here.score is not None
        if finished.score > here.score:
            here = finished
            n_moves += 1
    assert 5 <= n_moves <= 12


def test_a_climb_ends_where_no_neighbour_is_better_and_another_begins_at_a_sample() -> None:
    driver = Driver(strategy(), toy)
    best = step(driver)
    while best.score != 1:
        best = step(driver)
    starts = [len(driver.proposals)]
    while len(starts) < 4:
        finished = step(driver)
        if finished.trial.parents == ():
            starts.append(finished.trial.number)
    # Behind the best word come those of its neighbours that were not tried on the way to it, and then a sample.
    assert 0 < starts[1] - starts[0] < N_NEIGHBOURS
    for begin, end in pairwise(starts[1:]):
        scores = [driver.told[number].score for number in range(begin, end)]
        assert 1.0 in scores, "each climb comes to the top of a space with one"


def test_steepest_goes_to_the_best_of_all_neighbours() -> None:
    driver = Driver(strategy("steepest"), weighted)
    here = step(driver)
    proposed = {text_of(here.trial.genotype)}
    for _ in range(5):
        around = [
            finished for finished in map(weighted, map(Proposal, Words().neighbours(here.trial.genotype)), range(36))
        ]
        best = max(around, key=lambda finished: finished.score or 0)
        told = {}
        for _ in range(sum(text_of(finished.trial.genotype) not in proposed for finished in around)):
            finished = step(driver)
            assert finished.trial.parents == (here.trial.number,)
            told[text_of(finished.trial.genotype)] = finished
        proposed |= told.keys()
        here = told[text_of(best.trial.genotype)]


def weighted(proposal: Proposal, number: int) -> FinishedTrial:
    """Each place is worth another amount, so that no two neighbours are alike."""
    score = sum((at + 1) * (letter == (7 * at + 2) % 4) + letter / 100 for at, letter in enumerate(proposal.genotype))
    return finish(proposal, number, TrialState.COMPLETED, score)


def test_no_ask_waits_and_the_best_of_the_samples_is_the_next_start() -> None:
    driver = Driver(strategy(), lambda proposal, number: finish(proposal, number, TrialState.COMPLETED, 0.5))
    for _ in range(6):
        assert driver.ask()
    assert all(proposal.parents == () for proposal in driver.proposals)
    scores = iter([0.5, 0.2, 0.4, 0.1, 0.3, 0.2])
    driver.evaluator = lambda proposal, number: finish(proposal, number, TrialState.COMPLETED, next(scores))
    for _ in range(6):
        driver.tell()
    driver.evaluator = lambda proposal, number: finish(proposal, number, TrialState.COMPLETED, 0.0)
    for _ in range(N_NEIGHBOURS):
        assert step(driver).trial.parents == (0,)
    assert step(driver).trial.parents == (2,)


def test_a_better_neighbour_moves_the_climb_however_late_it_comes() -> None:
    driver = Driver(strategy(), toy)
    step(driver)
    for _ in range(3):
        driver.ask()
    late = driver.outstanding.pop(0)
    result = {
        number: finish(driver.proposals[number], number, TrialState.COMPLETED, score)
        for number, score in ((late, 0.95), (late + 1, 0.9), (late + 2, 0.0))
    }
    for number in (late + 1, late + 2):
        driver.strategy.tell(result[number])
    assert driver.strategy.ask(100).parents == (late + 1,)
    driver.strategy.tell(result[late])
    assert driver.strategy.ask(101).parents == (late,)


def test_an_equal_neighbour_is_not_better() -> None:
    driver = Driver(strategy(), lambda proposal, number: finish(proposal, number, TrialState.COMPLETED, 0.5))
    for _ in range(1 + N_NEIGHBOURS):
        step(driver)
    assert {proposal.parents for proposal in driver.proposals[1:]} == {(0,)}
    assert step(driver).trial.parents == ()


def test_the_climb_begins_at_the_best_of_the_trials_that_are_known() -> None:
    searching = strategy()
    for number, score in enumerate((0.3, 0.8, 0.5)):
        word = [number] * 12
        searching.tell(finish(Proposal(word), 900 + number, TrialState.COMPLETED, score))
    proposal = searching.ask(0)
    assert proposal.parents == (901,)
    assert proposal.genotype.count(1) == 11


def test_neighbours_come_in_an_order_that_the_seed_draws() -> None:
    orders = []
    for seed in (1, 2):
        searching = strategy(seed=seed)
        searching.tell(finish(Proposal([0] * 12), 900, TrialState.COMPLETED, 0.5))
        orders.append([text_of(searching.ask(number).genotype) for number in range(N_NEIGHBOURS)])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_a_space_without_neighbours_is_refused() -> None:
    text = (
        "a space that lists the neighbours of a point, and ToySpace has no neighbours(); set another strategy.name or"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        LocalSearch(LocalSearch.Options(), space=ToySpace(), seed=0, full_fidelity=FULL)


def test_the_best_cell_of_a_table_like_space_is_found_by_restarts() -> None:
    """A space with many local optima: the restarts find the best of them."""
    space = make_space("conv_graph", {"max_layers": 2, "channels": [4, 8], "kernels": [1, 3]})
    searching = LocalSearch(LocalSearch.Options(), space=space, seed=1, full_fidelity=FULL)
    driver = Driver(searching, rugged)
    while len(driver.told) < 1500:
        step(driver)
    best = max(finished.score or 0 for finished in driver.told.values())
    n_starts = sum(proposal.parents == () for proposal in driver.proposals)
    assert n_starts > 5
    assert best > 0.99


def rugged(proposal: Proposal, number: int) -> FinishedTrial:
    """Scores without any structure."""
    digest = hashlib.sha256(text_of(proposal.genotype).encode()).digest()
    return finish(proposal, number, TrialState.COMPLETED, int.from_bytes(digest[:4], "big") / 2**32)
